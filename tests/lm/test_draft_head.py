"""Speculative decoding of text: the same text in fewer steps."""

from __future__ import annotations

import copy

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.generation import generate
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.sampling import SamplingParams
from tests.engine.tiny import BabblingLM
from tests.lm.tiny import random_patches, tiny_config, tiny_lm, tiny_tokenizer

DRAFT_TOKENS = 3


@pytest.fixture(scope="module")
def lm() -> SpeechLM:
    """Its draft head always proposes the previous token, which is sometimes right."""
    torch.manual_seed(2)
    lm = BabblingLM(tiny_config(chain_of_modality=True, draft_tokens=DRAFT_TOKENS), tiny_tokenizer()).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" not in name and "draft_head" not in name:
                parameter.normal_(std=0.25)
    return lm


def begun(lm: SpeechLM, batch: int = 3, capacity: int = 96):
    """Rows after texts of different lengths, all outside speech."""
    lengths = torch.arange(5, 5 + 3 * batch, 3)
    patches = random_patches(lm, batch, int(lengths.max()))
    patches.text.clamp_(max=250)  # no special tokens
    hidden, state = lm.prefill(patches, lm.init_state(batch, capacity), lengths)
    assert not state.speech_depth.any()
    return hidden, state


def without(lm: SpeechLM) -> SpeechLM:
    plain = copy.deepcopy(lm)
    plain.draft_head = None
    return plain


def generated(lm: SpeechLM, batch: int, most: int = 40) -> list[list]:
    """The tokens and codes of each row, with position and speech depth after each."""
    rows: list[list] = [[] for _ in range(batch)]
    for step in generate(lm, *begun(lm, batch), SamplingParams.for_batch(batch), most):
        for row in step.active.nonzero()[:, 0].tolist():
            now = int(step.state.position[row]), int(step.state.speech_depth[row])
            rows[row].append((int(step.patches.text[row]), step.patches.codes[row].tolist(), *now))
    return rows


def test_drafted_text_equals_greedy_decoding(lm):
    for row, wanted in zip(generated(lm, 1), generated(without(lm), 1), strict=True):
        assert row == wanted and len(row) > 10
        assert any(balance for *_, balance in row), "it also speaks"


def test_rows_at_different_tokens(lm):
    """Rows with more accepted tokens are further, so only the common part is compared."""
    for row, wanted in zip(generated(lm, 3, 25), generated(without(lm), 3, 25), strict=True):
        common = min(len(row), len(wanted))
        assert row[:common] == wanted[:common] and common > 5


def test_accepted_tokens_save_steps(lm):
    hidden, state = begun(lm)
    everyone = torch.ones(3, dtype=torch.bool)
    counts = []
    for _ in range(6):
        written = lm.draft_and_verify(hidden, state, everyone)
        kept, hidden, state = written.counts, written.last_hidden(hidden), written.state
        assert (kept >= 1).all() and (kept <= 1 + DRAFT_TOKENS).all()
        counts += kept.tolist()
    assert max(counts) > 1


def test_state_follows_the_kept_tokens(lm):
    hidden, state = begun(lm)
    written = lm.draft_and_verify(hidden, state, torch.ones(3, dtype=torch.bool))
    after = written.last_hidden(hidden)
    again_hidden, again = begun(lm)
    patches = lm.prompt.text_patches([0])
    for row, count in enumerate(written.counts.tolist()):
        assert int(written.state.position[row]) == int(state.position[row]) + count
    width = int(written.counts.max())
    codes = patches.codes.expand(3, width, -1, -1)
    again_hidden, again = lm.prefill(type(patches)(written.patches.text[:, :width], codes), again, written.counts)
    torch.testing.assert_close(after, again_hidden, atol=1e-5, rtol=1e-4)
    assert torch.equal(written.state.speech_depth, again.speech_depth)


def test_nothing_is_kept_after_speech_start_or_eos(lm):
    class Oracle(BabblingLM):
        """Whatever is asked, it says this."""

        token: int

        def text_logits(self, hidden):
            return torch.nn.functional.one_hot(torch.full(hidden.shape[:-1], self.token), 300).float()

    oracle = copy.deepcopy(lm)
    oracle.__class__ = Oracle
    ids = lm.prompt.special_ids
    for token, kept in ((ids.speech_start, 1), (ids.eos, 1), (ids.filler, 1 + DRAFT_TOKENS)):
        oracle.token = token
        written = oracle.draft_and_verify(*begun(lm), torch.ones(3, dtype=torch.bool))
        assert written.counts.tolist() == [kept] * 3


def test_inactive_rows_are_unchanged(lm):
    hidden, state = begun(lm)
    written = lm.draft_and_verify(hidden, state, torch.tensor([True, False, True]))
    assert written.counts[1] == 0 and written.state.position[1] == state.position[1]
    assert torch.equal(written.last_hidden(hidden)[1], hidden[1])
    alone = lm.draft_and_verify(*begun(lm), torch.ones(3, dtype=torch.bool))
    assert written.patches.text[0].tolist() == alone.patches.text[0].tolist() and written.counts[0] == alone.counts[0]


def test_max_tokens_limits_the_draft(lm):
    assert lm.draft_and_verify(*begun(lm), torch.ones(3, dtype=torch.bool), max_tokens=2).patches.text.shape == (3, 2)
    assert len(list(generate(lm, *begun(lm, 1), SamplingParams.for_batch(1), 5))) == 5
    full = begun(lm, 1, capacity=8)
    assert len(list(generate(lm, *full, SamplingParams.for_batch(1), 3))) == 3  # there is room for no more


def test_saved_draft_head_loads_equal(lm, tmp_path):
    lm.save_pretrained(tmp_path)
    loaded = SpeechLM.from_pretrained(tmp_path)
    assert loaded.config.draft_tokens == DRAFT_TOKENS and loaded.draft_head is not None


def test_draft_head_needs_chain_of_modality():
    with pytest.raises(UserError, match="chain_of_modality"):
        tiny_config(draft_tokens=2)
    with pytest.raises(UserError, match="draft head"):
        plain = tiny_lm(chain_of_modality=True)
        plain.draft_and_verify(*begun(plain), torch.ones(3, dtype=torch.bool))
