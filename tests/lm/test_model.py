"""The language model: prefill and sampling by the contract, when codes are generated, saving and loading."""

from __future__ import annotations

import copy

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.generation import generate
from speechgpt2.lm.model import UNFORCED, SpeechLM
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import concat
from speechgpt2.lm.state import LMState, extend_capacity, rewind
from speechgpt2.nn.linear import Linear, pack
from speechgpt2.streaming import overwrite_rows, select_rows
from speechgpt2.types import Patches
from tests import needs
from tests.lm.tiny import random_patches, tiny_lm


@pytest.fixture(scope="module")
def lm() -> SpeechLM:
    return tiny_lm()


def cut(patches: Patches, *which) -> Patches:
    return Patches(patches.text[which], patches.codes[which])


def continuation(
    lm: SpeechLM, hidden: torch.Tensor, state: LMState, sampling: SamplingParams, steps: int = 6
) -> Patches:
    """Sampled patches from here on, without a stop rule."""
    drawn = []
    for _ in range(steps):
        drawn.append(lm.sample(hidden, state, sampling).patches)
        hidden, state = lm.prefill(drawn[-1], state)
    return concat(*drawn)


def assert_equal(a: Patches, b: Patches) -> None:
    assert torch.equal(a.text, b.text) and torch.equal(a.codes, b.codes)


def test_prefill_in_chunks_equals_the_whole(lm):
    patches = random_patches(lm, 2, 20)
    with torch.no_grad():
        whole = lm(patches)
    for sizes in ([20], [1] * 20, [7, 1, 12]):
        state, at = lm.init_state(2, 20), 0
        for size in sizes:
            hidden, state = lm.prefill(cut(patches, slice(None), slice(at, at + size)), state)
            at += size
            torch.testing.assert_close(hidden, whole[:, at - 1], atol=1e-5, rtol=1e-4)
        assert state.position.tolist() == [20, 20]


@needs.condition("fbgemm" in torch.backends.quantized.supported_engines, "the processor has no FBGEMM kernels")
@pytest.mark.parametrize("options", [{"chained": True, "tied_embeddings": True}, {}], ids=str)
def test_packing_does_not_change_the_output(options):
    lm = tiny_lm(**options).half().float()
    patches, sampling = random_patches(lm, 2, 20), SamplingParams.for_batch(2)
    hidden, state = lm.prefill(patches, lm.init_state(2, 40))
    wanted, logits = continuation(lm, hidden, state, sampling), lm.text_logits(hidden)
    pack(lm)
    products = [module.packed for module in lm.modules() if isinstance(module, Linear)]
    assert not any(product is None for product in [*products, *lm.patch_decoder.codes.packed])
    assert (lm.packed is not None) == lm.config.backbone.tied_embeddings
    hidden, state = lm.prefill(patches, lm.init_state(2, 40))
    assert_equal(continuation(lm, hidden, state, sampling), wanted)
    with torch.no_grad():
        torch.testing.assert_close(lm.text_logits(hidden), logits, atol=1e-4, rtol=1e-4)


@needs.condition("fbgemm" in torch.backends.quantized.supported_engines, "the processor has no FBGEMM kernels")
def test_packed_bfloat16_model_computes_in_float32():
    exact = tiny_lm(chained=True, tied_embeddings=True).bfloat16().float()
    patches, sampling = random_patches(exact, 1, 20), SamplingParams.for_batch(1)
    hidden, state = exact.prefill(patches, exact.init_state(1, 40))
    wanted = continuation(exact, hidden, state, sampling)
    lm = tiny_lm(chained=True, tied_embeddings=True).bfloat16()
    assert lm.dtype == torch.bfloat16
    pack(lm)
    assert lm.dtype == torch.float32
    mine, state = lm.prefill(patches, lm.init_state(1, 40))
    torch.testing.assert_close(mine, hidden, atol=1e-5, rtol=1e-4)
    assert_equal(continuation(lm, mine, state, sampling), wanted)


def test_packed_model_with_a_head_that_float16_does_not_hold(monkeypatch):
    """Without kernels in C, its other matrices are read as float16; hidden states must have the head's precision."""
    monkeypatch.setattr("speechgpt2.nn.linear.native_kernels", lambda: None)
    lm = tiny_lm(tied_embeddings=True).bfloat16()
    with torch.no_grad():
        lm.text_embedding.weight[0, :2] = torch.tensor([1.0, 1e-20])
    pack(lm)
    hidden, state = lm.prefill(random_patches(lm, 1, 20), lm.init_state(1, 40))
    assert continuation(lm, hidden, state, SamplingParams.for_batch(1)).text.numel()


def test_row_in_a_batch_samples_as_alone(lm):
    patches, lengths = random_patches(lm, 3, 9), torch.tensor([9, 4, 0])
    patches.text[0, 2] = patches.text[1, 3] = lm.prompt.special_ids.speech_start
    sampling = SamplingParams.for_batch(3, temperature=1.0, seed=5)
    hidden, state = lm.prefill(patches, lm.init_state(3, 40), lengths)
    late = random_patches(lm, 3, 2, seed=9)
    hidden, state = lm.prefill(late, state)
    together = continuation(lm, hidden, state, sampling)
    for row, length in enumerate(lengths.tolist()):
        own = concat(cut(patches, slice(row, row + 1), slice(length)), cut(late, slice(row, row + 1)))
        hidden, state = lm.prefill(own, lm.init_state(1, 40))
        alone = continuation(lm, hidden, state, SamplingParams(*(leaf[row : row + 1] for leaf in sampling)))
        assert_equal(alone, cut(together, slice(row, row + 1)))


def test_inactive_row_is_unchanged(lm):
    patches = random_patches(lm, 2, 9)
    patches.text[:, 3] = lm.prompt.special_ids.speech_start
    hidden, state = lm.prefill(patches, lm.init_state(2, 40))
    wanted = continuation(lm, hidden, select_rows(state, torch.arange(2)), SamplingParams.greedy(2))
    opening = torch.full((2, 3), lm.prompt.special_ids.speech_start)
    for active in ([1, 0], [3, 0]):
        _, state = lm.prefill(Patches(opening, random_patches(lm, 2, 3).codes), state, torch.tensor(active))
    assert state.position.tolist() == [13, 9] and state.speech_depth.tolist() == [5, 1]
    drawn = continuation(lm, hidden, state, SamplingParams.greedy(2))
    assert_equal(cut(drawn, slice(1, 2)), cut(wanted, slice(1, 2)))


def test_rewinding_forgets_later_patches(lm):
    ids = lm.prompt.special_ids
    patches = random_patches(lm, 2, 9)
    patches.text[:, 4] = ids.speech_start
    hidden, state = lm.prefill(patches, lm.init_state(2, 40))
    wrong = concat(lm.prompt.text_patches([ids.speech_end]), random_patches(lm, 1, 4, seed=3))
    wrong = Patches(wrong.text.expand(2, -1), wrong.codes.expand(2, -1, -1, -1))
    _, further = lm.prefill(wrong, select_rows(state, torch.arange(2)))
    assert further.speech_depth.tolist() == [0, 0]
    back = rewind(further, 1, 8)
    assert back.position.tolist() == [14, 8] and back.speech_depth.tolist() == [0, 1]
    after, back = lm.prefill(cut(patches, slice(None), slice(8, 9)), back, torch.tensor([0, 1]))
    torch.testing.assert_close(after[1], hidden[1], atol=1e-5, rtol=1e-4)
    again, never = (continuation(lm, hidden, s, SamplingParams.for_batch(2, seed=2)) for s in (back, state))
    assert_equal(cut(again, slice(1, 2)), cut(never, slice(1, 2)))
    assert rewind(state, 0, 99).position.tolist() == [9, 9]


def test_rows_can_be_forked_and_reset(lm):
    hidden, state = lm.prefill(random_patches(lm, 1, 9), lm.init_state(1, 40))
    wanted = continuation(lm, hidden, select_rows(state, torch.tensor([0])), SamplingParams.for_batch(1, seed=3))
    fork = select_rows(state, torch.tensor([0, 0, 0]))
    drawn = continuation(lm, hidden.expand(3, -1), fork, SamplingParams.for_batch(3, temperature=1.0, seed=3))
    assert len({tuple(row) for row in drawn.text.tolist()}) == 3, "each fork has its own seed"
    assert_equal(continuation(lm, hidden, state, SamplingParams.for_batch(1, seed=3)), wanted)
    overwrite_rows(fork, torch.tensor([1]), lm.init_state(1, 40))
    assert fork.position.tolist() == [9, 0, 9] and fork.speech_depth[1] == 0


def test_more_capacity_does_not_change_the_output(lm):
    hidden, state = lm.prefill(random_patches(lm, 2, 9), lm.init_state(2, 9))
    with pytest.raises(ValueError, match="capacity of 9"):
        lm.prefill(random_patches(lm, 2, 1), state)
    larger = extend_capacity(state, 30)
    assert larger.stack.capacity == 30
    with torch.no_grad():
        wanted = lm(concat(random_patches(lm, 2, 9), random_patches(lm, 2, 5, seed=1)))
    hidden, _ = lm.prefill(random_patches(lm, 2, 5, seed=1), larger)
    torch.testing.assert_close(hidden, wanted[:, -1], atol=1e-5, rtol=1e-4)


def test_codes_only_between_speech_start_and_end(lm):
    """The patch that opens or closes speech has no codes; more ends than starts count as speech, too."""
    ids = lm.prompt.special_ids
    tokens = [ids.speech_start, 50, ids.speech_end, 50, ids.speech_end, 50, ids.speech_start, 50]
    hidden, state = lm.prefill(lm.prompt.text_patches([60]), lm.init_state(1, 40))
    speaking = []
    for token in tokens:
        patch = lm.sample(hidden, state, SamplingParams.greedy(), forced_text=torch.tensor([token])).patches
        assert patch.text.item() == token
        spoken = patch.codes != lm.config.no_speech
        assert spoken.all() or not spoken.any()
        speaking.append(bool(spoken.all()))
        hidden, state = lm.prefill(patch, state)
    assert speaking == [False, True, False, False, False, True, True, False]
    assert state.speech_depth.item() == 0


def test_unforced_rows_sample_their_text(lm):
    hidden, state = lm.prefill(random_patches(lm, 2, 9), lm.init_state(2, 40))
    drawn = lm.sample(hidden, state, SamplingParams.greedy(2)).patches
    forced = lm.sample(hidden, state, SamplingParams.greedy(2), forced_text=torch.tensor([UNFORCED, 77])).patches
    assert forced.text.tolist() == [[drawn.text[0, 0].item()], [77]]


def test_generate_stops_each_row_at_eos(lm):
    eos = lm.prompt.special_ids.eos
    hidden, state = lm.prefill(random_patches(lm, 2, 9), lm.init_state(2, 40))
    script = iter([[50, eos], [51, 99], [eos, 99]])
    stubborn = copy.copy(lm)
    stubborn.sample = lambda *_, **__: lm.sample(
        hidden, state, SamplingParams.greedy(2), forced_text=torch.tensor(next(script))
    )
    steps = list(generate(stubborn, hidden, state, SamplingParams.greedy(2)))
    assert [step.active.tolist() for step in steps] == [[True, True], [True, False], [True, False]]
    assert steps[-1].state.position.tolist() == [12, 10], "eos stays in history"
    assert torch.equal(steps[-1].hidden[1], steps[0].hidden[1])
    stubborn.sample = lambda *_, **__: lm.sample(
        hidden, state, SamplingParams.greedy(2), forced_text=torch.tensor([50, 50])
    )
    assert len(list(generate(stubborn, hidden, state, SamplingParams.greedy(2), max_patches=4))) == 4


def test_generation_is_reproducible(lm):
    hidden, state = lm.prefill(random_patches(lm, 1, 9), lm.init_state(1, 60))
    runs = [
        [int(step.patches.text) for step in generate(lm, hidden, state, SamplingParams.for_batch(1, seed=seed), 20)]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_training_logits_equal_generation(lm):
    """Teacher-forced text and codes at p + 1 from the hidden state at p equal the greedy ones."""
    ids = lm.prompt.special_ids
    start = concat(random_patches(lm, 1, 5), lm.prompt.text_patches([ids.speech_start]))
    hidden, state = lm.prefill(start, lm.init_state(1, 40))
    whole = concat(start, continuation(lm, hidden, state, SamplingParams.greedy()))
    with torch.no_grad():
        hidden = lm(whole)[0]
        text = lm.text_logits(hidden[5:-1]).argmax(-1)
        codes = lm.code_logits(hidden[5:-1], whole.codes[0, 6:]).argmax(-1)
    assert torch.equal(text, whole.text[0, 6:])
    speaking = whole.codes[0, 6:, 0, 0] != lm.config.no_speech
    assert speaking.any() and torch.equal(codes[speaking], whole.codes[0, 6:][speaking])


def test_gradients_reach_every_parameter():
    lm = tiny_lm(chained=True)
    patches = random_patches(lm, 2, 12)
    hidden = lm(patches, segments=torch.tensor([[0] * 5 + [1] * 7, [0] * 12]))
    loss = lm.text_logits(hidden).logsumexp(-1).sum()
    loss = loss + lm.code_logits(hidden.flatten(0, 1), patches.codes.flatten(0, 1)).logsumexp(-1).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_saved_model_loads_equal(tmp_path, tied):
    lm = tiny_lm(chain_of_modality=True, chained=True, tied_embeddings=tied)
    lm.save_pretrained(tmp_path / "model")
    loaded = SpeechLM.from_pretrained(tmp_path / "model")
    assert loaded.config == lm.config and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(lm.parameters(), loaded.parameters(), strict=True))
    patches = lm.prompt.user_text("Hello there")
    assert_equal(loaded.prompt.user_text("Hello there"), patches)
    torch.testing.assert_close(loaded(patches), lm(patches))
    half = SpeechLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    lm.save_pretrained(tmp_path / "small", dtype=torch.bfloat16)
    assert next(SpeechLM.from_pretrained(tmp_path / "small").parameters()).dtype == torch.bfloat16


def test_half_precision_model_generates(tmp_path):
    lm = tiny_lm().bfloat16()
    hidden, state = lm.prefill(concat(random_patches(lm, 1, 9), lm.prompt.text_patches([2])), lm.init_state(1, 40))
    assert hidden.dtype == torch.bfloat16
    assert len(list(generate(lm, hidden, state, SamplingParams.for_batch(1), 5))) > 0


def test_tokenizer_with_more_tokens_is_refused():
    with pytest.raises(UserError, match="the model only 50"):
        tiny_lm(vocab=50)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"lm\.json"):
        SpeechLM.from_pretrained(tmp_path)
