"""The benchmark of a device, on a CPU: its parts, and what becomes of those that fail or come too late."""

import json
import math
import os
import re
import time
from dataclasses import replace

import pytest
import torch

from speechgpt2.bench import device as bench
from speechgpt2.bench import device_engine, device_models, device_parity, device_tests
from speechgpt2.bench.device import Part, Setup
from speechgpt2.bench.machine import count_flops
from speechgpt2.codec.model import Codec
from speechgpt2.engine import batch_rows
from speechgpt2.engine.model_runner import ModelRunner
from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.types import Patches
from tests.command_line import fails, sg2
from tests.engine.test_cuda_graph import as_on_a_device
from tests.traced import Traced

__all__ = ["as_on_a_device"]  # a fixture

QUICK = Setup(model="tiny", context=256, steps=4, turns=1, question_seconds=0.13, samples=("random",))
CPU = torch.device("cpu")


def small_sample():
    backbone = BackboneConfig(vocab=256, width=128, layers=2, heads=4, kv_heads=2, ffn=128)
    config = replace(device_parity.RANDOM_LAYOUT, backbone=backbone, patch_decoder=PatchDecoderConfig(128, 1, 2, 128))
    return device_parity.random_sample(config, 32)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "CPU_SIZES", (64, 128))
    monkeypatch.setattr(bench, "CPU_MEGABYTES", 8)
    sample = small_sample()
    monkeypatch.setattr(device_parity, "random_sample", lambda: sample)


def test_all_parts(small, tmp_path, capsys):
    groups = [group for group in bench.GROUPS if group != "tests"]
    out, begun = tmp_path / "device.json", []
    results = bench.main(QUICK, (2, 1), groups, 60.0, out, begun.append, processes=False)
    assert [*results] == ["machine", "parity", "1 session", "2 sessions", "int8, 1 session", "int4, 1 session"]
    assert {result.status for result in results.values()} == {"done"} and len(begun) == 6
    [machine] = results["machine"].tables[bench.MACHINE_TITLE]
    assert machine.bfloat16 > 0 and machine.gigabytes_per_second > 0 and machine.launch_us > 0

    tables = results["2 sessions"].tables
    written, spoken = tables[device_engine.STEPS_TITLE]
    assert (written.step, spoken.step, spoken.sessions, spoken.weights) == ("written", "spoken", 2, "bfloat16")
    assert written.steps == spoken.steps == 4 and math.isnan(written.rtf)
    assert 0 < spoken.median_ms <= spoken.p95_ms and spoken.patch_ms > 0.9 * spoken.median_ms
    assert spoken.rtf == pytest.approx(spoken.patch_ms / 120)
    reads = spoken.gigabytes * 1e9 / (spoken.median_ms / 1000)
    assert spoken.bandwidth_share == pytest.approx(reads / (machine.gigabytes_per_second * 1e9))
    assert spoken.gigabytes > written.gigabytes and 0 < spoken.product_share < 1
    [first] = tables[device_engine.FIRST_TITLE]
    assert first.turns == 1 and 0 < first.median_ms <= first.most_ms
    [memory] = tables[device_engine.MEMORY_TITLE]
    assert memory.plan_gb > 0.6 and memory.peak_gb > 0.1 and math.isnan(memory.device_gb)
    assert [*results["int4, 1 session"].tables] == [device_engine.STEPS_TITLE, device_engine.MEMORY_TITLE]

    written_file = json.loads(out.read_text())
    assert written_file["parts"]["2 sessions"]["tables"]["First audio"][0]["sessions"] == 2
    assert written_file["setup"]["machine"]["bfloat16"] == machine.bfloat16
    printed = capsys.readouterr().out
    assert "# Parity with the CPU in float32" in printed and "2 sessions: done after" in printed


def fine(setup, seconds):
    yield "Numbers", [bench.MachineRow("a", 1.0, 2.0, 3.0, 4.0, 5.0, "6")]


def broken(setup, seconds):
    yield "Numbers", [bench.MachineRow("before", 1.0, 2.0, 3.0, 4.0, 5.0, "6")]
    raise ZeroDivisionError("no device\ncan do that")


def too_large(setup, seconds):
    raise UserError("needs 900 GB on cuda, where 140 GB are free")
    yield


def dies(setup, seconds):
    yield from fine(setup, seconds)
    os._exit(3)


def hangs(setup, seconds):
    yield from fine(setup, seconds)
    time.sleep(600)


def part(run, least=0.0, most=300.0, isolated=True):
    return Part(run.__name__, "machine", run, least, most, isolated)


def test_part_that_fails_is_a_line_and_loses_nothing(monkeypatch, tmp_path, capsys):
    chosen = [part(broken), part(too_large), part(fine)]
    monkeypatch.setattr(bench, "parts", lambda sessions, groups: chosen)
    results = bench.main(QUICK, out=tmp_path / "device.json", processes=False)
    assert [result.status for result in results.values()] == ["failed", "skipped", "done"]
    assert [row.name for row in results["broken"].tables["Numbers"]] == ["before"]
    written = json.loads((tmp_path / "device.json").read_text())["parts"]
    assert "in broken" in written["broken"]["trace"] and written["fine"]["tables"]["Numbers"][0]["name"] == "a"
    printed = capsys.readouterr().out
    assert re.search("^broken: failed after [0-9]+ s: ZeroDivisionError: no device can do that$", printed, re.M)
    assert re.search("^too_large: skipped after [0-9]+ s: needs 900 GB on cuda", printed, re.M)
    assert "Traceback" not in printed


def test_no_part_begins_without_time(capsys):
    results = bench.main(QUICK, minutes=0.0, processes=False)
    assert {result.status for result in results.values()} == {"skipped"} and len(results) == 9
    assert "parity: skipped after 0 s: needs some 15 s, and 0 s are left" in capsys.readouterr().out


def test_measurement_is_cut_short():
    test = QUICK.engine_test(1, "bfloat16", seconds=0.0)
    rows = dict(device_engine.run(replace(test, steps=10_000, turns=0)))
    [spoken] = rows[device_engine.STEPS_TITLE]
    assert spoken.steps < 100 and math.isnan(spoken.bandwidth_share)


def test_process_that_dies_or_hangs_is_ended(monkeypatch):
    """What it had measured is kept."""
    died = [replace(result, tables=dict(result.tables)) for result in bench.run_part(part(dies), QUICK, 300.0)]
    assert died[0].status == "running" and [*died[0].tables] == ["Numbers"]
    assert (died[-1].status, died[-1].reason) == ("failed", "its process has ended with code 3")
    began = time.monotonic()
    *_, hung = bench.run_part(part(hangs, most=1.0), QUICK, 300.0)
    assert (hung.status, hung.reason) == ("failed", "did not end within 1 s") and time.monotonic() - began < 300


def test_failure_of_the_engine_has_its_reason(monkeypatch):
    def fail(self, prefill, sample):
        raise ZeroDivisionError("a broken kernel")
        yield

    monkeypatch.setattr(ModelRunner, "step", fail)
    with pytest.raises(RuntimeError, match=r"ends this session.*ZeroDivisionError: a broken kernel"):
        list(device_engine.run(QUICK.engine_test(1, "bfloat16", 10.0)))


def test_steady_model_can_be_captured(as_on_a_device, monkeypatch):
    """Nothing is packed, as on a device."""
    monkeypatch.setattr(batch_rows, "GraphedFunction", Traced)
    monkeypatch.setattr("speechgpt2.engine.model_runner.pack", lambda lm, rows: None)
    monkeypatch.setattr(Codec, "optimize_for_inference", lambda codec, batch: None)
    rows = dict(device_engine.run(replace(QUICK.engine_test(2, "bfloat16", 60.0), turns=1)))
    [first] = rows[device_engine.FIRST_TITLE]
    assert first.sessions == 2 and first.turns == 1


def test_sessions_that_do_not_fit_are_said():
    test = replace(QUICK.engine_test(256, "bfloat16", 10.0), device="cuda")
    device_engine.check_fits(test, 10**12, None)
    with pytest.raises(UserError, match=r"256 sessions of 256 patches need 1000\.0 GB on cuda, where 2\.0 GB are free"):
        device_engine.check_fits(test, 10**12, 2 * 10**9)


def test_sizes_of_the_released_model_are_planned_without_weights():
    planned = device_models.plan_model(device_models.LARGE, None, CPU)
    assert 15.4e9 < planned.lm < 15.7e9 and planned.patch == 2 * 57_344  # float32 keys and values on a CPU
    int4 = device_models.plan_model(device_models.LARGE, None, CPU, "int4")
    assert 4.5e9 < int4.lm < 5.5e9 and int4.codec == planned.codec


@torch.no_grad()
def test_steady_model_speaks_or_writes_as_its_seed_says():
    lm = device_models.make_model("tiny", None, CPU).lm
    ids, state = lm.prompt.special_ids, lm.init_state(2, 31)
    hidden, state = lm.prefill(Patches(*(x.expand(2, *x.shape[1:]) for x in lm.prompt.user_text("a b"))), state)
    sampling, tokens = SamplingParams.for_batch(2, seed=4), []
    for _ in range(4):
        patches = lm.sample(hidden, state, sampling).patches
        hidden, state = lm.prefill(patches, state)
        tokens.append(patches.text[:, 0].tolist())
    assert tokens == [[ids.speech_start, ids.filler], *[[ids.filler, ids.filler]] * 3]
    assert (patches.codes[0] < lm.config.no_speech).all() and (patches.codes[1] == lm.config.no_speech).all()


@torch.no_grad()
@pytest.mark.parametrize("spoken", [False, True])
def test_products_are_counted_as_they_are_made(spoken):
    lm, filled = small_sample().lm, 24
    state = lm.init_state(1, 31)
    words = [lm.prompt.special_ids.filler] * filled
    hidden, state = lm.prefill(lm.prompt.text_patches([*words, lm.prompt.special_ids.speech_start][-filled:]), state)
    token = lm.prompt.special_ids.filler if spoken else lm.prompt.special_ids.speech_end

    def step():
        patches = lm.sample(hidden, state, SamplingParams.greedy(), torch.tensor([token])).patches
        lm.prefill(patches, state)

    assert device_models.product_count(lm.config, filled, spoken) == pytest.approx(count_flops(step), rel=0.05)


def test_parity_of_the_cpu_with_itself():
    rows = {row.weights: row for row in device_parity.compare(small_sample(), [CPU])}
    assert [*rows] == ["bfloat16", "int8", "int4", "int4/128"] and {row.tokens for row in rows.values()} == {31}
    assert 0 < rows["bfloat16"].error < rows["int8"].error < rows["int4"].error
    assert rows["bfloat16"].divergence < rows["int4"].divergence and rows["bfloat16"].code_agreement > 0.9


def test_logit_error_ignores_what_a_row_has_in_common():
    logits = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.5, -1.0]])
    moved = (logits + 5.0).log_softmax(-1)
    assert device_parity.logit_error(logits.log_softmax(-1), moved) == pytest.approx(0.0, abs=1e-6)
    moved[0, 1] += 0.3
    assert device_parity.logit_error(logits, moved) == pytest.approx(0.2 / 2.0, abs=1e-6)
    assert math.isnan(device_parity.logit_error(logits[:0], logits[:0]))


TESTS = """
import pytest

@pytest.mark.needs_cpu
def test_good(): pass

@pytest.mark.needs_cpu
@pytest.mark.parametrize("x", ["a b"])
def test_bad(x): assert 1 + 1 == 3

@pytest.mark.needs_cpu
def test_left_out(): pytest.skip("no")

def test_of_no_device(): assert False
"""


def test_tests_of_a_checkout_are_run(tmp_path):
    (tmp_path / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "tests" / "deep" / "test_device.py").write_text(TESTS)
    tables = dict(device_tests.run("cpu", 300.0, tmp_path))
    [row] = tables[device_tests.TITLE]
    assert (row.file, row.passed, row.failed, row.skipped) == ("tests/deep/test_device.py", 1, 1, 1), row
    assert row.ended and "assert (1 + 1) == 3" in row.output, row
    [failure] = tables[device_tests.FAILURES_TITLE]
    assert failure.test == "tests/deep/test_device.py::test_bad[a b]" and "assert (1 + 1) == 3" in failure.reason


def test_tests_that_hang_are_ended(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_device.py").write_text("import time\ntime.sleep(600)\n")
    [(_, [row])] = device_tests.run("cpu", 1.0, tmp_path)
    assert not row.ended and row.passed == row.failed == 0


def test_package_without_tests_says_so(tmp_path):
    with pytest.raises(UserError, match="not beside the package"):
        list(device_tests.run("cpu", 60.0, tmp_path))


def test_command(monkeypatch, tmp_path):
    seen = []

    def main(setup, sessions, groups, minutes, out, progress):
        seen.append((setup.model, setup.device, sessions, [*groups], minutes))
        return {"machine": bench.PartResult("failed" if groups == ["parity"] else "done")}

    monkeypatch.setattr(bench, "main", main)
    sg2("bench", "device", "--device", "cpu")
    sg2("bench", "device", "--device", "cpu", "--model", "tiny", "-n", 3, "--minutes", 2, "--part", "parity", code=1)
    everything = [*bench.GROUPS]
    assert seen == [
        ("qwen2.5-7b", "cpu", [1, 16, 64, 256], everything, 8.0),
        ("tiny", "cpu", [3], ["parity"], 2.0),
    ]


def test_command_refuses_unknown_parts():
    assert "unknown part nonsense; one of machine, tests" in fails(
        "bench", "device", "--device", "cpu", "--part", "nonsense"
    )
