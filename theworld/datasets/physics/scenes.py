"""Clips: determined by (family, split, index), with balanced answers.

The index determines the wanted outcome; scenes are proposed until one has it, keeps it if the start moves by `_SHIFTS`
px, and shows it in the last image.
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

BLOCK = 72  # each block of 72 indices has exactly balanced outcomes, letters and yes/no
_SHIFTS = (-0.75, 0.75)
_ATTEMPTS = 20000
_OTHERS = 8
_WILD = 1000  # instead of the number of a split, in seeds


@dataclass(frozen=True)
class Clip:
    """One simulated scene.

    Attributes:
        family, split, index: what determines it.
        frames: (17, 64, 64, 3) uint8 RGB; at rest in the first.
        outcome: drop: left | middle | right; contact: yes | no; tower: left | right | standing.
        parts: its objects, in order of painting.
        poses: (len(parts), 17, 3) float64; x, y (px, y downwards) and angle (radians, clockwise) of each in each frame.
        slot: position in the balancing pattern, which determines letters and yes/no of questions.
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
        raise ValueError(f"Unknown family {family!r}; the families are {', '.join(FAMILIES)}.")
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
    if index < 0:
        raise ValueError(f"index is {index}, and must not be negative.")


def slot_of(family: str, split: str, index: int) -> int:
    """Position of an index in the balancing pattern, 0 to 71; it determines outcome, letters and yes or no."""
    block = np.random.default_rng([FAMILIES.index(family), SPLITS.index(split), index // BLOCK, 1])
    return int(block.permutation(BLOCK)[index % BLOCK])


def make_scene(family: str, split: str, index: int) -> tuple[list[Part], np.ndarray, str]:
    """Parts, poses (len(parts), 17, 3) and outcome of a clip, without its images.

    Raises:
        ValueError: if family or split is unknown, or the index is negative.
    """
    _check(family, split, index)
    module = _MODULES[family]
    wanted = module.OUTCOMES[slot_of(family, split, index) % len(module.OUTCOMES)]
    rng = np.random.default_rng([FAMILIES.index(family), SPLITS.index(split), index, 0])
    lucky = bool(rng.random() < module.NAIVE_RIGHT)  # drawn once, since rejection would favour easy scenes
    for _ in range(_ATTEMPTS):
        asked = module.propose_asked(rng, split, wanted, lucky)
        outcome = None if asked is None else outcome_when_moved(family, asked, 0.0)
        if asked is None or outcome is None or (module.naive(asked) == outcome) != lucky:
            continue
        if outcome != wanted:
            if family != "drop":
                continue
            asked = drop.recolour(asked, outcome, wanted)
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
    """Poses (len(parts), 17, 3) of a scene, whose two groups never meet and are simulated separately."""
    world = _MODULES[family].WORLD
    poses, _ = simulate_apart(parts, world, ASKED)
    others, _ = simulate_apart(parts, world, OTHER)
    chosen = [i for i, part in enumerate(parts) if part.group == OTHER]
    poses[chosen] = others[chosen]
    return poses


def make_wild_frames(family: str, index: int) -> np.ndarray:
    """The first proposed scene, with any outcome: (17, 64, 64, 3) uint8; for pretraining, without an answer.

    Several times faster than `make_clip`; its seeds differ from those of every split.

    Raises:
        ValueError: if the family is unknown, or the index is negative.
    """
    _check(family, SPLITS[0], index)
    module = _MODULES[family]
    rng = np.random.default_rng([FAMILIES.index(family), _WILD, index, 0])
    parts = None
    while parts is None:
        wanted = module.OUTCOMES[int(rng.integers(len(module.OUTCOMES)))]
        asked = module.propose_asked(rng, SPLITS[0], wanted, bool(rng.random() < module.NAIVE_RIGHT))
        parts = asked and module.propose_other(rng, SPLITS[0], asked)
    poses, _ = simulate(parts, module.WORLD)  # together, since the two groups may meet here
    return render(parts, poses)


def outcome_when_moved(family: str, parts: Sequence[Part], dx: float, dy: float = 0.0) -> str | None:
    """The outcome if the start is moved by (dx, dy) px; None if it becomes unclear."""
    module = _MODULES[family]
    shifted = module.moved(parts, dx, dy)
    return module.judge(shifted, *simulate_apart(shifted, module.WORLD, ASKED, module.WATCH))


def naive_guess(family: str, parts: Sequence[Part]) -> str:
    """The answer of a rule of thumb: straight down (drop), nearest box (contact), all of one material (tower)."""
    return _MODULES[family].naive(parts)


def outcomes(family: str) -> tuple[str, ...]:
    """All outcomes of a family."""
    return tuple(_MODULES[family].OUTCOMES)


def make_clip(family: str, split: str, index: int) -> Clip:
    """The clip `index` of a split; the same on every machine and in every process. Splits share no clips.

    Raises:
        ValueError: if family or split is unknown, or the index is negative.
    """
    parts, poses, outcome = make_scene(family, split, index)
    return Clip(family, split, index, render(parts, poses), outcome, tuple(parts), poses, slot_of(family, split, index))
