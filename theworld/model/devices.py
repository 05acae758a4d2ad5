"""On which device a model runs and in which dtype, checked before any weights are read; and copies to it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from theworld.messages import counted

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    # as `mixed_precision` names them
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
}


def resolve_device_and_dtype(
    device: str | torch.device | None, device_map: Any, dtype: torch.dtype | str | None
) -> tuple[torch.device | None, torch.dtype]:
    """The device of a model (None if `device_map` places it) and the dtype of its weights.

    Args:
        device: None means the first GPU, or the CPU.
        dtype: None means `default_dtype` of the device.
    """
    if device is not None and device_map is not None:
        raise ValueError("device and device_map were both given; give one.")
    check_device(device)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    resolved = default_dtype(target) if dtype is None else dtype_of(dtype)
    return (target if device_map is None else None), resolved


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, and on a CPU with instructions for it; float32 on other devices, which would emulate it."""
    native = device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16())
    return torch.bfloat16 if native else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU is known to have bfloat16 instructions (AVX-512 BF16 or AMX)."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype of weights, given as such or by one of the names in DTYPES."""
    named = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if named not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    assert named is not None
    return named


def check_device(device: str | torch.device | None, option: str = "device") -> None:
    """Raises a ValueError, which names the `option`, for a device that this machine does not have."""
    if device is None:
        return
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{option} {device} is not a device; use cpu, cuda or cuda:N.") from error
    known = target.type in ("cpu", "cuda", "meta") or (target.type == "mps" and torch.backends.mps.is_available())
    if not known:
        raise ValueError(f"{option} {device} is not usable by torch on this machine; use cpu, cuda or cuda:N.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        available = counted(torch.cuda.device_count(), "GPU")
        raise ValueError(f"{option} {device}: torch can use {available} on this machine.")


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors of one dtype, which a GPU gets in one transfer that the host does not wait for."""
    if device.type != "cuda" or any(each.is_cuda for each in tensors):
        return [each.to(device) for each in tensors]
    joined = torch.cat([each.flatten() for each in tensors]).pin_memory().to(device, non_blocking=True)
    parts = joined.split([each.numel() for each in tensors])
    return [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]
