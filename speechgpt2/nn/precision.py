"""Which precision is fast on a device."""

from __future__ import annotations

import torch


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware computes in bfloat16. Emulation is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.backends.cpu.get_cpu_capability()
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "AMX" in flags or bool(has()) or bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
