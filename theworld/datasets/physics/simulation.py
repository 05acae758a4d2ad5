"""Parts of a scene and their motion: a thin layer over pymunk.

Coordinates are those of the image: x to the right, y downwards, in pixels, (0, 0) at the top left corner. The unit of
time is one frame, a sixteenth of a second for nano's world model. Everything starts at rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pymunk

NUM_FRAMES = 17
IMAGE_SIZE = 64
FRAMES_PER_SECOND = 16  # `fps` of nano's world model, with which its transformer was trained on these frames

_SUBSTEPS = 8  # at most 0.7 px per substep, so that nothing passes through a ramp of 4 px
_WALL = 6.0
SHARED, ASKED, OTHER = -1, 0, 1

_RED, _TARGET = 1, 2  # collision types of the watched pair


@dataclass(frozen=True)
class Part:
    """One visible object.

    Attributes:
        kind: its name in questions ("ball", "box", "ramp", …); no question is about "ground" or "divider".
        colour: key of `rendering.PALETTE`.
        shape: "circle", "box" or "polygon".
        size: (radius,) of a circle; (width, height) of a box; x0, y0, x1, y1, … of a convex polygon around `x`, `y`.
        x, y: centre at the start, px.
        angle: radians, positive turns the right end down.
        density: 0 for an object that never moves.
        role: its role in its family ("red", "left", ...).
        group: ASKED and OTHER parts never touch each other and are simulated separately; SHARED parts are in both.
    """

    kind: str
    colour: str
    shape: str
    size: tuple[float, ...]
    x: float
    y: float
    angle: float = 0.0
    density: float = 0.0
    role: str = ""
    group: int = SHARED

    def moved(self, dx: float, dy: float = 0.0) -> "Part":
        return replace(self, x=self.x + dx, y=self.y + dy)


@dataclass(frozen=True)
class World:
    """Constants of one family: gravity (px per frame²), share of velocity kept per frame, friction."""

    gravity: float
    damping: float
    friction: float
    iterations: int = 10


def _local_points(part: Part) -> list[tuple[float, float]]:
    if part.shape == "box":
        u, v = part.size[0] / 2, part.size[1] / 2
        return [(-u, -v), (u, -v), (u, v), (-u, v)]
    return [(part.size[i], part.size[i + 1]) for i in range(0, len(part.size), 2)]


def corners(part: Part, x: float, y: float, angle: float) -> np.ndarray:
    """Corners (n, 2) of a box or polygon at the given pose, px."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([(x + c * u - s * v, y + s * u + c * v) for u, v in _local_points(part)])


def simulate(parts: Sequence[Part], world: World, watch: tuple[str, str] | None = None) -> tuple[np.ndarray, bool]:
    """Simulates the motion of the parts for `NUM_FRAMES` frames.

    Args:
        watch: roles of two parts; the second result says whether they ever touched.

    Returns:
        poses (len(parts), NUM_FRAMES, 3) float64: x, y (px) and angle (radians) of every part in every frame; touched.
    """
    space = pymunk.Space()
    space.gravity = (0.0, world.gravity)
    space.damping = world.damping
    space.iterations = world.iterations
    space.collision_slop = 0.05
    for x in (-_WALL, IMAGE_SIZE + _WALL):  # the sides of the image are walls
        wall = pymunk.Segment(space.static_body, (x, -100), (x, 2 * IMAGE_SIZE), _WALL)
        wall.friction = 0.0
        space.add(wall)
    bodies: list[pymunk.Body | None] = []
    for part in parts:
        body = space.static_body if part.density == 0 else pymunk.Body()
        shape: pymunk.Shape
        if part.shape == "circle":
            shape = pymunk.Circle(body, part.size[0], (part.x, part.y) if part.density == 0 else (0, 0))
        elif part.density == 0:
            shape = pymunk.Poly(body, [tuple(p) for p in corners(part, part.x, part.y, part.angle).tolist()])
        else:
            shape = pymunk.Poly(body, _local_points(part))
        shape.friction = world.friction
        if watch is not None and part.role:
            shape.collision_type = _RED if part.role == watch[0] else _TARGET if part.role == watch[1] else 0
        if part.density == 0:
            space.add(shape)
            bodies.append(None)
        else:
            shape.density = part.density
            body.position = (part.x, part.y)
            body.angle = part.angle
            space.add(body, shape)
            bodies.append(body)
    touched: list[bool] = []
    if watch is not None:
        space.on_collision(_RED, _TARGET, begin=lambda arbiter, space, data: touched.append(True))
    poses = np.array([[(part.x, part.y, part.angle)] * NUM_FRAMES for part in parts], dtype=np.float64)
    moving = [(i, body) for i, body in enumerate(bodies) if body is not None]
    for frame in range(1, NUM_FRAMES):
        for _ in range(_SUBSTEPS):
            space.step(1.0 / _SUBSTEPS)
        for i, body in moving:
            poses[i, frame] = (*body.position, body.angle)
    return poses, bool(touched)


def simulate_apart(
    parts: Sequence[Part], world: World, group: int, watch: tuple[str, str] | None = None
) -> tuple[np.ndarray, bool]:
    """Like `simulate`, without the other group, which keeps its starting poses."""
    chosen = [i for i, part in enumerate(parts) if part.group in (SHARED, group)]
    chosen_poses, touched = simulate([parts[i] for i in chosen], world, watch)
    poses = np.array([[(part.x, part.y, part.angle)] * NUM_FRAMES for part in parts], dtype=np.float64)
    poses[chosen] = chosen_poses
    return poses, touched


def box_gap(circle: tuple[float, float, float], box: Part, pose: Sequence[float]) -> float:
    """Distance in px from a circle (x, y, radius) to a box at `pose` (x, y, angle); negative inside."""
    dx, dy = circle[0] - pose[0], circle[1] - pose[1]
    c, s = math.cos(pose[2]), math.sin(pose[2])
    u, v = abs(c * dx + s * dy) - box.size[0] / 2, abs(-s * dx + c * dy) - box.size[1] / 2
    return math.hypot(max(u, 0.0), max(v, 0.0)) + min(max(u, v), 0.0) - circle[2]
