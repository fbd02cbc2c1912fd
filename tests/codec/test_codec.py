"""The codec: parity with the golden data, streaming, batches and errors."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt2.codec import config as presets
from speechgpt2.codec.config import HarmonicConfig, HiFiGANConfig
from speechgpt2.codec.model import Codec
from speechgpt2.codec.quantizer import Codebook
from speechgpt2.errors import UserError
from speechgpt2.streaming import join_rows, where_active
from tests.codec.tiny import tiny_codec
from tests.contract import verify_contract

GOLDEN = Path(__file__).parents[1] / "golden" / "codec"


@pytest.fixture(scope="module", params=[False, True], ids=["", "packed"])
def released(request):
    codec = Codec.from_pretrained(GOLDEN / "codec.pkl", config=GOLDEN / "config.yaml")
    if request.param:
        codec.optimize_for_inference()
    return codec


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "golden.npz")


def small(head) -> Codec:
    return tiny_codec(quantizer=presets.QuantizerConfig(3, 64), head=head)


HEADS = [HiFiGANConfig(channels=16), HarmonicConfig(harmonic_bands=30, noise_bands=10)]


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_half_precision_decoder_keeps_the_loudness(head):
    """Its waveform may drift, because a rounded pitch is another pitch."""
    codec = small(head)
    codes = torch.randint(64, (1, 12, 3), generator=torch.Generator().manual_seed(0))
    exact = codec.decode(codes)
    codec.decoder.to(torch.bfloat16)
    half = codec.decode(codes)
    assert half.dtype == torch.float32 and half.isfinite().all()
    assert half.square().mean() / exact.square().mean() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_nearest_entry_with_a_common_offset(offset):
    torch.manual_seed(0)
    book = Codebook(64, 16)
    book.embed.copy_(torch.randn(64, 16) + offset)
    book.embed[50] = book.embed[7]  # of two equal entries the first
    x = torch.cat([torch.randn(200, 16) + offset, book.embed + 1e-3])
    exact = (x[:, None].double() - book.embed.double()).square().sum(-1).argmin(-1)
    assert torch.equal(book.nearest(x), exact)
    assert torch.equal(torch.cat([book.nearest(row) for row in x.split(1)]), exact)
    assert book.nearest(x[:0]).shape == (0,)


@pytest.mark.parametrize("form", ["file", "folder", "hub id", "another name"])
def test_released_file_is_found(tmp_path, monkeypatch, form):
    file = tmp_path / ("codec.pkl" if form == "another name" else "sg2_codec_ckpt.pkl")
    file.symlink_to(GOLDEN / "codec.pkl")
    (tmp_path / "config.yaml").symlink_to(GOLDEN / "config.yaml")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(tmp_path))
    name = {"file": file, "hub id": "fnlp/SpeechGPT-2.0-preview-Codec"}.get(form, tmp_path)
    wanted = Codec.from_pretrained(GOLDEN / "codec.pkl", config=GOLDEN / "config.yaml").state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in Codec.from_pretrained(name).state_dict().items())


def test_language_model_without_a_codec_names_the_remedy(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"name the codec too: --codec fnlp/SpeechGPT-2\.0-preview-Codec"):
        Codec.from_pretrained(tmp_path)


@pytest.mark.parametrize("i", range(3))
def test_parity_offline(released, golden, i):
    codes = released.encode(torch.from_numpy(golden[f"pcm_{i}"])[None])
    assert np.array_equal(codes[0].T.numpy(), golden[f"codes_{i}"])
    pcm = released.decode(codes)
    assert np.abs(pcm[0].numpy() - golden[f"wave_{i}"]).max() < 1e-5


@pytest.mark.parametrize("i", range(3))
def test_parity_of_the_stages(released, golden, i):
    encoder = released.encoder
    with torch.no_grad():
        mel = encoder.mel(torch.from_numpy(golden[f"pcm_{i}"])[None])[0]
        convnext = encoder.convnext(mel)[0]
        transformer = encoder.transformer(convnext)[0]
        latent = encoder(torch.from_numpy(golden[f"pcm_{i}"])[None])[0]
    for ours, name in ((mel, "mel"), (convnext, "convnext"), (transformer, "enc_tr"), (latent, "latent")):
        wanted = golden[f"{name}_{i}"].T
        assert np.abs(ours[0].numpy() - wanted).max() < 2e-3 if name == "mel" else 1e-4, name


def streamed_codes(codec, pcm, frames, in_place=False):
    """Encode one row in chunks of the given numbers of frames, repeatedly."""
    state, at, turn, pieces = codec.init_encoder_state(1, in_place), 0, 0, []
    while at < pcm.shape[1]:
        size = frames[turn % len(frames)] * 960
        final = at + size >= pcm.shape[1]
        codes, state = codec.encode(pcm[:, at : at + size], state, final=final)
        pieces.append(codes)
        at, turn = at + size, turn + 1
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("frames", [[1], [3], [7, 1, 20, 2, 40]], ids=str)
@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
def test_streaming_equals_offline_past_every_window(released, golden, i, frames, in_place):
    pcm = torch.from_numpy(golden[f"pcm_{i}"])[None]
    codes = streamed_codes(released, pcm, frames, in_place)
    assert np.array_equal(codes[0].T.numpy(), golden[f"codes_{i}"])
    state, at, turn, pieces = released.init_decoder_state(1, in_place), 0, 0, []
    while at < codes.shape[1]:
        size = frames[turn % len(frames)]
        wave, state = released.decode(codes[:, at : at + size], state)
        pieces.append(wave)
        at, turn = at + size, turn + 1
    assert np.abs(torch.cat(pieces, 1)[0].numpy() - golden[f"wave_{i}"]).max() < 1e-5


@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
def test_rows_may_start_at_different_times(released, golden, in_place):
    """Three streams in one batch, joining one second apart; each idle row is carried along untouched."""
    pcm = [torch.from_numpy(golden[f"pcm_{i}"])[: 24_000 if i == 2 else 48_000] for i in range(3)]
    alone = [released.encode(p[None])[0] for p in pcm]
    state, codes = released.init_encoder_state(3, in_place), [[], [], []]
    start = [0, 25, 38]  # frames
    for tick in range(100):
        at = [tick - s for s in start]
        active = torch.tensor([0 <= a < len(p) // 960 for a, p in zip(at, pcm)])
        chunk = torch.stack(
            [p[a * 960 : a * 960 + 960] if on else torch.ones(960) for a, p, on in zip(at, pcm, active)]
        )
        out, moved = released.encode(chunk, state)
        state = where_active(active, moved, state)
        for row in active.nonzero()[:, 0]:
            codes[row].append(out[row])
    for row in range(3):
        ours = torch.cat(codes[row])
        assert torch.equal(ours, alone[row][: len(ours)]) and len(ours) >= len(pcm[row]) // 960


def test_padded_batch_equals_rows_alone(released, golden):
    """Every remainder of the two downsamplers, in one padded batch."""
    pcm = torch.from_numpy(golden["pcm_0"])
    lengths = torch.tensor([960 * 20 + extra for extra in (0, 100, 240, 479, 480, 720, 959)] + [0, 239])
    batch = torch.randn(len(lengths), int(lengths.max()))
    for row, n in enumerate(lengths):
        batch[row, :n] = pcm[:n]
    codes = released.encode(batch, lengths=lengths)
    for row, n in enumerate(lengths):
        alone = released.encode(pcm[None, :n])
        assert alone.shape[1] == released.frames(int(n))
        assert torch.equal(codes[row, : alone.shape[1]], alone[0]), int(n)


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
@pytest.mark.parametrize("chunks", [[1], [4, 1, 3]], ids=str)
def test_decoder_contract(head, chunks):
    codec = small(head)
    codes = torch.randint(64, (2, 30, 3))
    tolerance = 2e-5 if head.kind == "hifigan" else 5e-4  # rounded pitch adds up to phase within a voiced stretch
    verify_contract(
        lambda x, s: codec.decoder(codec.quantizer.decode(x), s),
        codec.init_decoder_state,
        codes,
        1,
        chunks,
        tolerance=tolerance,
    )


@pytest.mark.parametrize("chunks", [[1], [4, 1, 3]], ids=str)
def test_encoder_contract(chunks):
    codec = small(HEADS[1])
    verify_contract(
        codec.encoder, codec.init_encoder_state, torch.randn(2, 960 * 16) * 0.1, 1, chunks, grid=960, tolerance=2e-5
    )


@pytest.mark.parametrize("chunks", [[1], [2, 1], [3], [6]], ids=str)
def test_contract_in_place(chunks):
    """Two patches, so that half of the input may be taken back; windows are shorter."""
    codec = small(HEADS[0])
    encoder_state = partial(codec.init_encoder_state, in_place=True)
    decoder_state = partial(codec.init_decoder_state, in_place=True)
    pcm, latent = torch.randn(2, 960 * 6) * 0.1, codec.quantizer.decode(torch.randint(64, (2, 6, 3)))
    verify_contract(codec.encoder, encoder_state, pcm, 1, chunks, grid=960, tolerance=2e-5)
    verify_contract(codec.decoder, decoder_state, latent, 1, chunks, tolerance=2e-5)


def test_long_recordings_are_chunked_exactly(released, monkeypatch):
    pcm = torch.randn(1, 960 * 40 + 300) * 0.1
    whole = released.encode(pcm)
    wave = released.decode(whole)
    monkeypatch.setattr("speechgpt2.codec.model.OFFLINE_CHUNK", 11)
    assert torch.equal(released.encode(pcm), whole)
    assert torch.allclose(released.decode(whole), wave, atol=1e-6)


def test_saved_codec_loads_equal(tmp_path):
    codec = small(HEADS[1])
    codec.save_pretrained(tmp_path)
    again = Codec.from_pretrained(tmp_path)
    pcm = torch.randn(1, 9600) * 0.1
    assert again.config == codec.config
    assert torch.equal(again.encode(pcm), codec.encode(pcm))
    assert torch.equal(again.decode(again.encode(pcm)), codec.decode(codec.encode(pcm)))


def test_released_size():
    with torch.device("meta"):
        codec = Codec(presets.released())
    gains = 205_665  # 237.5 M counts the gain of every weight-normalised output; here they are folded
    assert abs(sum(p.numel() for p in codec.parameters()) + gains - 237_500_000) < 50_000


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.encode(torch.zeros(960)),
        lambda c: c.encode(torch.zeros(1, 961), c.init_encoder_state(1)),
        lambda c: c.decode(torch.zeros(1, 4, 2, dtype=torch.int64)),
    ],
)
def test_invalid_input_is_refused(released, call):
    with pytest.raises(ValueError, match=r"must|whole frames"):
        call(released)


def test_empty_input_gives_empty_output(released):
    assert released.encode(torch.zeros(2, 0)).shape == (2, 0, 3)
    assert released.encode(torch.zeros(2, 239)).shape == (2, 0, 3)
    assert released.decode(torch.zeros(2, 0, 3, dtype=torch.int64)).shape == (2, 0)


def test_join_rows_makes_a_batch(released, golden):
    pcm = torch.from_numpy(golden["pcm_1"])[: 960 * 30]
    _, a = released.encode(pcm[None, : 960 * 10], released.init_encoder_state(1))
    _, b = released.encode(pcm[None, : 960 * 4], released.init_encoder_state(1))
    codes, _ = released.encode(torch.stack([pcm[960 * 10 : 960 * 14], pcm[960 * 4 : 960 * 8]]), join_rows([a, b]))
    whole = released.encode(pcm[None])[0]
    assert torch.equal(codes[0], whole[10:14]) and torch.equal(codes[1], whole[4:8])
