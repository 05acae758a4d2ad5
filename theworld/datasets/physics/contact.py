"""*contact*: will the red ball touch the blue box?

On each of two floors a ball starts on a hill or a tilted ramp (or above one) and rolls until something stops it. The
answer depends on where the red ball is, which way it rolls, on which side the blue box is and what is between them.
Only scenes whose last image shows the answer are kept: if the two ever touched they touch in it, otherwise they are
clearly apart.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from theworld.datasets.physics.simulation import ASKED, IMAGE_SIZE, OTHER, Part, World, box_gap

OUTCOMES = ("yes", "no")
WORLD = World(gravity=1.6, damping=0.9, friction=0.4)
WATCH: tuple[str, str] | None = ("red", "blue")

NAIVE_RIGHT = 0.5

RADIUS = 4.0
FLOORS = (27.0, 60.0)  # an upper and a lower floor
THICKNESS = 4.0
TOUCHING, APART = 1.0, 3.0  # px between ball and box, in an image
_COLOURS = ("green", "yellow", "purple", "orange", "cyan", "pink", "brown")


def propose_asked(rng: np.random.Generator, split: str, wanted: str, lucky: bool) -> list[Part] | None:
    """The floor with the red ball and the blue box."""
    parts = _floor(rng, split, FLOORS[int(rng.integers(2))], [str(c) for c in rng.permutation(_COLOURS)], True)
    return parts if parts is not None and (naive(parts) == wanted) == lucky else None


def propose_other(rng: np.random.Generator, split: str, asked: Sequence[Part]) -> list[Part] | None:
    """The scene with another ball on the other floor; the red one stays last in the list, where it is easy to find."""
    floor = next(floor for floor in FLOORS if abs(floor + THICKNESS / 2 - asked[0].y) > 1)
    colours = [str(c) for c in rng.permutation(_COLOURS) if str(c) not in {part.colour for part in asked}]
    other = _floor(rng, split, floor, colours, False)
    return None if other is None else [*asked[:-1], *other, asked[-1]]


def _floor(rng: np.random.Generator, split: str, floor: float, colours: list[str], red: bool) -> list[Part] | None:
    hard = split == "hard"
    group = ASKED if red else OTHER
    launch = _hill if rng.random() < 0.5 else _ramp
    piece, ball = launch(rng, floor, colours.pop(), "red" if red else colours.pop(), "red" if red else "")
    parts = [Part("ground", "black", "box", (64.0, THICKNESS), 32.0, floor + THICKNESS / 2), piece]
    taken = [_bounds(piece, ball)]
    blue = (-1 if rng.random() < 0.5 else 1) if red else 0
    things = [(-1, "box"), (1, "box")]
    things += [(side, "obstacle") for side in (-1, 1) if rng.random() < (0.6 if hard else 0.3)]
    if hard and rng.random() < 0.5 and colours[1:]:
        things.append((int(rng.choice([-1, 1])), "box"))
    for place, (side, kind) in enumerate(things):
        size = (float(rng.uniform(7.0, 9.5)), float(rng.uniform(7.5, 9.5))) if kind == "box" else (4.0, 4.5)
        for _ in range(8):
            x = piece.x + side * float(rng.uniform(5, 50))
            left, right = x - size[0] / 2, x + size[0] / 2
            if left >= 0 and right <= IMAGE_SIZE and all(left - 3.5 > b or right + 3.5 < a for a, b in taken):
                break
        else:
            return None
        taken.append((left, right))
        is_blue = kind == "box" and place < 2 and side == blue
        if kind == "box" and not is_blue and not colours:
            return None
        colour = "black" if kind == "obstacle" else "blue" if is_blue else colours.pop()
        parts.append(Part(kind, colour, "box", size, x, floor - size[1] / 2, role="blue" if is_blue else ""))
    return [replace(part, group=group) for part in (*parts, ball)]


def _hill(rng: np.random.Generator, floor: float, colour: str, ball_colour: str, role: str) -> tuple[Part, Part]:
    height, left, right = rng.uniform(8, 11), rng.uniform(8, 12), rng.uniform(8, 12)
    x = float(rng.uniform(20, 44))
    hill = Part("hill", colour, "polygon", (-left, 0.0, 0.0, -height, right, 0.0), x, floor)
    side = rng.choice([-1, 1])
    run = left if side < 0 else right
    length = math.hypot(run, height)
    along = rng.uniform(0.1, 0.4) * length
    off = RADIUS + 0.05
    ball_x = x + side * (along * run / length + off * height / length)
    ball_y = floor - height + along * height / length - off * run / length
    lift = float(rng.uniform(0, 5)) if rng.random() < 0.5 else 0.0
    ball_y = max(float(ball_y) - lift, floor - 22.0)
    return hill, Part("ball", ball_colour, "circle", (RADIUS,), float(ball_x), ball_y, density=1.0, role=role)


def _ramp(rng: np.random.Generator, floor: float, colour: str, ball_colour: str, role: str) -> tuple[Part, Part]:
    length, tilt = rng.uniform(14, 20), math.radians(rng.uniform(17, 26)) * rng.choice([-1, 1])
    x, y = float(rng.uniform(18, 46)), floor - float(rng.uniform(8, 10))
    ramp = Part("ramp", colour, "box", (float(length), 3.5), x, y, float(tilt))
    along, off = float(rng.uniform(-0.35, 0.35)) * length, RADIUS + 1.8
    ball_x = x + along * math.cos(tilt) + off * math.sin(tilt)
    ball_y = y + along * math.sin(tilt) - off * math.cos(tilt)
    lift = float(rng.uniform(0, 4)) if rng.random() < 0.3 else 0.0
    ball_y = max(ball_y - lift, floor - 22.0)
    return ramp, Part("ball", ball_colour, "circle", (RADIUS,), ball_x, ball_y, density=1.0, role=role)


def _bounds(piece: Part, ball: Part) -> tuple[float, float]:
    """The left and right end of the hill or ramp with its ball."""
    if piece.shape == "polygon":
        left, right = piece.x + piece.size[0], piece.x + piece.size[4]
    else:
        wide = piece.size[0] / 2 * math.cos(piece.angle) + 1
        left, right = piece.x - wide, piece.x + wide
    return min(left, ball.x - RADIUS), max(right, ball.x + RADIUS)


def moved(parts: Sequence[Part], dx: float, dy: float = 0.0) -> list[Part]:
    """The same scene with the red ball moved sideways (and lifted as much as a slope needs)."""
    return [part.moved(dx, dy - abs(dx)) if part.role == "red" else part for part in parts]


def gap(parts: Sequence[Part], poses: np.ndarray, frame: int) -> float:
    """Px between the red ball and the blue box in one frame."""
    return gap_to(next(i for i, part in enumerate(parts) if part.role == "blue"), parts, poses, frame)


def gap_to(box: int, parts: Sequence[Part], poses: np.ndarray, frame: int) -> float:
    """Px between the red ball and the part with this index, a box."""
    x, y, _ = poses[-1, frame].tolist()
    return box_gap((x, y, RADIUS), parts[box], poses[box, frame].tolist())


def judge(parts: Sequence[Part], poses: np.ndarray, touched: bool) -> str | None:
    """The outcome of a run; None if the last image does not show it."""
    if not fits(parts, poses) or not -1 < poses[-1, -1, 1] < IMAGE_SIZE:
        return None
    last = gap(parts, poses, -1)
    if touched:
        return "yes" if last < TOUCHING * 0.5 else None
    return "no" if last >= APART else None


def fits(parts: Sequence[Part], poses: np.ndarray) -> bool:
    """Whether everything has come to rest."""
    return bool(np.abs(poses[:, -1, :2] - poses[:, -3, :2]).max() <= 1.0)


def naive(parts: Sequence[Part]) -> str:
    """Yes if the blue box is the nearest box to the red ball, and at most 27 px away."""
    red = parts[-1]
    boxes = sorted((math.hypot(part.x - red.x, part.y - red.y), part.role) for part in parts if part.kind == "box")
    return "yes" if boxes[0][1] == "blue" and boxes[0][0] < 27 else "no"
