"""The codec on a device against the same codec on the CPU."""

from copy import deepcopy

import pytest
import torch

from speechgpt2.codec.config import HiFiGANConfig
from tests.codec.tiny import tiny_codec
from tests.engine.tiny import noise

HIFIGAN = HiFiGANConfig(channels=48, scales=(5, 4, 4, 3), groups=3)
HEADS = [{}, {"head": HIFIGAN}]


def pcm(*seeds, seconds=0.96):
    return torch.stack([torch.from_numpy(noise(seconds, seed)) for seed in seeds])


def pair(device, **changes):
    """A codec on the CPU, and its copy on the device."""
    codec = tiny_codec(normalized_latent=True, **changes)
    return codec, deepcopy(codec).to(device)


@torch.inference_mode()
def test_codes(device):
    """A latent between two vectors may choose the other; the codebooks after it then quantize another rest."""
    here, there = pair(device)
    wanted, codes = here.encode(pcm(1, 2)), there.encode(pcm(1, 2).to(device)).cpu()
    assert codes.shape == wanted.shape
    assert (codes == wanted).all(-1).float().mean() > 0.9


@pytest.mark.parametrize("head", HEADS, ids=["harmonic", "hifigan"])
@torch.inference_mode()
def test_speech(device, head):
    here, there = pair(device, **head)
    codes = here.encode(pcm(1, 2))
    wanted, speech = here.decode(codes), there.decode(codes.to(device)).cpu()
    assert wanted.abs().max() > 1e-3
    difference = (speech - wanted).abs().max() / wanted.abs().max()
    assert difference < 0.01, f"differs by {difference:.2%} of the loudest sample"


@pytest.mark.parametrize("head", HEADS, ids=["harmonic", "hifigan"])
@torch.inference_mode()
def test_stream_equals_the_whole(device, head):
    _, there = pair(device, **head)
    whole = pcm(1, 2).to(device)
    codes = there.encode(whole)
    encoder, decoder, streamed, speech = there.init_encoder_state(2), there.init_decoder_state(2), [], []
    for piece in whole.split(2880, dim=1):
        found, encoder = there.encode(piece, encoder)
        streamed.append(found)
    for piece in codes.split(3, dim=1):
        found, decoder = there.decode(piece, decoder)
        speech.append(found)
    assert (torch.cat(streamed, 1) == codes).all(-1).float().mean() > 0.9
    decoded = there.decode(codes)
    torch.testing.assert_close(torch.cat(speech, 1), decoded, atol=0.01 * float(decoded.abs().max()), rtol=0.0)


@torch.inference_mode()
def test_padded_rows(device):
    """The ends of turns are encoded together, each with its own length, as in the engine."""
    here, there = pair(device)
    padded, lengths = pcm(3, 4, seconds=0.12), torch.tensor([2880, 1000])
    results = []
    for codec in (here, there):
        place = codec.quantizer.codebooks[0].embed.device
        state = codec.init_encoder_state(2)
        results.append(codec.encode(padded.to(place), state, lengths=lengths.to(place), final=True)[0].cpu())
    wanted, codes = results
    frames = [here.frames(int(length)) for length in lengths]
    same = [(codes[row, :count] == wanted[row, :count]).all(-1) for row, count in enumerate(frames)]
    assert torch.cat(same).float().mean() > 0.7  # of five frames


@torch.inference_mode()
def test_decoder_in_bfloat16(device):
    here, there = pair(device)
    codes = here.encode(pcm(1))
    there.decoder.to(torch.bfloat16)
    speech = there.decode(codes.to(device))
    assert speech.dtype == torch.float32 and bool(speech.isfinite().all()) and speech.shape == (1, 24 * 960)
