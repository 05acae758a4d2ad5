"""A stand-in for `cosmos_guardrail`, which downloads gated models: its interface, and its worst habit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from theworld.world_models import guardrail

STAND_IN = """
import numpy as np
import torch

torch.set_grad_enabled(False)
calls = []


class CosmosSafetyChecker:
    def __init__(self):
        torch.set_grad_enabled(False)
        calls.append("loaded")

    def to(self, device):
        calls.append(str(device))

    def check_text_safety(self, prompt):
        torch.set_grad_enabled(False)
        calls.append(prompt)
        return "weapon" not in prompt

    def check_video_safety(self, frames):
        assert frames.dtype == np.uint8 and frames.ndim == 4
        calls.append(frames.shape)
        return None if frames.min() == 255 else frames // 2
"""


@contextmanager
def guardrail_installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in on sys.path, not imported yet."""
    (site / "cosmos_guardrail").mkdir(parents=True)
    (site / "cosmos_guardrail" / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "cosmos_guardrail", raising=False)
    guardrail._checker.cache_clear()
    guardrail._passes.cache_clear()
    yield
    guardrail._checker.cache_clear()
    guardrail._passes.cache_clear()
    sys.modules.pop("cosmos_guardrail", None)


def guardrail_calls() -> list[object]:
    """What the stand-in was asked so far, in order; nothing when it was never imported."""
    module = sys.modules.get("cosmos_guardrail")
    return list(module.calls) if module is not None else []
