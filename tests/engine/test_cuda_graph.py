"""CUDA graphs of steps: traced on a CPU as they would be captured on a device, and replayed without Python."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2.engine import batch_rows
from speechgpt2.engine.prefill import PrefillChunk
from speechgpt2.engine.step_inputs import SampleParams, StepInputs, write_table
from speechgpt2.lm.model import SpeechLM
from speechgpt2.nn import cuda_graph
from speechgpt2.streaming import Cache
from speechgpt2.types import Patches, Turn
from tests.engine.results import audio_of, context_of, reason
from tests.engine.test_engine import SHORT
from tests.engine.tiny import models, noise, say, talk, tiny_engine, tiny_lm
from tests.traced import Trace, Traced, without_host


class Direct:
    """Not captured at all."""

    def __init__(self, function, idle):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


class AllRows(batch_rows.BatchRows):
    """As on a device."""

    def __init__(self, slots, device, together=batch_rows.CPU_BATCH):
        super().__init__(slots, device, slots)
        self.static_shapes = self.is_captured = True

    def to_device(self, values):
        return torch.tensor(values)


@pytest.fixture
def as_on_a_device(monkeypatch):
    """All rows in every step, no value is looked at, and no kernel in C is called, which a trace would not see."""
    monkeypatch.setattr("speechgpt2.engine.model_runner.BatchRows", AllRows)
    monkeypatch.setattr("speechgpt2.engine.codec_worker.BatchRows", AllRows)
    with without_host(monkeypatch):
        yield


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
    # With and without codes; one length of the cache, as the context is short; both directions of the codec.
    assert Traced.made == (6 if draft_tokens else 5)
    for (pcm, patches, why), (pcm_, patches_, why_) in zip(ours, theirs, strict=True):
        assert why == why_ and len(pcm) and np.array_equal(pcm, pcm_)
        assert torch.equal(patches.text, patches_.text) and torch.equal(patches.codes, patches_.codes)


def test_attention_reads_the_filled_part_of_the_caches(as_on_a_device, monkeypatch):
    monkeypatch.setattr(batch_rows, "GraphedFunction", Traced)
    monkeypatch.setattr(cuda_graph, "SHORTEST_GRAPH", 32)
    engine = tiny_engine()
    runner = engine.core.runner
    assert runner.states.kv_lengths == [48, 80, 144, 272]
    lengths, replay = [], runner.read_rows
    runner.read_rows = lambda table, rows, kv_length: (lengths.append(kv_length), replay(table, rows, kv_length))[1]
    session = engine.open(replace(SHORT, max_patches=60))
    say(session, noise(0.5))
    session.respond()
    audio = audio_of(talk(engine, [session])[session])
    assert len(audio) and lengths == sorted(lengths) and len(set(lengths)) > 1
    assert lengths[-1] < 2 * session.slot.history.context.kv_length


def test_text_needs_neither_codes_nor_the_codec(as_on_a_device, monkeypatch):
    monkeypatch.setattr(batch_rows, "GraphedFunction", Traced)
    engine = tiny_engine()
    runner, chosen, replay = engine.core.runner, [], engine.core.runner.sample_rows
    runner.sample_rows = lambda *arguments: (chosen.append(arguments[-1]), replay(*arguments))[1]
    runner.codec.decode = None  # fails if it is called
    session = engine.open(replace(SHORT, speak=False, max_patches=5))
    session.add_turn(Turn.user("Hello"))
    session.respond()
    assert reason(talk(engine, [session])[session]) and chosen and not any(chosen)


def test_prompts_are_prefilled_together(as_on_a_device, monkeypatch):
    """Rows of different lengths at different positions, one of them near the end of its context."""
    monkeypatch.setattr(batch_rows, "GraphedFunction", Direct)
    lm = models()[1]
    questions = [[40, 90], [60, 3], [2, 118]]  # patches of two chunks of each session
    torch.manual_seed(0)
    text = [[torch.randint(5, 50, (1, count)) for count in counts] for counts in questions]
    frames = lm.config.patch_frames, lm.config.codebooks
    patches = [[Patches(t, torch.randint(0, lm.config.no_speech, (*t.shape, *frames))) for t in ts] for ts in text]
    together, alone = (tiny_engine(context=128).core.runner for _ in range(2))
    for part in range(2):
        chunks = {n + 1: PrefillChunk(patches[n][part], None) for n in range(3)}
        assert len(list(together.prefiller.prefill(chunks))) == 1
        for slot, chunk in chunks.items():
            list(alone.prefiller.prefill({slot: chunk}))
    ours, theirs = together.states, alone.states
    assert ours.positions.tolist() == theirs.positions.tolist() == [0, 130, 63, 120]
    assert torch.allclose(ours.hidden, theirs.hidden, atol=1e-5)
    for row, position in enumerate(theirs.positions):
        mine, wanted = (states.state(slice(row, row + 1), states.rows.mask(())) for states in (ours, theirs))
        for a, b in zip(mine.stack.layers, wanted.stack.layers, strict=True):
            assert torch.allclose(a.keys[:, :, :position], b.keys[:, :, :position], atol=1e-5)
            assert torch.allclose(a.values[:, :, :position], b.values[:, :, :position], atol=1e-5)
        assert torch.equal(mine.speech_depths[:, : position + 1], wanted.speech_depths[:, : position + 1])


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
        Trace(lambda x: x * 2 if bool(x.any()) else x, [torch.zeros(3)])


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
