"""The switch `fast_path`, and the rule that every fast path follows.

A fast path computes what the plain path does, with compiled kernels and CUDA graphs, which take a warm-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a config is read before the libraries are imported
    import torch

FAST_PATHS = ("auto", "on", "off")


def check_fast_path(fast_path: str, device: torch.device | None = None) -> str:
    """Returns `fast_path`, or raises a ValueError if it is none of FAST_PATHS, or "on" for a device without CUDA."""
    if fast_path not in FAST_PATHS:
        raise ValueError(f"fast_path is {fast_path!r}; choose one of {', '.join(FAST_PATHS)}.")
    if device is not None:
        uses_fast_path(fast_path, without_gpu(device), pays=True)
    return fast_path


def without_gpu(device: torch.device) -> str | None:
    """Why there is no fast path on a device, or None if there may be one."""
    return None if device.type == "cuda" else f"it needs an NVIDIA GPU, and the model is on {device}"


def uses_fast_path(fast_path: str, reason: str | None, *, pays: bool) -> bool:
    """Whether work takes the fast path.

    With "auto", it does so where that is possible and the work ahead pays for the warm-up, so that a first answer never
    waits for a compiler. With "on", it always does, and with "off" never.

    Args:
        reason: why the fast path is not possible, as a clause; None if it is.
        pays: whether the work ahead pays for the warm-up.

    Raises:
        ValueError: if it is "on" and not possible.
    """
    if fast_path == "on" and reason is not None:
        raise ValueError(f"fast_path is on, but {reason}; set it to auto or off.")
    return fast_path == "on" or (fast_path == "auto" and reason is None and pays)
