"""Which precision is fast on this machine."""

import re
from pathlib import Path

import torch

from speechgpt2.nn.precision import has_fast_bf16
from tests import needs

CPU_INFO = Path("/proc/cpuinfo")


@needs.condition(CPU_INFO.exists(), "the system has no /proc/cpuinfo")
def test_bfloat16_is_fast_if_the_processor_has_its_instructions():
    flags = set(re.findall(r"\w+", CPU_INFO.read_text()))
    assert has_fast_bf16(torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_bf16", "amx_tile"})
