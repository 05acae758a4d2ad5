"""*drop*: two balls fall onto tilted ramps; in which of three bins does the yellow one land?

Bins differ in width and colour, and some ramps are never touched. In a share `NAIVE_RIGHT` of the scenes the right bin
is the one straight below the ball.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from theworld.datasets.physics.simulation import ASKED, IMAGE_SIZE, OTHER, Part, World

SIDES = ("left", "middle", "right")
OUTCOMES = ("red", "green", "blue", "purple", "orange", "cyan")  # three of them are the colours of the bins
WORLD = World(gravity=2.8, damping=0.67, friction=0.15)
WATCH: tuple[str, str] | None = None
NAIVE_RIGHT = 0.38

RADIUS = 4.5
_FLOOR, _DIVIDER_WIDTH, _DIVIDER_TOP = 58.0, 3.0, 47.0
_THICKNESS = 4.0
_COLOURS = (*OUTCOMES, "pink", "brown")


def _dividers(rng: np.random.Generator) -> tuple[float, float]:
    """Left edges of the two dividers; every bin is at least 13 px wide inside."""
    free = IMAGE_SIZE - 2 * _DIVIDER_WIDTH - 3 * 13.0
    cuts = np.sort(rng.uniform(0, free, 2))
    return 13.0 + cuts[0], 13.0 + cuts[1] + _DIVIDER_WIDTH + 13.0


def bin_at(parts: Sequence[Part], x: float, margin: float = 0.0) -> str | None:
    """The bin below a position; None within `margin` px of a divider."""
    first, second = (part.x for part in parts if part.kind == "divider")
    clear = _DIVIDER_WIDTH / 2 + margin
    if abs(x - first) < clear or abs(x - second) < clear:
        return None
    return "left" if x < first else "middle" if x < second else "right"


def propose_asked(rng: np.random.Generator, split: str, wanted: str, lucky: bool) -> list[Part] | None:
    """Bins, ramps and the yellow ball; None if they do not fit."""
    count = 4 if split == "hard" else int(rng.choice([2, 3], p=[0.75, 0.25]))
    first, second = _dividers(rng)
    edges = (0.0, first, first + _DIVIDER_WIDTH, second, second + _DIVIDER_WIDTH, float(IMAGE_SIZE))
    parts = []
    for side, colour, left, right in zip(SIDES, rng.permutation(OUTCOMES)[:3], edges[0::2], edges[1::2], strict=True):
        size = (right - left, IMAGE_SIZE - _FLOOR)
        parts.append(Part("bin", str(colour), "box", size, (left + right) / 2, (IMAGE_SIZE + _FLOOR) / 2, role=side))
    for left in (first, second):
        size = (_DIVIDER_WIDTH, IMAGE_SIZE - _DIVIDER_TOP)
        parts.append(Part("divider", "black", "box", size, left + _DIVIDER_WIDTH / 2, (IMAGE_SIZE + _DIVIDER_TOP) / 2))
    colours = [str(c) for c in rng.permutation(_COLOURS) if c not in {part.colour for part in parts}]
    ball_x = float(rng.uniform(7, IMAGE_SIZE - 7))
    if bin_at(parts, ball_x) is None:
        return None
    ramps: list[tuple[float, float, float, float]] = []
    for _ in range(12 * count):
        if len(ramps) == count:
            break
        length = float(rng.uniform(14, 22) if count > 2 else rng.uniform(15, 26))
        tilt = math.radians(rng.uniform(26, 40)) * float(rng.choice([-1, 1]))
        x, y = float(rng.uniform(5, IMAGE_SIZE - 5)), float(rng.uniform(18, 40))
        if not ramps and rng.random() < 0.7:  # most scenes have a ramp below the ball
            x = float(np.clip(ball_x + rng.uniform(-0.45, 0.45) * length, 5, IMAGE_SIZE - 5))
        if all(_ramp_gap((x, y, tilt, length), other) > 2 * RADIUS + _THICKNESS + 1.5 for other in ramps):
            ramps.append((x, y, tilt, length))
    if len(ramps) < count:
        return None
    for (x, y, tilt, length), colour in zip(ramps, colours, strict=False):
        parts.append(Part("ramp", colour, "box", (float(length), _THICKNESS), float(x), float(y), float(tilt)))
    if not lucky and all(abs(x - ball_x) > length / 2 * math.cos(tilt) + RADIUS for x, _, tilt, length in ramps):
        return None  # it falls straight down
    start = float(rng.uniform(6, 8))
    parts.append(Part("ball", "yellow", "circle", (RADIUS,), ball_x, start, density=1.0, role="ball", group=ASKED))
    return parts


def propose_other(rng: np.random.Generator, split: str, asked: Sequence[Part]) -> list[Part] | None:
    """The scene with another ball; the yellow one stays last, so that it is painted over everything."""
    free = [colour for colour in _COLOURS if colour not in {part.colour for part in asked}]
    x = asked[-1].x + float(rng.uniform(2 * RADIUS + 3, 50)) * rng.choice([-1, 1])
    if not 7 < x < IMAGE_SIZE - 7:
        return None
    start, colour = float(rng.uniform(6, 8)), free[int(rng.integers(len(free)))]
    ball = Part("ball", colour, "circle", (RADIUS,), x, start, density=1.0, role="other", group=OTHER)
    return [*asked[:-1], ball, asked[-1]]


def _ramp_gap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Distance between the centre lines of two ramps, to about a pixel."""
    along = np.linspace(-0.5, 0.5, 7)
    a, b = (
        np.stack([x + along * length * math.cos(tilt), y + along * length * math.sin(tilt)], -1)
        for x, y, tilt, length in (one, other)
    )
    return float(np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min())


def recolour(parts: Sequence[Part], outcome: str, wanted: str) -> list[Part]:
    """The scene with two colours exchanged, so that the wanted one is the answer."""
    swap = {outcome: wanted, wanted: outcome}
    return [replace(part, colour=swap.get(part.colour, part.colour)) for part in parts]


def moved(parts: Sequence[Part], dx: float, dy: float = 0.0) -> list[Part]:
    """The same scene with the start of the yellow ball moved."""
    return [part.moved(dx, dy) if part.role == "ball" else part for part in parts]


def bin_of_ball(parts: Sequence[Part], pose: Sequence[float]) -> str:
    """The bin that the ball at `pose` is in ("none" above the dividers); "" if it is unclear."""
    if pose[1] < _DIVIDER_TOP - 2.0:
        return "none"
    if pose[1] < _DIVIDER_TOP + 1.0:
        return ""
    return bin_at(parts, float(pose[0])) or ""


def judge(parts: Sequence[Part], poses: np.ndarray, touched: bool) -> str | None:
    """The outcome of a run; None if it is unclear or comes too late."""
    return _landed(parts, poses[-1])


def fits(parts: Sequence[Part], poses: np.ndarray) -> bool:
    """Whether the other ball lands as well, without touching the yellow one."""
    offset = poses[-1, :, :2] - poses[-2, :, :2]
    step = np.diff(offset, axis=0)
    # the nearest point between two frames, since the balls could meet there
    along = np.clip(-(offset[:-1] * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-9), 0, 1)
    apart = np.hypot(*(offset[:-1] + along[:, None] * step).T).min() > 2 * RADIUS + 0.5
    return bool(apart) and _landed(parts, poses[-2]) is not None


def _landed(parts: Sequence[Part], path: np.ndarray) -> str | None:
    if path[-1, 1] < _FLOOR - RADIUS - 1.5 or np.abs(path[-1, :2] - path[-3, :2]).max() > 1.0:
        return None
    side = bin_of_ball(parts, path[-1].tolist())
    return _colour(parts, side) if side == bin_of_ball(parts, path[-3].tolist()) else None


def naive(parts: Sequence[Part]) -> str:
    """The bin straight below the ball."""
    return _colour(parts, bin_at(parts, parts[-1].x) or "middle") or ""


def _colour(parts: Sequence[Part], side: str) -> str | None:
    return next((part.colour for part in parts if part.kind == "bin" and part.role == side), None)
