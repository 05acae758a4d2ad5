"""Clips: deterministic in (family, split, index), with the answers in balance.

The wanted outcome comes from the index; scenes are proposed until one has it, keeps it when the start moves by up to
`_SHIFTS` px, and shows it in the last picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from theworld.datasets.physics import contact, drop, tower
from theworld.datasets.physics.pictures import render
from theworld.datasets.physics.simulation import Part, simulate

_MODULES: dict[str, ModuleType] = {"drop": drop, "contact": contact, "tower": tower}
FAMILIES = ("drop", "contact", "tower")
SPLITS = ("train", "validation", "test", "hard")

_BLOCK = 36  # any 36 indices from a multiple of 36 on have their outcomes, letters and yes/no in exact balance
_SHIFTS = (-0.5, 0.5, -1.0, 1.0)
_ATTEMPTS = 20000


@dataclass(frozen=True)
class Clip:
    """One simulated scene.

    Attributes:
        family, split, index: what it was made from.
        frames: (17, 64, 64, 3) uint8 RGB; at rest in the first.
        outcome: drop: left | middle | right; contact: yes | no; tower: left | right | standing.
        parts: the things in it, in order of painting.
        poses: (len(parts), 17, 3) float64; x, y (px, y downwards) and angle (radians, clockwise) of each in each frame.
        slot: place in the balancing pattern; questions draw letters and yes/no from it.
    """

    family: str
    split: str
    index: int
    frames: np.ndarray
    outcome: str
    parts: tuple[Part, ...]
    poses: np.ndarray
    slot: int


def _check(family: str, split: str, index: int) -> None:
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")


def _slot(family: str, split: str, index: int) -> int:
    block = np.random.default_rng([FAMILIES.index(family), SPLITS.index(split), index // _BLOCK, 1])
    return int(block.permutation(_BLOCK)[index % _BLOCK])


def make_scene(family: str, split: str, index: int) -> tuple[list[Part], np.ndarray, str]:
    """Parts, poses (len(parts), 17, 3) and outcome of a clip, without its pictures.

    Raises:
        ValueError: unknown family or split, or a negative index.
    """
    _check(family, split, index)
    module = _MODULES[family]
    wanted = module.OUTCOMES[_slot(family, split, index) % len(module.OUTCOMES)]
    rng = np.random.default_rng([FAMILIES.index(family), SPLITS.index(split), index, 0])
    lucky = bool(rng.random() < module.NAIVE_RIGHT)  # drawn once, or rejection would favour the easy scenes
    for _ in range(_ATTEMPTS):
        parts = module.propose(rng, split, wanted, lucky)
        if parts is None:
            continue
        poses, touched = simulate(parts, module.WORLD, module.WATCH)
        if module.judge(parts, poses, touched) != wanted:
            continue
        if all(outcome_when_moved(family, parts, dx) == wanted for dx in _SHIFTS):
            return parts, poses, wanted
    raise AssertionError(f"no scene found for {family}/{split}/{index}")


def outcome_when_moved(family: str, parts: Sequence[Part], dx: float, dy: float = 0.0) -> str | None:
    """Outcome when the start is moved by (dx, dy) px; None if it becomes unclear."""
    module = _MODULES[family]
    shifted = module.moved(parts, dx, dy)
    return module.judge(shifted, *simulate(shifted, module.WORLD, module.WATCH))


def naive_guess(family: str, parts: Sequence[Part]) -> str:
    """Answer of the rule of thumb: straight down (drop), nearest box (contact), all of one material (tower)."""
    return _MODULES[family].naive(parts)


def outcomes(family: str) -> tuple[str, ...]:
    """Every outcome a family has."""
    return tuple(_MODULES[family].OUTCOMES)


def make_clip(family: str, split: str, index: int) -> Clip:
    """The clip `index` of a split; the same on every machine and in every process, no two splits share one.

    Raises:
        ValueError: unknown family or split, or a negative index.
    """
    parts, poses, outcome = make_scene(family, split, index)
    return Clip(
        family, split, index, render(parts, poses), outcome, tuple(parts), poses, _slot(family, split, index)
    )
