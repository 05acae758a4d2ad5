"""*contact*: will the red ball touch the blue box?

The red ball lies on a hill or a tilted ramp (or hangs above one), rolls, falls, rolls on until something stops it. The
answer composes which way it goes, where the blue box stands and what stands between. Kept are only scenes whose last
picture shows the answer: touching then if they ever touched, clearly apart otherwise.
"""

import math
from collections.abc import Sequence

import numpy as np

from theworld.datasets.physics.simulation import IMAGE_SIZE, Part, World, box_gap

OUTCOMES = ("yes", "no")
WORLD = World(gravity=1.3, damping=0.96, friction=0.5)
WATCH: tuple[str, str] | None = ("red", "blue")

NAIVE_RIGHT = 0.5

RADIUS = 4.0
GROUND = 57.0
TOUCHING, APART = 1.0, 3.0  # px between ball and box, in a picture
_COLOURS = ("green", "yellow", "purple", "orange", "cyan", "pink", "brown")


def propose(rng: np.random.Generator, split: str, wanted: str, lucky: bool) -> list[Part] | None:
    """One random scene, or None when its pieces do not fit together."""
    hard = split == "hard"
    parts = [Part("ground", "black", "box", (64.0, IMAGE_SIZE - GROUND), 32.0, (IMAGE_SIZE + GROUND) / 2)]
    colours = [str(c) for c in rng.permutation(_COLOURS)]
    taken: list[tuple[float, float, float, float]] = []  # left, top, right, bottom
    balls: list[Part] = []
    launchers = 1 + int(rng.random() < (0.8 if hard else 0.3))
    hills = 0
    for which in range(launchers):
        colour = "red" if which == 0 else colours.pop()
        role = "red" if which == 0 else ""
        if not hills and rng.random() < 0.5:
            hills = 1
            piece, ball = _hill(rng, colours.pop(), colour, role)
        else:
            piece, ball = _ramp(rng, colours.pop(), colour, role)
        box = _bounds(piece, ball)
        if not _free(box, taken, 4.0):
            return None
        taken.append(box)
        parts.append(piece)
        balls.append(ball)
    boxes = 1 + (int(rng.integers(1, 4)) if hard else int(rng.choice([0, 1, 2], p=[0.3, 0.5, 0.2])))
    bumps = int(rng.integers(1, 3)) if hard else int(rng.choice([0, 1, 2], p=[0.3, 0.5, 0.2]))
    resting = int(rng.random() < 0.25)
    for which, kind in enumerate(["box"] * boxes + ["obstacle"] * bumps + ["ball"] * resting):
        size = (float(rng.uniform(8, 11)),) * 2 if kind == "box" else (4.0, 5.0) if kind == "obstacle" else (RADIUS, RADIUS)
        width = size[0] if kind != "ball" else 2 * RADIUS
        height = size[1] if kind != "ball" else 2 * RADIUS
        raised = kind == "box" and rng.random() < 0.15
        base = GROUND - (11.0 if raised else 0.0)
        for _ in range(8):
            x = float(rng.uniform(width / 2, IMAGE_SIZE - width / 2))
            box = (x - width / 2, base - height, x + width / 2, GROUND)
            if _free(box, taken, 3.5):
                break
        else:
            return None
        taken.append(box)
        if raised:
            parts.append(Part("pillar", "black", "box", (width, 11.0), x, GROUND - 5.5))
        if kind == "ball":
            balls.append(Part("ball", colours.pop(), "circle", (RADIUS,), x, GROUND - RADIUS, density=1.0))
        else:
            colour = "black" if kind == "obstacle" else "blue" if which == 0 else colours.pop()
            role = "blue" if kind == "box" and which == 0 else ""
            parts.append(Part(kind, colour, "box", size, x, base - height / 2, role=role))
    parts += balls[1:] + balls[:1]  # the red ball last: found at once
    return parts if (naive(parts) == wanted) == lucky else None


def _hill(rng: np.random.Generator, colour: str, ball_colour: str, role: str) -> tuple[Part, Part]:
    height, left, right = rng.uniform(12, 18), rng.uniform(11, 15), rng.uniform(11, 15)
    x = float(rng.uniform(left + 2, IMAGE_SIZE - right - 2))
    hill = Part("hill", colour, "polygon", (-left, 0.0, 0.0, -height, right, 0.0), x, GROUND)
    side = rng.choice([-1, 1])
    run = left if side < 0 else right
    length = math.hypot(run, height)
    along = rng.uniform(0.12, 0.45) * length
    off = RADIUS + 0.05
    ball_x = x + side * (along * run / length + off * height / length)
    ball_y = GROUND - height + along * height / length - off * run / length
    lift = float(rng.uniform(3, 14)) if rng.random() < 0.3 else 0.0
    return hill, Part("ball", ball_colour, "circle", (RADIUS,), float(ball_x), float(ball_y) - lift, density=1.0, role=role)


def _ramp(rng: np.random.Generator, colour: str, ball_colour: str, role: str) -> tuple[Part, Part]:
    length, tilt = rng.uniform(18, 30), math.radians(rng.uniform(15, 27)) * rng.choice([-1, 1])
    reach = length / 2 * math.cos(tilt)
    x, y = float(rng.uniform(reach - 2, IMAGE_SIZE - reach + 2)), float(rng.uniform(20, 36))
    ramp = Part("ramp", colour, "box", (float(length), 4.0), x, y, float(tilt))
    along, off = float(rng.uniform(-0.4, 0.4)) * length, RADIUS + 2.05
    ball_x = x + along * math.cos(tilt) + off * math.sin(tilt)
    ball_y = y + along * math.sin(tilt) - off * math.cos(tilt)
    lift = float(rng.uniform(3, 9)) if rng.random() < 0.3 else 0.0
    return ramp, Part("ball", ball_colour, "circle", (RADIUS,), ball_x, max(ball_y - lift, 5.0), density=1.0, role=role)


def _bounds(piece: Part, ball: Part) -> tuple[float, float, float, float]:
    if piece.shape == "polygon":
        left, right = piece.x + piece.size[0], piece.x + piece.size[4]
        top, bottom = piece.y + piece.size[3], piece.y
    else:
        wide = piece.size[0] / 2 * math.cos(piece.angle) + 1
        high = piece.size[0] / 2 * abs(math.sin(piece.angle)) + 2
        left, right, top, bottom = piece.x - wide, piece.x + wide, piece.y - high, piece.y + high
    return (
        min(left, ball.x - RADIUS),
        min(top, ball.y - RADIUS),
        max(right, ball.x + RADIUS),
        max(bottom, ball.y + RADIUS),
    )


def _free(box: tuple[float, ...], taken: Sequence[tuple[float, ...]], gap: float) -> bool:
    return all(
        box[0] - gap > other[2] or box[2] + gap < other[0] or box[1] - gap > other[3] or box[3] + gap < other[1]
        for other in taken
    )


def moved(parts: Sequence[Part], dx: float, dy: float = 0.0) -> list[Part]:
    """The same scene with the red ball a little aside (lifted as much as a slope needs)."""
    return [part.moved(dx, dy - abs(dx)) if part.role == "red" else part for part in parts]


def gap(parts: Sequence[Part], poses: np.ndarray, frame: int, role: str = "blue") -> float:
    """Px between the red ball and the blue box in one frame."""
    x, y, _ = poses[-1, frame]
    index = next(i for i, part in enumerate(parts) if part.role == role)
    return box_gap((float(x), float(y), RADIUS), parts[index], poses[index, frame])


def judge(parts: Sequence[Part], poses: np.ndarray, touched: bool) -> str | None:
    """Outcome of a run; None when the last picture does not show it."""
    movement = np.abs(poses[:, -1, :2] - poses[:, -3, :2]).max()
    if movement > 1.0 or not -1 < poses[-1, -1, 1] < IMAGE_SIZE:
        return None
    balls = [i for i, part in enumerate(parts) if part.kind == "ball" and i < len(parts) - 1]
    for i in balls:  # balls that meet make two long stories of one
        if (np.hypot(*(poses[i, :, :2] - poses[-1, :, :2]).T) < 2 * RADIUS + 0.7).any():
            return None
    last = gap(parts, poses, -1)
    if touched:
        return "yes" if last < TOUCHING * 0.5 else None
    return "no" if last >= APART else None


def naive(parts: Sequence[Part]) -> str:
    """Yes if the blue box is the box nearest to the red ball, and less than a third of the picture away."""
    red = parts[-1]
    boxes = sorted((math.hypot(part.x - red.x, part.y - red.y), part.role) for part in parts if part.kind == "box")
    return "yes" if boxes[0][1] == "blue" and boxes[0][0] < 27 else "no"
