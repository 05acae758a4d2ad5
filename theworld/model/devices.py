"""Where a model lies and in which type, checked before any weights are read."""

from __future__ import annotations

from typing import Any

import torch

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
    """Where a model goes, None where `device_map` says it, and the type of its weights.

    Raises:
        ValueError: a device that this machine does not have, or another type.
    """
    if device is not None and device_map is not None:
        raise ValueError("device and device_map were both given; give one.")
    check_device(device)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    return (place if device_map is None else None), dtype_of(dtype)


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """A type of weights, by itself or by a name of DTYPES.

    Raises:
        ValueError: another one.
    """
    named = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if named not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    assert named is not None
    return named


def check_device(device: str | torch.device | None, called: str = "device") -> None:
    """Raises a ValueError for a device that this machine does not have.

    Args:
        called: what the setting is called where it was given.
    """
    if device is None:
        return
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{called} {device} is no device; use cpu, cuda or cuda:N.") from error
    known = place.type in ("cpu", "cuda", "meta") or (place.type == "mps" and torch.backends.mps.is_available())
    if not known:
        raise ValueError(f"{called} {device}: torch cannot answer there on this machine; use cpu, cuda or cuda:N.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{called} {device}: this machine has {torch.cuda.device_count()} GPUs that torch can use.")
