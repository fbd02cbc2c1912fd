"""Loading both models, and the memory plan."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechgpt2 import loading
from speechgpt2.engine.codec_worker import BatchedCodec
from speechgpt2.errors import UserError
from speechgpt2.loading import RUNTIME, MemoryPlan, Sources
from speechgpt2.nn.linear import pack
from speechgpt2.nn.quantized import Quantization
from speechgpt2.streaming import tree_map
from speechgpt2.types import PATCH_SAMPLES

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """Two folders like clones of the hub's repositories: float32 shards, no greeting, and the codec with its YAML."""
    folder = tmp_path_factory.mktemp("clones")
    lm, codec = folder / "SpeechGPT-2.0-preview-7B", folder / "SpeechGPT-2.0-preview-Codec"
    lm.mkdir()
    codec.mkdir()
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        shutil.copy(GOLDEN / "lm" / name, lm / name)
    tensors = load_file(GOLDEN / "lm" / "model.safetensors")
    shards = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensors[name].float() for name in tensors if shards[name] == shard}, lm / shard)
    (lm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    shutil.copy(GOLDEN / "codec" / "codec.pkl", codec / "sg2_codec_ckpt.pkl")
    shutil.copy(GOLDEN / "codec" / "config.yaml", codec / "config.yaml")
    return folder


def sources(released: Path, **options) -> Sources:
    model, codec = released / "SpeechGPT-2.0-preview-7B", released / "SpeechGPT-2.0-preview-Codec"
    return Sources(model, codec, patch_heads=4, **options)


def test_clones_load_in_bfloat16(released):
    codec, lm = loading.load(sources(released), CPU)
    assert lm.dtype == torch.bfloat16 and codec.config.mel.bins > 0


@pytest.mark.parametrize("quantization", [None, Quantization("int8"), Quantization("int4")], ids=str)
def test_plan_is_what_is_loaded(released, quantization):
    wanted = loading.plan(sources(released, quantization=quantization), CPU)
    _, lm = loading.load(sources(released, quantization=quantization), CPU)
    weights = list(lm.parameters())
    matrices = [m for module in lm.modules() if hasattr(module, "quantized") for m in module.quantized().values()]
    weights += [part for matrix in matrices for part in (matrix.values, matrix.scales)]
    assert sum(p.nbytes for p in weights) == pytest.approx(wanted.lm, rel=0.02)  # biases and code heads aside
    pack(lm)  # decides whether keys and values are float32
    cells = sum(cells.nbytes for cache in lm.init_state(1, 99).stack.layers for cells in cache)
    assert cells <= 100 * wanted.patch <= 2 * cells


def test_plan_counts_the_states_of_the_engine(released):
    codec = sources(released).load_codec(CPU)
    batched, sizes = BatchedCodec(codec, 1, PATCH_SAMPLES), []
    tree_map(lambda leaf: sizes.append(leaf.nbytes), (batched.encoder_states, batched.decoder_states))
    assert loading.plan(sources(released), CPU).session == sum(sizes) / batched.rows.count


def test_decoder_has_the_chosen_precision(released):
    codec = sources(released, codec_dtype=torch.bfloat16).load_codec(CPU)
    assert codec.decoder.widen.weight.dtype == torch.bfloat16
    assert {p.dtype for part in (codec.encoder, codec.quantizer) for p in part.parameters()} == {torch.float32}
    assert sources(released).load_codec(CPU).decoder.widen.weight.dtype == torch.float32


def test_plan_counts_sessions_and_context():
    plan = MemoryPlan("cuda", RUNTIME + 1000, lm=300, codec=100, patch=1, session=20)
    assert plan.total(2, 80) == RUNTIME + 400 + 2 * 100
    assert plan.sessions(80) == 6 and plan.fits(6, 80) and not plan.fits(7, 80)
    assert plan.context(2) == 280 and plan.fits(2, 280) and not plan.fits(2, 281)
    assert replace(plan, free=None).fits(99, 99) and replace(plan, free=10).sessions(1) == 0


def test_what_does_not_fit_names_what_would(released, monkeypatch):
    monkeypatch.setattr(loading, "SMALL", 0)
    monkeypatch.setattr(loading, "RUNTIME", 0)
    monkeypatch.setattr(loading, "free_memory", lambda device: 500_000)
    with pytest.raises(UserError) as caught:
        loading.load(sources(released), CPU, slots=1, context=256)
    text = str(caught.value)
    assert "\n" not in text and "needs 0.0 GB on cpu" in text and "what fits:" in text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory on cuda; use --quantize"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("CUDA error: no kernel image is available for execution"), "has no kernels for cuda"),
        (RuntimeError("The NVIDIA driver on your system is too old for this CUDA"), "driver does not fit"),
        (NotImplementedError("aten::x is not currently implemented for the MPS device"), "PYTORCH_ENABLE_MPS_FALLBACK"),
    ],
)
def test_errors_of_devices_are_one_line(error, line):
    with pytest.raises(UserError, match=line) as caught, loading.memory_errors(torch.device("cuda")):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="bug"), loading.memory_errors(CPU):
        raise RuntimeError("bug")
