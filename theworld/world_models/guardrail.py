"""NVIDIA's guardrail, which is loaded only if there is something to check.

The NVIDIA Open Model License requires it for NVIDIA's weights (`CosmosPredict2.needs_guardrail`). It checks world
prompts that users write, and frames that are decoded for people. Latents for the language model, the default prompts,
and weights that are not NVIDIA's need no check.
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
    """Raises a ValueError, which has the command that installs it, if there is no guardrail; does not import it."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(
            "With NVIDIA's weights, world prompts and frames for people must pass NVIDIA's guardrail, which is not "
            f"installed; install it with {INSTALL}."
        )


def check_prompt(prompt: str, device: torch.device | str = "cpu") -> None:
    """Raises a ValueError if the guardrail refuses the prompt, or is not available."""
    if not _passes(prompt, str(device)):
        raise ValueError(f"NVIDIA's guardrail refuses the world prompt {prompt!r}; use another one.")


def check_frames(frames: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Returns clips (n, F, H, W, 3) uint8 with faces blurred; a ValueError if the guardrail refuses a clip."""
    checked = [_on(device, "check_video_safety", clip) for clip in frames]
    if any(clip is None for clip in checked):
        raise ValueError("NVIDIA's guardrail refuses the imagined frames; use another seed.")
    return np.stack([np.asarray(clip) for clip in checked]).astype(np.uint8)


@lru_cache(maxsize=1024)  # one prompt for a thousand images is checked once
def _passes(prompt: str, device: str) -> bool:
    return bool(_on(device, "check_text_safety", prompt))


def _on(device: torch.device | str, method: str, argument: Any) -> Any:
    """Runs a check on `device`; between checks the models stay on the CPU."""
    with _grad_mode_kept():
        checker = _checker()
        checker.to(device)
        try:
            return getattr(checker, method)(argument)
        finally:
            checker.to("cpu")


@cache
def _checker() -> Any:
    """The checker of this process; its weights are large and gated."""
    require_installed()
    try:
        from cosmos_guardrail import CosmosSafetyChecker

        return CosmosSafetyChecker()
    except ImportError as error:
        raise ValueError(f"NVIDIA's guardrail is installed but cannot be imported ({error}); {INSTALL}.") from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"NVIDIA's guardrail could not load its models ({error}); accept their licences on the Hub, "
            "log in with `hf auth login`, and go online once."
        ) from error


@contextmanager
def _grad_mode_kept() -> Iterator[None]:
    # importing cosmos_guardrail (its retinaface) disables autograd for the whole process
    enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(enabled)
