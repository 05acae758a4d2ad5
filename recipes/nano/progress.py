"""Clocks, CSV rows, checkpoints and the optimiser's step of the training stages."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from theworld.storage.files import atomic_file


class StageClock:
    """A wall-clock budget that can pause and resume, and that schedules repeated actions.

    Args:
        budget: seconds in all.
        spent: seconds an earlier run used.
    """

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self._budget = budget
        self._start = time.monotonic() - spent
        self._last: dict[str, float] = {}
        self._values: dict[str, float] = {}
        self._times: dict[str, float] = {}

    def spent(self) -> float:
        return time.monotonic() - self._start

    def share(self) -> float:
        """Share of the budget that is spent, up to 1."""
        return min(1.0, self.spent() / self._budget)

    def over(self) -> bool:
        return self.spent() >= self._budget

    def due(self, name: str, seconds: float) -> bool:
        """True once every `seconds` for each name, for the first time after `seconds`."""
        now = self.spent()
        if now - self._last.setdefault(name, now) < seconds:
            return False
        self._last[name] = now
        return True

    def since(self, name: str, value: float) -> float:
        """Growth of `value` since the last call with this name, at least 1; a first call counts from zero."""
        growth = value - self._values.get(name, 0)
        self._values[name] = value
        return max(1, growth)

    def rate(self, name: str, value: float) -> float:
        """Growth of `value` per second since the last call with this name."""
        now, before = self.spent(), self._times.get(name, 0.0)
        self._times[name] = now
        return self.since(name, value) / max(1e-6, now - before)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not counted."""
        started = time.monotonic()
        yield
        self._start += time.monotonic() - started


class CsvLog:
    """A CSV file that is extended row by row; an existing file is continued."""

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = tuple(columns)
        if not file.exists():
            self._write(self._columns)

    def add(self, row: Sequence[Any]) -> str:
        """Appends `row` and returns it as text for the log."""
        assert len(row) == len(self._columns), (row, self._columns)
        values = [f"{value:.5g}" if isinstance(value, float) else str(value) for value in row]
        self._write(values)
        return " ".join(f"{name} {value}" for name, value in zip(self._columns, values, strict=True))

    def _write(self, values: Sequence[str]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", newline="") as file:
            csv.writer(file).writerow(values)


def check_finite(values: Tensor, stage: str) -> list[float]:
    """The values as floats.

    Raises:
        RuntimeError: one is not finite; the last checkpoint is from before.
    """
    numbers: list[float] = values.tolist()
    if not torch.isfinite(values).all():
        raise RuntimeError(f"{stage}: the loss is no longer finite ({numbers}).")
    return numbers


def save_state(
    file: Path,
    step: int,
    seconds: float,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor] | None = None,
) -> None:
    """Writes a checkpoint atomically."""
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if averaged is not None:
        state["averaged"] = averaged
    with atomic_file(file) as unfinished:
        torch.save(state, unfinished)


def load_state(
    file: Path,
    device: torch.device,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor] | None = None,
) -> tuple[int, float]:
    """Fills model, optimizer and average from a checkpoint; returns its step and seconds, zeros when there is none."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in (averaged or {}).items():
        value.copy_(state["averaged"][name])
    return int(state["step"]), float(state["seconds"])


def learning_rate(peak: float, step: int, warmup_steps: int, share: float) -> float:
    """Linear warm-up by steps, linear decay to zero by the share of the wall-clock budget that is spent."""
    return peak * min(1.0, (step + 1) / warmup_steps) * max(0.0, 1.0 - share)


def optimizer_step(
    loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, max_norm: float
) -> None:
    """Backward pass, clipped gradients, one step at learning rate `rate`."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
