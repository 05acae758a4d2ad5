"""NVIDIA's guardrail, loaded exactly when there is something to check.

The NVIDIA Open Model License asks for it with NVIDIA's weights. There is something to check when a person wrote a world
prompt, and when frames are decoded for a person to see. Latents that only the language model reads, the default
prompts, and weights that are not NVIDIA's need none: `CosmosPredict2.needs_guardrail` says which weights do.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError

PACKAGE = "cosmos_guardrail"
INSTALL = f"`uv pip install --python {shlex.quote(sys.executable)} cosmos_guardrail`, or pip where there is one"


def require_installed() -> None:
    """A cheap look before anything slow; imports nothing.

    Raises:
        ValueError: the guardrail is not installed, with the command that installs it.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(
            "A world prompt of your own and frames made for people to see must pass NVIDIA's guardrail on NVIDIA's "
            f"weights, and it is not installed; install it with {INSTALL}."
        )


def check_prompt(prompt: str, device: torch.device | str = "cpu") -> None:
    """Raises a ValueError for a prompt that the guardrail refuses, or when there is no guardrail to ask."""
    if not _passes(prompt, str(device)):
        raise ValueError(f"NVIDIA's guardrail refuses the world prompt {prompt!r}; write another one.")


def check_frames(frames: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Clips (n, F, H, W, 3) uint8 as people may see them: the guardrail blurs faces.

    Raises:
        ValueError: a clip that the guardrail refuses, or there is no guardrail to ask.
    """
    checked = [_on(device, "check_video_safety", clip) for clip in frames]
    if any(clip is None for clip in checked):
        raise ValueError("NVIDIA's guardrail refuses the imagined frames; imagine another future (another seed).")
    return np.stack([np.asarray(clip) for clip in checked]).astype(np.uint8)


@lru_cache(maxsize=1024)  # one prompt for a thousand pictures is checked once
def _passes(prompt: str, device: str) -> bool:
    return bool(_on(device, "check_text_safety", prompt))


def _on(device: torch.device | str, method: str, argument: Any) -> Any:
    """Asks the checker on `device`; its gigabytes wait on the CPU."""
    with _grad_mode_kept():
        checker = _checker()
        checker.to(device)
        try:
            return getattr(checker, method)(argument)
        finally:
            checker.to("cpu")


@cache
def _checker() -> Any:
    """The one checker of this process; its weights are large and gated."""
    require_installed()
    try:
        from cosmos_guardrail import CosmosSafetyChecker

        return CosmosSafetyChecker()
    except ImportError as error:
        raise ValueError(f"NVIDIA's guardrail is installed but cannot be imported ({error}); {INSTALL}.") from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"NVIDIA's guardrail could not load its models ({error}); accept their terms on their Hugging Face pages, "
            "log in with `hf auth login`, and go online once."
        ) from error


@contextmanager
def _grad_mode_kept() -> Iterator[None]:
    # importing cosmos_guardrail (its retinaface) switches autograd off for the whole process
    enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(enabled)
