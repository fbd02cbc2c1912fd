"""QLoRA of a model with a billion weights: what a step takes is what the plan says.

pytest -m slow -s tests/training/test_qlora_memory.py
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, needs.condition(Path("/proc/self/status").exists(), "the system has no /proc")]


def test_memory_of_a_step_is_as_planned():
    command = [sys.executable, "-m", "tests.training.test_qlora_memory"]
    worker = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(worker.stdout.splitlines()[-1])
    print(found)
    assert found["parameters"] > 0.9e9 and found["int4"] < 0.66 * found["parameters"]
    assert found["peak"] == pytest.approx(found["planned"], rel=0.15)


def measure() -> dict[str, float]:
    """Train a step, and return bytes: resident before it, and at most; and those of the plan."""
    import torch

    from speechgpt2.lm import train as lm_train
    from speechgpt2.lm import train_plan
    from speechgpt2.lm.adapters import LoraConfig
    from speechgpt2.lm.model import SpeechLM
    from speechgpt2.nn.quantized import FrozenLinear, Quantization
    from speechgpt2.nn.uninitialized import uninitialized
    from tests.lm.tiny import tiny_config, tiny_tokenizer
    from tests.training.test_stages import STAGE, Numbers

    lm_train.has_fast_bf16 = lambda device: True  # the products of a GPU
    torch.set_num_threads(1)
    shape = tiny_config(vocab=32_000, width=2048, layers=20, heads=16, kv_heads=2, ffn=8192, tied_embeddings=True)
    shape = replace(shape, patch_decoder=replace(shape.patch_decoder, width=64, ffn=128))
    config = replace(
        STAGE, rows=1, row_patches=128, lora=LoraConfig(rank=16), quantize=Quantization("int4"), average=0.0,
        freeze=("backbone.*", "text_embedding.*"), checkpoint_activations=True,
    )  # fmt: skip
    libraries = status("VmRSS")
    with uninitialized(dtype=torch.bfloat16):  # matrices that are never written take no memory
        lm = SpeechLM(shape, tiny_tokenizer())
    parameters = sum(p.numel() for p in lm.parameters())
    for name, parameter in lm.named_parameters():
        if "backbone.layers" not in name or parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.02)
    trainer = lm_train.LMTrainer(config, lm, Numbers(lm.prompt), torch.device("cpu"))
    before = status("VmRSS")
    trainer.step(0)
    peak = status("VmHWM") - libraries
    batch = trainer.batches(0)[0]
    learnt = [float(mask[:, 1:].sum()) / mask.numel() for mask in (batch.text_loss_mask, batch.code_loss_mask)]
    planned = train_plan.plan(config, train_plan.step_cost(config, shape, shares=tuple(learnt)), 1, 1e12)
    int4 = sum(m.matrix.nbytes for m in lm.modules() if isinstance(m, FrozenLinear))
    return {
        "parameters": parameters, "int4": int4, "resident": before - libraries,
        "peak": peak, "planned": planned.memory,
    }  # fmt: skip


def status(name: str) -> int:
    """A line of this process's status, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure()))
