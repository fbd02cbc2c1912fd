"""Quantization on sequences: less is lost, every matrix is quantized, and a folder holds the result."""

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm import calibration
from speechgpt2.lm.calibration import calibration_sequences, quantize_on
from speechgpt2.lm.model import SpeechLM
from speechgpt2.nn.quantized import Quantization, quantizable, quantize_model
from tests.command_line import fails, sg2
from tests.lm.test_quantized import divisible
from tests.lm.tiny import random_patches

KINDS = [Quantization("int8"), Quantization("int4")]
TEXT = "Hello there, what is the weather like?\nIt's 25 degrees.\n\n你好，今天天气怎么样？\n"


def lively(**options) -> SpeechLM:
    """A model whose predictions depend on its input: new matrices are small."""
    lm = divisible(chain_of_modality=True, **options)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.15)
    return lm.bfloat16()


def divergence(lm: SpeechLM, reference: SpeechLM, patches) -> float:
    """The divergence of text and codes."""
    total = 0.0
    with torch.no_grad():
        ours, theirs = (
            [m.text_logits(m(patches)), m.code_logits(m(patches)[0, :-1], patches.codes[0, 1:])]
            for m in (lm, reference)
        )
        for a, b in zip(ours, theirs):
            a, b = (x.float().log_softmax(-1) for x in (a, b))
            total += float((b.exp() * (b - a)).sum(-1).mean())
    return total


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_less_is_lost_on_similar_sequences(quantization, tied):
    sequences = [random_patches(lively(), 1, 120, seed=seed) for seed in range(9)]
    reference, plain, calibrated = (lively(tied_embeddings=tied) for _ in range(3))
    quantize_model(plain, quantization)
    quantize_on(calibrated, quantization, sequences[1:])
    quantize_model(calibrated, quantization)  # nothing is left to quantize
    assert divergence(calibrated, reference, sequences[0]) < 0.85 * divergence(plain, reference, sequences[0])


@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_folder_holds_the_calibrated_model(quantization, tmp_path):
    lm, lines = lively(), []
    quantize_on(lm, quantization, [random_patches(lm, 1, 40)], lines.append)
    assert not any(module.unquantized() for _, module in quantizable(lm))
    layers = len(lm.backbone.layers) + len(lm.patch_decoder.stack.layers)
    assert lines == [*(f"layer {n} of {layers}" for n in range(1, layers + 1)), "text head"]
    lm.save_pretrained(tmp_path)
    for _, module in quantizable(lm):
        module.arrange()
    patches = random_patches(lm, 1, 20)
    again = SpeechLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.text_logits(again(patches)), lm.text_logits(lm(patches)))


def test_sequences_are_texts_in_parts_and_spoken_replies(monkeypatch):
    monkeypatch.setattr(calibration, "SEQUENCE_TOKENS", 8)
    lm = lively()
    tokens = lm.prompt.encode(TEXT)
    texts = calibration_sequences(lm, [TEXT], speaks=False)
    assert [token for patches in texts for token in patches.text[0].tolist()] == tokens
    assert max(patches.text.shape[1] for patches in texts) == 8
    assert len(calibration_sequences(lm, [TEXT])) == len(texts) + 3  # a reply to each of the three lines
    with pytest.raises(UserError, match="empty"):
        calibration_sequences(lm, [""])


def test_groups_must_divide_before_work_begins():
    with pytest.raises(UserError, match="groups of 128"):
        quantize_on(lively(), Quantization("int4", 128), [])


def test_command_converts(tmp_path):
    lively().save_pretrained(tmp_path / "plain")
    (tmp_path / "text.txt").write_text(TEXT)
    command = ["convert", tmp_path / "plain", tmp_path / "small", "--quantize", "int4", "--calibrate"]
    assert "absent.txt" in fails(*command, tmp_path / "absent.txt")
    sg2(*command, tmp_path / "text.txt")
    small = SpeechLM.from_pretrained(tmp_path / "small")
    assert not any(module.unquantized() for _, module in quantizable(small))
    again = ["convert", tmp_path / "small", tmp_path / "other", "--quantize", "int4", "--calibrate"]
    assert "already quantized" in fails(*again, tmp_path / "text.txt")


def test_one_enormous_activation_does_not_decide():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    x[0] *= 1000.0
    moments = calibration._moments_of(x)
    assert moments.rows == 500 and moments.total.diagonal().mean() < 1.2 * 500
