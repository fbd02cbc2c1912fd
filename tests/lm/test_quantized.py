"""Quantized language models: close to the original, the same from a folder, and refused where they do not fit."""

import json
from dataclasses import replace

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.config import PatchDecoderConfig
from speechgpt2.lm.generation import generate
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.nn.quantized import Quantization
from tests.lm.test_released import GOLDEN
from tests.lm.tiny import random_patches, tiny_config, tiny_lm, tiny_tokenizer

ALL = [Quantization("int8"), Quantization("int4")]


def divisible(**options) -> SpeechLM:
    """A tiny model whose widths divide into groups of 32."""
    torch.manual_seed(0)
    decoder = PatchDecoderConfig(width=32, layers=2, heads=2, ffn=64, chained=True)
    config = replace(tiny_config(width=64, ffn=96, **options), patch_decoder=decoder)
    return SpeechLM(config, tiny_tokenizer()).eval()


def logits(lm: SpeechLM) -> torch.Tensor:
    with torch.no_grad():
        return lm.text_logits(lm(random_patches(lm, 1, 20))).float()


@pytest.mark.parametrize(("quantization", "error"), zip(ALL, (0.03, 0.25), strict=True), ids=str)
def test_logits_are_close(quantization, error):
    """Random weights are the hardest to quantize, and rounding alone gives an int4 matrix an error of 8 %."""
    wanted = logits(SpeechLM.from_pretrained(GOLDEN, torch.float32, patch_heads=4))
    found = logits(SpeechLM.from_pretrained(GOLDEN, patch_heads=4, quantization=quantization))
    assert (found - wanted).norm() / wanted.norm() < error


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_folder_gives_the_same_model(tmp_path, quantization, tied):
    divisible(chain_of_modality=True, draft_tokens=2, tied_embeddings=tied).save_pretrained(tmp_path / "plain")
    lm = SpeechLM.from_pretrained(tmp_path / "plain", quantization=quantization)
    lm.save_pretrained(tmp_path / "small")
    again = SpeechLM.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(again), logits(lm)) and again.dtype == torch.bfloat16
    sizes = [(tmp_path / name / "lm.safetensors").stat().st_size for name in ("plain", "small")]
    assert sizes[1] < sizes[0] / 1.9  # with a tied embedding the head is stored besides
    hidden, state = again.prefill(again.prompt.user_text("Hello"), again.init_state(1, 60))
    steps = list(generate(again, hidden, state, SamplingParams.for_batch(1), 8))
    assert steps and all(step.hidden.isfinite().all() for step in steps)


@pytest.fixture
def folder(tmp_path):
    divisible().save_pretrained(tmp_path / "plain")
    SpeechLM.from_pretrained(tmp_path / "plain", quantization=Quantization("int4")).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_other_version_is_refused(folder):
    stated = json.loads((folder / "quantization.json").read_text())
    (folder / "quantization.json").write_text(json.dumps(stated | {"version": 9}))
    with pytest.raises(UserError, match="version 9 of the format, this program reads 1; convert the model again"):
        SpeechLM.from_pretrained(folder)


def test_other_quantization_or_precision_is_refused(folder):
    with pytest.raises(UserError, match="already quantized to int4 in groups of 32"):
        SpeechLM.from_pretrained(folder, quantization=Quantization("int8"))
    with pytest.raises(UserError, match="computes in bfloat16 only"):
        SpeechLM.from_pretrained(folder, torch.float32)
    with pytest.raises(UserError, match="computes in bfloat16"):
        SpeechLM.from_pretrained(folder.parent / "plain", torch.float32, quantization=Quantization("int8"))


def test_widths_that_do_not_divide_are_refused(tmp_path):
    tiny_lm(width=48).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="int4 in groups of 32 does not fit a matrix with"):
        SpeechLM.from_pretrained(tmp_path, quantization=Quantization("int4"))


def test_damaged_folder_is_refused(folder):
    (folder / "quantization.json").unlink()
    with pytest.raises(UserError, match="does not fit its configuration"):
        SpeechLM.from_pretrained(folder)
