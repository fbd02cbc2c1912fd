"""The patch decoder: sampling agrees with teacher forcing."""

from __future__ import annotations

import pytest
import torch

from speechgpt2.lm.sampling import SamplingParams
from tests.lm.tiny import tiny_lm

NO_SPEECH = 1024


@pytest.mark.parametrize("chained", [False, True])
@torch.no_grad()
def test_greedy_codes_maximise_teacher_forced_logits(chained):
    decoder = tiny_lm(chained=chained).patch_decoder
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    codes = decoder.sample(hidden, SamplingParams.greedy(5), torch.arange(5))
    assert codes.shape == (5, 3, 3) and int(codes.max()) < NO_SPEECH
    scores = decoder(hidden, codes)  # each code given the ones before it
    assert scores.shape == (5, 3, 3, 1024)
    assert torch.equal(scores.argmax(-1), codes)


@torch.no_grad()
def test_row_in_a_batch_samples_as_alone():
    decoder = tiny_lm(chained=True).patch_decoder
    hidden, position = torch.randn(4, 32, generator=torch.Generator().manual_seed(2)), torch.tensor([7, 0, 3, 99])
    sampling = SamplingParams.for_batch(4, temperature=1.0)
    together = decoder.sample(hidden, sampling, position)
    for row in range(4):
        alone = SamplingParams(*(leaf[row : row + 1] for leaf in sampling))
        drawn = decoder.sample(hidden[row : row + 1], alone, position[row : row + 1])
        assert torch.equal(drawn, together[row : row + 1])


def test_only_chained_heads_see_codes_of_their_frame():
    hidden, codes = torch.randn(1, 32), torch.randint(0, 1024, (1, 3, 3))
    other = codes.clone()
    other[0, 1, 0] = (other[0, 1, 0] + 1) % 1024
    for chained in (False, True):
        decoder = tiny_lm(chained=chained).patch_decoder
        changed = (decoder(hidden, codes) != decoder(hidden, other)).any(-1)[0]  # [G, K]
        within = [False, True, True] if chained else [False, False, False]
        assert changed.tolist() == [[False] * 3, within, [True] * 3]


def test_new_chain_equals_parallel_heads():
    decoder = tiny_lm(chained=True).patch_decoder
    hidden, codes = torch.randn(2, 32), torch.randint(0, 1024, (2, 3, 3))
    for link in decoder.chain.out:
        torch.nn.init.zeros_(link.weight)
    chained = decoder(hidden, codes)
    decoder.chain = None
    torch.testing.assert_close(decoder(hidden, codes), chained)


@pytest.mark.parametrize("chained", [False, True])
def test_no_speech_row_is_read_but_not_trained(chained):
    lm = tiny_lm(chained=chained)
    table = lm.patch_decoder.codes.table
    assert table.shape[1] == NO_SPEECH + 1
    silent = torch.full((1, 3, 3), NO_SPEECH)
    assert lm.patch_decoder.codes.embed(silent).abs().sum() > 0
    hidden = torch.randn(1, 32)
    scores = lm.code_logits(hidden, torch.cat([torch.randint(0, 1024, (1, 1, 3)), silent[:, 1:]], 1))
    (scores.logsumexp(-1).sum() + lm.patch_decoder.codes.embed(silent).sum()).backward()
    assert table.grad is not None and table.grad[:, :-1].abs().sum() > 0
    assert table.grad[:, -1].abs().sum() == 0
