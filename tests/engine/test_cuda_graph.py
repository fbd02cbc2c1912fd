"""CUDA graphs of steps: traced on a CPU as they would be captured on a device, and replayed without Python."""

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from speechgpt2.engine import batch_rows
from speechgpt2.engine.step_inputs import SampleParams, StepInputs, write_table
from speechgpt2.lm import backbone, model, sampling
from speechgpt2.lm.model import SpeechLM
from speechgpt2.nn import native
from speechgpt2.streaming import Cache
from speechgpt2.types import Patches
from tests.engine.results import audio_of, context_of, reason
from tests.engine.test_engine import SHORT
from tests.engine.tiny import models, noise, say, talk, tiny_engine, tiny_lm


class Traced:
    """Stands in for a capture: the operators that the function went through once, whatever Python decided then. It
    cannot be traced if it looks at a value.
    """

    made = 0

    @torch.inference_mode()
    def __init__(self, function, *idle):
        tensors = [x for x in idle if isinstance(x, torch.Tensor)]

        def of_tensors(*given):
            given = list(given)
            return function(*(given.pop(0) if isinstance(x, torch.Tensor) else x for x in idle))

        self.idle, self.graph = idle, make_fx(of_tensors)(*tensors)
        Traced.made += 1

    @torch.inference_mode()
    def __call__(self, *arguments):
        assert all(isinstance(x, torch.Tensor) or x == mine for x, mine in zip(arguments, self.idle, strict=True))
        return self.graph(*(x.clone() for x in arguments if isinstance(x, torch.Tensor)))


class Direct:
    """Not captured at all."""

    def __init__(self, function, *idle):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


class AllRows(batch_rows.BatchRows):
    """As on a device."""

    def __init__(self, slots, device, together=batch_rows.CPU_BATCH):
        super().__init__(slots, device, slots)
        self.static_shapes = True

    def to_device(self, values):
        return torch.tensor(values)


@pytest.fixture
def as_on_a_device(monkeypatch):
    """All rows in every step, no value is looked at, and no kernel in C is called, which a trace would not see."""
    monkeypatch.setenv("SG2_NATIVE", "0")
    native.native_kernels.cache_clear()
    monkeypatch.setattr("speechgpt2.engine.model_runner.BatchRows", AllRows)
    monkeypatch.setattr("speechgpt2.engine.codec_worker.BatchRows", AllRows)
    for module in (backbone, model, sampling):
        monkeypatch.setattr(module, "can_sync", lambda x: False)
    yield
    native.native_kernels.cache_clear()


def a_talk(monkeypatch, graphed, lm):
    """Two who talk at once, one for longer, and one who comes later: what they heard, and all that their models were
    told.
    """
    monkeypatch.setattr(batch_rows, "GraphedFunction", graphed)
    engine = tiny_engine(lm)
    first, second = engine.open(SHORT), engine.open(SHORT)
    say(first, noise(0.5, 1))
    first.respond()
    say(second, noise(1.1, 2))
    second.respond()
    received = talk(engine, [first, second])
    second.close()
    engine.step()
    third = engine.open(SHORT)
    for seed in (3, 4):
        say(third, noise(0.4, seed))
        third.respond()
        received[third] += talk(engine, [third])[third]
    return [(audio_of(received[s]), context_of(s), reason(received[s])) for s in (first, third)]


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_step_can_be_captured_and_replayed(as_on_a_device, monkeypatch, draft_tokens):
    lm = tiny_lm(chain_of_modality=True, draft_tokens=draft_tokens) if draft_tokens else models()[1]
    Traced.made = 0
    ours, theirs = (a_talk(monkeypatch, graphed, lm) for graphed in (Traced, Direct))
    assert Traced.made == (5 if draft_tokens else 4)
    for (pcm, patches, why), (pcm_, patches_, why_) in zip(ours, theirs, strict=True):
        assert why == why_ and len(pcm) and np.array_equal(pcm, pcm_)
        assert torch.equal(patches.text, patches_.text) and torch.equal(patches.codes, patches_.codes)


@pytest.mark.parametrize("all_rows", [False, True], ids=["selected rows", "all rows"])
def test_update_copies_cells_only_where_rows_are_selected(all_rows):
    """Where all rows are computed, the step has written its cells into the state itself."""
    rows = (AllRows if all_rows else batch_rows.BatchRows)(8, torch.device("cpu"))
    state = torch.zeros(8, dtype=torch.int64), Cache(torch.zeros(8, 1, 4, 2), torch.zeros(8, 1, 4, 2))
    (batch,) = rows.batches([5, 1])
    position, cache = before = rows.select(state, batch)
    cache.keys[:, :, 0] = 7.0
    version = state[1].keys._version
    active = (batch == 5) | (batch == 1)
    rows.update(state, batch, active, (position + 1, cache), before)
    assert state[0].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert (state[1].keys[[1, 5], :, 0] == 7.0).all() and (state[1].keys._version == version) == all_rows


def test_host_synchronisation_cannot_be_captured():
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        Traced(lambda x: x * 2 if bool(x.any()) else x, torch.zeros(3))


def test_step_inputs_read_what_write_table_wrote():
    lm: SpeechLM = models()[1]
    c = lm.config
    codes = torch.arange(c.patch_frames * c.codebooks).view(1, 1, c.patch_frames, c.codebooks)
    read = Patches(torch.tensor([[7]]), codes)
    draw = SampleParams(0.7, 50, 0.9, -(2**62) + 3, first=True, writing=False)
    table = write_table(np.array([5, 6, 7]), {2: read}, {0: draw}, c)
    inputs = StepInputs.from_table(torch.from_numpy(table), c)
    assert inputs.position.tolist() == [5, 6, 7]
    assert inputs.prefills.tolist() == [False, False, True] and inputs.samples.tolist() == [True, False, False]
    assert inputs.patches.text[2].tolist() == [7] and torch.equal(inputs.patches.codes[2:], codes)
    assert bool((inputs.patches.codes[:2] == c.no_speech).all())
    temperature, top_k, top_p, seed = (column[0].item() for column in inputs.sampling)
    assert (temperature, top_p) == (np.float32(0.7), np.float32(0.9)) and (top_k, seed) == (50, -(2**62) + 3)
    assert inputs.sampling.temperature.dtype == torch.float32
    inputs.patches.text[1] = 9  # it is the table's own
    assert int(table[1].max()) == max(9, c.no_speech)
