"""Codec training in several processes: the losses of one process, through every phase."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from speechgpt2.codec import config as presets
from speechgpt2.codec import losses as codec_losses
from speechgpt2.codec.config import CodecConfig, HarmonicConfig, MelConfig, QuantizerConfig
from speechgpt2.codec.crops import Crops
from speechgpt2.codec.discriminators import DiscriminatorConfig
from speechgpt2.codec.teachers import CTCConfig
from speechgpt2.codec.train import CodecTrainConfig, CodecTrainer
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig
from speechgpt2.training import distributed
from tests.training import test_resume

STEPS = 12
CONFIG = CodecTrainConfig(
    codec="tiny", steps=STEPS, batch=4, frames=16, warmup=2, quantize_from=3, adversarial_from=6, freeze_from=9,
    discriminators=DiscriminatorConfig(2, (3,), (512,)), teachers=(CTCConfig(),),
)  # fmt: skip


def tiny() -> CodecConfig:
    transformer = TransformerConfig(16, 2, 1, 32, context=20)
    return CodecConfig(
        MelConfig(20, mean=-7.0, std=3.0), ConvNeXtConfig((1,), (16,)), transformer, QuantizerConfig(3, 16),
        TransformerConfig(16, 2, 1, 32, context=10), transformer, ConvNeXtConfig((1,), (16,)),
        HarmonicConfig(harmonic_bands=30, noise_bands=10), delay=480, normalized_latent=True,
    )  # fmt: skip


class PartlyLabelled(test_resume.Vowels):
    """Vowels of which some lack pitch, phones or text, so that processes have different numbers of labels."""

    def crops(self, random, batch, frames):
        crops = super().crops(random, batch, frames)
        f0, phones = crops.f0.clone(), crops.phones.clone()
        for row in range(batch):
            f0[row, int(random.integers(f0.shape[1])) :] = 0
            phones[row, int(random.integers(frames)) :] = -1
        texts = tuple((None, "a", "oh")[int(random.integers(3))] for _ in range(batch))
        return Crops(crops.pcm, crops.augmented, f0, phones, texts)


def run(config, folder):
    """Train, and save what is reported and the weights that result."""
    presets.PRESETS["tiny"] = tiny
    codec_losses.has_fast_bf16 = lambda device: False
    torch.set_num_threads(1)
    trainer = CodecTrainer(config, PartlyLabelled(), torch.device("cpu"))
    reported = [{k: float(v) for k, v in trainer.step(step).items()} for step in range(STEPS)]
    trained = {"losses": trainer.losses.state_dict(), "discriminators": trainer.discriminators.state_dict()}
    torch.save((reported, trained), folder / f"{distributed.rank()}.pt")


@pytest.fixture
def precise(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    monkeypatch.setattr(codec_losses, "has_fast_bf16", lambda device: False)


def test_two_processes_give_the_losses_of_one(tmp_path, precise):
    (tmp_path / "alone").mkdir()
    run(CONFIG, tmp_path / "alone")
    distributed.launch(2, partial(run, replace(CONFIG, batch=2), tmp_path))
    alone, weights = torch.load(tmp_path / "alone" / "0.pt")
    (first, ours), (second, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert {"phone", "ctc", "f0", "commitment", "features", "discriminator"} <= {k for values in alone for k in values}
    assert first == second
    for step, (one, two) in enumerate(zip(alone, first, strict=True)):
        assert two == pytest.approx(one, rel=1e-3), step
    for part, tensors in weights.items():
        for name, tensor in tensors.items():
            assert torch.equal(ours[part][name], theirs[part][name]), name
            close = torch.isclose(ours[part][name], tensor, atol=1e-4, rtol=0).float().mean()
            assert close > (0.8 if "codebooks" in name else 0.999), name  # a vector may fall to either of two entries
