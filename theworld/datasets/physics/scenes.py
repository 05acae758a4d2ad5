"""Clips: deterministic in (family, split, index), with the answers in balance.

The wanted outcome comes from the index; scenes are proposed until one has it, keeps it when the start moves by up to
`_SHIFTS` px, and shows it in the last picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from theworld.datasets.physics import contact, drop, tower
from theworld.datasets.physics.rendering import render
from theworld.datasets.physics.simulation import ASKED, OTHER, Part, simulate, simulate_apart

_MODULES: dict[str, ModuleType] = {"drop": drop, "contact": contact, "tower": tower}
FAMILIES = ("drop", "contact", "tower")
SPLITS = ("train", "validation", "test", "hard")

BLOCK = 72  # any 72 indices from a multiple of 72 on have their outcomes, letters and yes/no in exact balance
_SHIFTS = (-0.75, 0.75)
_ATTEMPTS = 20000
_OTHERS = 8
_WILD = 1000  # in the place of a split's number


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


def slot_of(family: str, split: str, index: int) -> int:
    """Place of an index in the balancing pattern, 0 to 71; outcome, letters and yes or no follow from it."""
    block = np.random.default_rng([FAMILIES.index(family), SPLITS.index(split), index // BLOCK, 1])
    return int(block.permutation(BLOCK)[index % BLOCK])


def make_scene(family: str, split: str, index: int) -> tuple[list[Part], np.ndarray, str]:
    """Parts, poses (len(parts), 17, 3) and outcome of a clip, without its pictures.

    Raises:
        ValueError: unknown family or split, or a negative index.
    """
    _check(family, split, index)
    module = _MODULES[family]
    wanted = module.OUTCOMES[slot_of(family, split, index) % len(module.OUTCOMES)]
    rng = np.random.default_rng([FAMILIES.index(family), SPLITS.index(split), index, 0])
    lucky = bool(rng.random() < module.NAIVE_RIGHT)  # drawn once, or rejection would favour the easy scenes
    for _ in range(_ATTEMPTS):
        asked = module.propose_asked(rng, split, wanted, lucky)
        outcome = None if asked is None else outcome_when_moved(family, asked, 0.0)
        if asked is None or outcome is None or (module.naive(asked) == outcome) != lucky:
            continue
        if outcome != wanted:
            asked = module.recolour(asked, outcome, wanted)
        if asked is None:
            continue
        if any(outcome_when_moved(family, asked, dx) != wanted for dx in _SHIFTS):
            continue
        for _ in range(_OTHERS):
            parts = module.propose_other(rng, split, asked)
            if parts is None:
                continue
            poses = simulate_scene(family, parts)
            if module.fits(parts, poses):
                return parts, poses, wanted
    raise AssertionError(f"no scene found for {family}/{split}/{index}")


def simulate_scene(family: str, parts: Sequence[Part]) -> np.ndarray:
    """Poses (len(parts), 17, 3) of a whole scene: its two groups never meet, so each runs apart."""
    world = _MODULES[family].WORLD
    poses, _ = simulate_apart(parts, world, ASKED)
    others, _ = simulate_apart(parts, world, OTHER)
    chosen = [i for i, part in enumerate(parts) if part.group == OTHER]
    poses[chosen] = others[chosen]
    return poses


def make_wild_frames(family: str, index: int) -> np.ndarray:
    """A scene as first proposed, whatever becomes of it: (17, 64, 64, 3) uint8; for pretraining, without an answer.

    Several times faster than `make_clip`; its seeds are apart from every split's.

    Raises:
        ValueError: unknown family or negative index.
    """
    _check(family, SPLITS[0], index)
    module = _MODULES[family]
    rng = np.random.default_rng([FAMILIES.index(family), _WILD, index, 0])
    parts = None
    while parts is None:
        wanted = module.OUTCOMES[int(rng.integers(len(module.OUTCOMES)))]
        parts = module.propose(rng, SPLITS[0], wanted, bool(rng.random() < module.NAIVE_RIGHT))
    poses, _ = simulate(parts, module.WORLD)  # all together: here the two parts may well meet
    return render(parts, poses)


def outcome_when_moved(family: str, parts: Sequence[Part], dx: float, dy: float = 0.0) -> str | None:
    """Outcome when the start is moved by (dx, dy) px; None if it becomes unclear."""
    module = _MODULES[family]
    shifted = module.moved(parts, dx, dy)
    return module.judge(shifted, *simulate_apart(shifted, module.WORLD, ASKED, module.WATCH))


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
    return Clip(family, split, index, render(parts, poses), outcome, tuple(parts), poses, slot_of(family, split, index))
