"""The language model on a device against the same model on the CPU."""

from copy import deepcopy

import pytest
import torch

from speechgpt2.lm.sampling import Sampler, SamplingParams, gumbel
from speechgpt2.lm.state import at_position
from speechgpt2.nn.quantized import Quantization, quantize_model
from speechgpt2.types import Patches
from tests.lm.tiny import random_patches, tiny_lm

CPU = torch.device("cpu")
CLOSE = {"atol": 2e-3, "rtol": 2e-3}  # of hidden states of size 1, in float32


def on(lm, device):
    """A copy on the device."""
    return deepcopy(lm).to(device)


def close(there, here):
    torch.testing.assert_close(there.cpu().float(), here.float(), **CLOSE)


@pytest.mark.parametrize("family", [{}, {"kv_heads": 1}, {"qk_norm": True}, {"tied_embeddings": True}], ids=str)
def test_hidden_states_and_logits(device, family):
    lm = tiny_lm(**family)
    patches = random_patches(lm, 3, 40)
    there = on(lm, device)
    with torch.inference_mode():
        states = lm(patches), there(patches)
        close(states[1], states[0])
        close(there.text_logits(states[1]), lm.text_logits(states[0]))
        codes = patches.codes[:, 1:].clamp(max=lm.config.codebook_size - 1).flatten(0, 1)
        logits = [m.code_logits(s[:, :-1].flatten(0, 1), codes.to(s.device)) for m, s in zip((lm, there), states)]
        close(logits[1], logits[0])


@torch.inference_mode()
def test_steps_with_a_cache(device):
    """Whole chunks, single patches, idle rows, and all cells of the cache, as in the engine."""
    lm = tiny_lm()
    patches, results = random_patches(lm, 2, 30), []
    for model in (lm, on(lm, device)):
        state, found = model.init_state(2, 47), []
        hidden, state = model.prefill(Patches(*(x[:, :17] for x in patches)), state)
        found.append(hidden)
        for step in range(17, 30):
            lengths = torch.tensor([1, step % 2], device=hidden.device)
            piece = Patches(*(x[:, step : step + 1] for x in patches))
            hidden, state = model.prefill(piece, state, lengths, kv_length=48)
            found.append(hidden[0])
        assert state.position.tolist() == [30, 17 + 7]
        results.append((found, state))
    for here, there in zip(results[0][0], results[1][0], strict=True):
        close(there, here)
    assert torch.equal(results[1][1].speech_depth.cpu(), results[0][1].speech_depth)


@torch.inference_mode()
def test_rewound_row_reads_as_before(device):
    lm = on(tiny_lm(), device)
    patches, state = random_patches(lm, 2, 20), lm.init_state(2, 31)
    first, state = lm.prefill(patches, state)
    other = random_patches(lm, 2, 9, seed=5)
    _, state = lm.prefill(other, state)
    back = at_position(state, torch.tensor([12, 20], device=device))  # one row back into the first patches
    again, _ = lm.prefill(Patches(*(x[:, 12:] for x in patches)), back, torch.tensor([8, 0], device=device))
    torch.testing.assert_close(again[0], first[0], **CLOSE)


def test_noise_and_samples(device):
    generator = torch.Generator().manual_seed(3)
    logits, position = 3 * torch.randn(64, 9, 1000, generator=generator), torch.arange(64) * 977
    sampling, draws = SamplingParams.for_batch(64, seed=5), []
    noise = []
    for place in (CPU, device):
        there = SamplingParams(*(x.to(place) for x in sampling))
        tokens = torch.arange(1000, device=place).expand(64, 9, 1000)
        noise.append(gumbel(there.seed, position.to(place), 2, tokens).cpu())
        draws.append(Sampler(there, position.to(place)).sample(logits.to(place), 2).cpu())
    torch.testing.assert_close(noise[1], noise[0], atol=1e-4, rtol=1e-4)
    assert (draws[0] == draws[1]).float().mean() > 0.99  # nearly equal scores may swap


@torch.inference_mode()
def test_sampled_patches(device):
    lm, patches = tiny_lm(chained=True), []
    for model in (lm, on(lm, device)):
        state = model.init_state(2, 63)
        start = model.prompt.text_patches([model.prompt.special_ids.speech_start])
        hidden, state = model.prefill(Patches(*(x.expand(2, *x.shape[1:]) for x in start)), state)
        sampling = SamplingParams.for_batch(2, seed=1, device=model.device)
        force = torch.full((2,), model.prompt.special_ids.filler, device=model.device)
        patches.append(model.sample(hidden, state, sampling, force).patches)
    here, there = patches
    assert torch.equal(there.text.cpu(), here.text)
    assert (there.codes.cpu() == here.codes).float().mean() > 0.5  # a code that swaps changes those after it
    assert int(there.codes.max()) < lm.config.codebook_size


@torch.inference_mode()
def test_drafted_text(device):
    lm = tiny_lm(chain_of_modality=True, draft_tokens=3)
    verified = []
    for model in (lm, on(lm, device)):
        state = model.init_state(2, 63)
        hidden, state = model.prefill(random_patches(lm, 2, 10), state)
        verified.append(model.draft_and_verify(hidden, state, torch.tensor([True, False], device=model.device), 64))
    here, there = verified
    assert there.counts[1] == 0 and 1 <= int(there.counts[0]) <= 4
    assert torch.equal(there.patches.text[0, :1].cpu(), here.patches.text[0, :1])
    assert torch.equal(there.counts.cpu(), here.counts)
    close(there.hidden[0, : int(here.counts[0])], here.hidden[0, : int(here.counts[0])])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_model(device, kind):
    """Each device quantizes for itself, and has kernels of its own; int4 also moves a value by more than a rounding."""
    lm = tiny_lm(width=64, ffn=64, std=0.1).bfloat16()
    patches, hidden = random_patches(lm, 2, 30), []
    sizes = Quantization(kind, 32)
    for model in (lm, on(lm, device)):
        for part in (model.backbone, model.text_embedding):
            quantize_model(part, sizes)
        with torch.inference_mode():
            hidden.append(model(patches).float().cpu())
    error = (hidden[1] - hidden[0]).square().mean().sqrt() / hidden[0].square().mean().sqrt()
    assert error < 0.05
