"""The comparison of precisions: what is compared, with what, and what the numbers mean."""

import json
import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from speechgpt2.cli import app
from speechgpt2.errors import UserError
from speechgpt2.eval import precision
from speechgpt2.eval.precision import (
    ComparedModel,
    convert,
    distance,
    evaluate,
    greedy_replies,
    predict,
    relative_perplexity,
)
from speechgpt2.lm.config import PatchDecoderConfig
from speechgpt2.lm.model import SpeechLM
from tests.lm.tiny import random_patches, tiny_config, tiny_lm, tiny_tokenizer

TEXTS = {"en": "Hello there, what is the weather like? It's 25 degrees.", "zh": "你好，今天天气怎么样？"}


def tiny():
    """Random weights, in matrices that int4 in groups of 128 divides."""
    config = replace(tiny_config(width=128, ffn=128), patch_decoder=PatchDecoderConfig(128, 2, 2, 128))
    torch.manual_seed(0)
    lm = SpeechLM(config, tiny_tokenizer()).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.1)
    return lm


@pytest.fixture(scope="module")
def rows():
    return list(evaluate(ComparedModel(tiny, speaks=True), TEXTS))


def test_every_precision_is_compared_on_every_sequence(rows):
    sequences = [*TEXTS, *precision.QUESTIONS]
    found = {(row.precision, row.sequence) for row in rows}
    assert found == {(p, s) for p in precision.PRECISIONS for s in sequences} and len(rows) == 25
    assert {row.tokens for row in rows if row.sequence == "en"} == {len(tiny().prompt.encode(TEXTS["en"])) - 1}


def test_float32_equals_itself_and_fewer_bits_differ_more(rows):
    def mean(name, field):
        values = [getattr(row, field) for row in rows if row.precision == name]
        return sum(values) / len(values)

    assert mean("float32", "divergence") == pytest.approx(0, abs=1e-6) and mean("float32", "agreement") == 1.0
    order = [mean(name, "divergence") for name in ("float32", "bfloat16", "int8", "int4")]
    assert order == sorted(order) and order[-1] > 1e-5
    assert all(row.change == 0 for row in rows if row.precision == "bfloat16")
    assert all(abs(row.change) < 1 for row in rows)


def test_sizes_shrink(rows):
    size = {row.precision: row.megabytes for row in rows}
    assert size["float32"] == pytest.approx(2 * size["bfloat16"]) and size["int4"] < size["int8"] < size["bfloat16"]


def test_perplexity_is_that_of_the_next_token():
    lm, prompt = tiny(), tiny().prompt
    patches = prompt.text_patches(prompt.encode(TEXTS["en"]))
    with torch.no_grad():
        logits = lm.text_logits(lm(patches))[0, :-1]
    wanted = torch.nn.functional.cross_entropy(logits, patches.text[0, 1:]).exp()
    row = next(r for r in evaluate(ComparedModel(tiny, speaks=False), {"en": TEXTS["en"]}, ["float32"]))
    assert row.perplexity == pytest.approx(float(wanted), rel=1e-5)
    assert math.isnan(row.code_divergence)


def test_error_of_a_change_is_that_of_the_differences():
    base = torch.tensor([1.0, 5.0, 2.0, 8.0])
    change, error = relative_perplexity(base + torch.tensor([0.02, 0.0, 0.02, 0.0]), base)
    assert change == pytest.approx(math.exp(0.01) - 1, rel=1e-4)
    assert error == pytest.approx(math.exp(0.01) * 0.01 / 2, rel=1e-4)  # deviation of 0.01, four tokens
    assert relative_perplexity(base, base) == (0.0, 0.0)


def test_codes_are_predicted_from_the_patch_before():
    lm = tiny()
    patches = random_patches(lm, 1, 12)
    found = predict(convert(lm, "float32").lm, patches)
    plain = tiny()
    with torch.no_grad():
        hidden = plain(patches)[0]
        speaks = patches.codes[0, 1:, 0, 0] != plain.config.no_speech
        logits = plain.code_logits(hidden[:-1][speaks], patches.codes[0, 1:][speaks])[..., :1024]
    assert speaks.any()
    assert torch.allclose(found.codes, logits.log_softmax(-1).flatten(0, 2), atol=1e-4)


def test_replies_are_greedy_and_the_same_each_time():
    first, second = greedy_replies(tiny(), ["hello"]), greedy_replies(tiny(), ["hello"])
    assert all(torch.equal(a, b) for a, b in zip(first["hello"], second["hello"], strict=True))


def test_distance():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    wanted = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert distance(p, q) == (pytest.approx(wanted, abs=1e-6), 0.5)
    assert all(map(math.isnan, distance(p[:0], q[:0])))


def test_invalid_requests_are_refused(tmp_path):
    with pytest.raises(UserError, match="precision must be one of"):
        convert(tiny(), "int3")
    with pytest.raises(UserError, match="does not fit a matrix with"):
        list(evaluate(ComparedModel(tiny_lm, speaks=True), TEXTS, ["bfloat16", "int4"]))
    with pytest.raises(UserError, match="short: holds no text"):
        list(evaluate(ComparedModel(tiny, speaks=False), {"short": ""}))
    SpeechLM.save_pretrained(in_precision_unpacked(tiny()), tmp_path)
    with pytest.raises(UserError, match="already quantized"):
        precision.find_model(tmp_path)


def in_precision_unpacked(lm):
    from speechgpt2.nn.quantized import Quantization, quantize_model

    quantize_model(lm.to(torch.bfloat16), Quantization("int8"))
    return lm


def test_command_writes_the_table(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXTS["en"])
    command = ["eval", "precision", tmp_path / "model", "--text", tmp_path / "text.txt", "--weights", "int8"]
    command += ["-o", tmp_path / "rows.json", "--threads", torch.get_num_threads()]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    assert "text.txt" in result.stdout and "float32" not in result.stdout.split("\n", 2)[2]
    rows = json.loads((tmp_path / "rows.json").read_text())["tables"]["Precision of the weights"]
    assert {row["precision"] for row in rows} == {"int8"} and rows[0]["change"] is not None
