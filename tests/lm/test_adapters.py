"""LoRA and rows for new tokens: they begin as the model, leave frozen weights alone, and merge to equal logits."""

from dataclasses import replace

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.adapters import LoraConfig, add_adapters, merged_state, quantize_frozen, text_logits
from speechgpt2.lm.model import SpeechLM
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.quantized import FrozenLinear, Quantization
from tests.lm.tiny import tiny_config, tiny_tokenizer


def model(tied=True):
    torch.manual_seed(0)
    return SpeechLM(tiny_config(tied_embeddings=tied), tiny_tokenizer()).eval()


def patches(lm):
    return lm.prompt.system_prompt("s2t")


def trained(lm):
    """Move all trained parameters at random."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return lm


def test_adapters_begin_as_the_model():
    lm = model()
    with torch.no_grad():
        before = lm.text_logits(lm(patches(lm)))
        add_adapters(lm, LoraConfig(rank=4), new_tokens=True)
        assert torch.allclose(text_logits(lm, lm(patches(lm))[0]), before[0], atol=1e-6)


@pytest.mark.parametrize("tied", (True, False))
def test_adapters_merge_to_equal_outputs(tied):
    lm = model(tied)
    lm.requires_grad_(False)
    add_adapters(lm, LoraConfig(rank=4, targets=("backbone.layers.*",)), new_tokens=True)
    names = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert names and all(name.endswith((".up", ".down", ".rows")) for name in names)
    trained(lm)
    plain = model(tied)
    plain.load_state_dict(merged_state(lm))  # strict: the names are those of a plain model
    with torch.no_grad():
        ours, theirs = lm(patches(lm)), plain(patches(lm))
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert torch.allclose(text_logits(lm, ours[0]), plain.text_logits(theirs[0]), atol=1e-4)
    assert not torch.equal(plain.backbone.layers[0].ffn.down.weight, model(tied).backbone.layers[0].ffn.down.weight)


def test_only_rows_of_new_tokens_change():
    lm = model()
    before = lm.text_embedding.weight.detach().clone()
    lm.requires_grad_(False)
    add_adapters(lm, None, new_tokens=True)
    after = merged_state(trained(lm))["text_embedding.weight"]
    changed = (after != before).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(t for t in lm.prompt.special_ids if t >= 0)


def test_averages_are_saved_instead_of_the_weights():
    lm = model()
    state = merged_state(
        lm, lambda name, tensor: torch.zeros_like(tensor) if name == "backbone.norm.weight" else tensor
    )
    assert not state["backbone.norm.weight"].any() and torch.equal(
        state["text_embedding.weight"], lm.text_embedding.weight
    )


def divisible(tied=True):
    torch.manual_seed(0)
    config = tiny_config(tied_embeddings=tied, ffn=64)
    decoder = replace(config.patch_decoder, width=32)
    return SpeechLM(replace(config, patch_decoder=decoder), tiny_tokenizer()).eval()


@pytest.mark.parametrize("kind", ("int8", "int4"))
def test_quantized_base_merges_to_equal_outputs(kind):
    lm, plain = divisible(), divisible()
    lm.requires_grad_(False)
    add_adapters(lm, LoraConfig(rank=4), new_tokens=True)
    quantize_frozen(lm, Quantization(kind))
    assert not any(isinstance(module, Linear) for module in lm.backbone.modules())
    trained(lm)
    plain.load_state_dict(merged_state(lm))
    with torch.no_grad():
        ours, theirs = lm(patches(lm)), plain(patches(lm))
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert torch.allclose(text_logits(lm, ours[0]), plain.text_logits(theirs[0]), atol=1e-4)


def test_only_frozen_matrices_are_quantized():
    lm = divisible()
    lm.backbone.requires_grad_(False)
    add_adapters(lm, LoraConfig(targets=("backbone.layers.0.*",)), new_tokens=False)
    quantize_frozen(lm, Quantization("int4"))
    frozen = {name for name, module in lm.named_modules() if isinstance(module, FrozenLinear)}
    assert all(name.startswith("backbone.layers.") for name in frozen) and len(frozen) == 8
    assert "backbone.layers.0.ffn.down.base" in frozen and "backbone.layers.1.ffn.down" in frozen
    assert merged_state(lm).keys() == divisible().state_dict().keys()
    with pytest.raises(UserError, match="quantize: no matrix is frozen"):
        quantize_frozen(divisible(), Quantization("int4"))


def test_targets_must_match():
    with pytest.raises(UserError, match=r"no matrix matches decoder\.\*"):
        add_adapters(model(), LoraConfig(targets=("decoder.*",)), new_tokens=False)
