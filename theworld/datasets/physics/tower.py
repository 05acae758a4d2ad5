"""*tower*: a stack of blocks of stone (heavy) and wood (light); does it fall left, fall right or stay standing?

Whether a stack stands is decided level by level: the centre of mass of all that lies above must be over the area of
contact. Half of the scenes are picked so that a look at the outlines alone, as if all blocks were of one material, gives
a wrong answer.
"""

from collections.abc import Sequence

import numpy as np

from theworld.datasets.physics.simulation import IMAGE_SIZE, Part, World

OUTCOMES = ("left", "right", "standing")
WORLD = World(gravity=3.0, damping=0.85, friction=0.9, iterations=20)
WATCH: tuple[str, str] | None = None
NAIVE_RIGHT = 0.5

GROUND = 58.0
DENSITY = {"stone": 5.0, "wood": 1.0}
_STANDS, _FALLS = 1.3, -1.6  # px between the centre of mass and the nearest edge of its support


def margins(parts: Sequence[Part], uniform: bool = False) -> list[tuple[float, float]]:
    """For each level, how far the centre of mass of all above is inside the left and the right edge, px."""
    stack = [part for part in parts if part.kind in ("stand", "block")]
    result = []
    for level in range(1, len(stack)):
        below, above = stack[level - 1], stack[level]
        low = max(below.x - below.size[0] / 2, above.x - above.size[0] / 2)
        high = min(below.x + below.size[0] / 2, above.x + above.size[0] / 2)
        masses = [part.size[0] * part.size[1] * (1.0 if uniform else part.density) for part in stack[level:]]
        centre = sum(m * part.x for m, part in zip(masses, stack[level:], strict=True)) / sum(masses)
        result.append((centre - low, high - centre))
    return result


def verdict(parts: Sequence[Part], uniform: bool = False, stands: float = 0.0, falls: float = 0.0) -> str | None:
    """What statics says; None when a margin is too thin or levels fall to both sides."""
    levels = margins(parts, uniform)
    left, right = min(m[0] for m in levels), min(m[1] for m in levels)
    if left >= stands and right >= stands:
        return "standing"
    if left <= falls and right >= stands:
        return "left"
    if right <= falls and left >= stands:
        return "right"
    return None


def propose(rng: np.random.Generator, split: str, wanted: str, lucky: bool) -> list[Part] | None:
    """One random scene, or None when statics does not promise the wanted answer."""
    count = 6 if split == "hard" else int(rng.choice([3, 4, 5], p=[0.4, 0.4, 0.2]))
    for _ in range(200):
        parts = _stack(rng, count)
        if verdict(parts, stands=_STANDS, falls=_FALLS) == wanted and (naive(parts) == wanted) == lucky:
            return parts
    return None


def _stack(rng: np.random.Generator, count: int) -> list[Part]:
    width, height = float(rng.uniform(9, 16)), float(rng.uniform(4, 7))
    x, top = float(rng.uniform(27, 37)), GROUND - height
    parts = [
        Part("ground", "black", "box", (64.0, IMAGE_SIZE - GROUND), 32.0, (IMAGE_SIZE + GROUND) / 2),
        Part("stand", "black", "box", (width, height), x, GROUND - height / 2),
    ]
    tallest = 7.5 if count > 5 else 8.5
    for _ in range(count):
        block_width, block_height = float(rng.uniform(10, 24)), float(rng.uniform(6, tallest))
        furthest = (width + block_width) / 2 - 4.0  # at least 4 px of contact
        x = float(np.clip(x + rng.normal(0, 0.45) * furthest, x - furthest, x + furthest))
        material = "stone" if rng.random() < 0.45 else "wood"
        parts.append(
            Part("block", material, "box", (block_width, block_height), x, top - block_height / 2, density=DENSITY[material])
        )
        width, top = block_width, top - block_height
    return parts


def moved(parts: Sequence[Part], dx: float, dy: float = 0.0) -> list[Part]:
    """The same scene with all blocks a little aside of the stand."""
    return [part.moved(dx) if part.kind == "block" else part for part in parts]


def state(parts: Sequence[Part], poses: np.ndarray, frame: int) -> str:
    """"standing", "left", "right", or "" while that is a matter of opinion."""
    blocks = [i for i, part in enumerate(parts) if part.kind == "block"]
    shift = poses[blocks, frame, :2] - poses[blocks, 0, :2]
    turn = np.abs(poses[blocks, frame, 2])
    if np.abs(shift).max() < 0.8 and turn.max() < 0.06:
        return "standing"
    fallen = shift[:, 1] > 5.0
    if not fallen.any() or np.abs(shift[~fallen]).max(initial=0.0) > 5.0:
        return ""
    if (shift[fallen, 0] > 5.0).all():
        return "right"
    return "left" if (shift[fallen, 0] < -5.0).all() else ""


def judge(parts: Sequence[Part], poses: np.ndarray, touched: bool) -> str | None:
    """Outcome of a run; None when it is unclear or comes too late."""
    if np.abs(poses[:, -1, :2] - poses[:, -3, :2]).max() > 2.0:
        return None
    blocks = [i for i, part in enumerate(parts) if part.kind == "block"]
    if poses[blocks, :, 0].min() < 2 or poses[blocks, :, 0].max() > IMAGE_SIZE - 2:
        return None
    return state(parts, poses, -1) or None


def naive(parts: Sequence[Part]) -> str:
    """Statics as if all blocks were of one material."""
    return verdict(parts, uniform=True) or "standing"
