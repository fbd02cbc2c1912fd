"""Text models of each family, written by `transformers` and loaded here: equal hidden states and logits."""

from __future__ import annotations

import json

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.config import PatchDecoderConfig
from speechgpt2.lm.families import FAMILIES
from speechgpt2.lm.gguf import NAMES
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.text_model import from_text_model
from tests import needs
from tests.lm.tiny import tiny_tokenizer

SIZES = {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name: the class names in transformers and what the configuration has besides SIZES
MODELS = {
    "qwen2": ("Qwen2", {"rope_theta": 1_000_000.0}),
    "qwen2-tied": ("Qwen2", {"rope_theta": 10_000.0, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rope_theta": 1_000_000.0}),
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama-scaled": ("Llama", {"rope_theta": 500_000.0, "rope_scaling": LLAMA3_ROPE}),
    "llama-head-size": ("Llama", {"head_dim": 12}),
}
DECODER = PatchDecoderConfig(width=16, layers=1, heads=2, ffn=24)


def save_text_model(name, folder):
    """Write a random text model and a tokenizer without our special tokens; return the model."""
    transformers = needs.module("transformers", "dev")
    base, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{base}Config")(**SIZES, **options)
    model = getattr(transformers, f"{base}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_those_of_transformers(name, tmp_path):
    reference = save_text_model(name, tmp_path)
    lm = from_text_model(tmp_path, DECODER)
    tokens = torch.randint(0, 300, (2, 90), generator=torch.Generator().manual_seed(1))
    wanted = reference(input_ids=tokens).logits
    hidden, _ = lm.backbone(lm.text_embedding(tokens))
    torch.testing.assert_close(lm.text_logits(hidden), wanted, atol=1e-4, rtol=0)
    streamed, state = [], lm.backbone.init_state(2, 90)
    for chunk in tokens.split(40, dim=1):
        hidden, state = lm.backbone(lm.text_embedding(chunk), state)
        streamed.append(lm.text_logits(hidden))
    torch.testing.assert_close(torch.cat(streamed, dim=1), wanted, atol=1e-4, rtol=0)


def test_every_family_is_tested():
    assert {name.split("-")[0] for name in MODELS} == set(FAMILIES)


def test_a_text_model_becomes_a_speech_model(tmp_path):
    """The tokenizer gains the special tokens that it lacks, the embedding gains rows, and the result can be saved."""
    needs.module("transformers", "dev")
    from tokenizers import Tokenizer, models

    save_text_model("qwen3", tmp_path)
    plain = Tokenizer(models.BPE(vocab={f"w{i}": i for i in range(500)}, merges=[]))
    plain.save(str(tmp_path / "tokenizer.json"))
    lm = from_text_model(tmp_path, DECODER)
    assert min(lm.prompt.special_ids[:5]) >= 500 and lm.config.backbone.vocab == 505
    lm.save_pretrained(tmp_path / "ours")
    again = SpeechLM.from_pretrained(tmp_path / "ours")
    assert again.config == lm.config and again.config.backbone.head_dim == 16 and again.config.backbone.qk_norm
    for ours, stored in zip(lm.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"rope_parameters": None, "rope_scaling": {"type": "yarn"}}, "'yarn' is not supported"),
        ({"hidden_size": 33, "head_dim": None}, "must divide into 4 heads"),
        ({"num_key_value_heads": 3}, "must share 3 key-value heads"),
    ],
)
def test_unsupported_configurations_are_named(change, message, tmp_path):
    save_text_model("llama", tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        from_text_model(tmp_path, DECODER)


def write_gguf(name, model, path):
    """Write a text model as llama.cpp's converter does: its names, and its order of rows for Llama."""
    gguf = needs.module("gguf", "train")
    base, options = MODELS[name]
    kind, c = base.lower(), model.config
    writer = gguf.GGUFWriter(path, kind)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(options.get("rope_theta", 10_000.0))
    if "head_dim" in options:
        writer.add_key_length(options["head_dim"])
    tokens = [f"t{i}" for i in range(SIZES["vocab_size"] - 2)] + ["ab", "<|im_end|>"]
    tokens[0], tokens[1] = "a", "b"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    ours = {theirs: mine for mine, theirs in NAMES.items()}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and options.get("tie_word_embeddings"):
            continue
        stem, _, suffix = key.rpartition(".")
        layer = ""
        if stem.startswith("model.layers."):
            number, stem = stem.removeprefix("model.layers.").split(".", 1)
            layer = f"blk.{number}."
        if kind == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = c.num_attention_heads if "q_proj" in stem else c.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{layer}{ours[stem]}.{suffix}", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ("qwen2-tied", "qwen3", "llama"))
@torch.no_grad()
def test_gguf_files_give_the_logits_of_transformers(name, tmp_path):
    reference = save_text_model(name, tmp_path)
    write_gguf(name, reference, tmp_path / "model.gguf")
    lm = from_text_model(tmp_path / "model.gguf", DECODER)
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    wanted = reference(input_ids=tokens).logits
    hidden, _ = lm.backbone(lm.text_embedding(tokens))
    torch.testing.assert_close(lm.text_logits(hidden)[..., :500], wanted, atol=1e-4, rtol=0)
    ids = lm.prompt.special_ids
    assert lm.prompt.encode("ab") == [498] and ids.eos == 499 and ids.speech_start == 500


def test_damaged_gguf_files_are_one_line(tmp_path):
    reference = save_text_model("qwen3", tmp_path)
    path = tmp_path / "model.gguf"
    write_gguf("qwen3", reference, path)
    whole = path.read_bytes()
    for content in (b"", b"GGUF", whole[: len(whole) // 2], b"no model" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match="GGUF file, or cut off"):
            from_text_model(path, DECODER)
    with pytest.raises(UserError, match="no such file"):
        from_text_model(tmp_path / "absent.gguf", DECODER)
