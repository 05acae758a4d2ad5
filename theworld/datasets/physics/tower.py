"""*tower*: two stacks of blocks; does the one on the yellow stand fall, and to which side?

Blocks are made of stone (heavy) or wood (light). The sides are named by the colour of their ground, which varies. A
stack stands if, at every level, the centre of mass of everything above is over the contact below. Scenes are selected
so that the outlines alone, as if all blocks were of one material, give the right answer in a share `NAIVE_RIGHT` of
them.
"""

from collections.abc import Sequence

import numpy as np

from theworld.datasets.physics.simulation import ASKED, IMAGE_SIZE, OTHER, Part, World

SIDES = ("red", "green", "blue")  # two of them are the colours of the ground left and right of a stack
STANDS = ("yellow", "purple")  # the stack in the question, and the other one
OUTCOMES = (*SIDES, "standing")
WORLD = World(gravity=3.0, damping=0.85, friction=0.9, iterations=14)
WATCH: tuple[str, str] | None = None
NAIVE_RIGHT = 0.4

FLOORS = (27.0, 59.0)  # an upper and a lower floor, so that the two stacks never meet
THICKNESS = 5.0
DENSITY = {"stone": 5.0, "wood": 1.0}
_STANDS, _FALLS = 1.3, -1.6  # px between the centre of mass and the nearest edge of its support


def _margins(x: np.ndarray, width: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """How far the centre of mass of everything above is inside the left and right edge of its support, px.

    Arguments are (n, levels), the stand first; the result is (n, levels - 1, 2).
    """
    low = np.maximum(x - width / 2, np.roll(x - width / 2, -1, axis=1))[:, :-1]
    high = np.minimum(x + width / 2, np.roll(x + width / 2, -1, axis=1))[:, :-1]
    above = np.cumsum((mass * x)[:, :0:-1], axis=1)[:, ::-1] / np.cumsum(mass[:, :0:-1], axis=1)[:, ::-1]
    return np.stack([above - low, high - above], axis=-1)


def _verdicts(margins: np.ndarray, stands: float = 0.0, falls: float = 0.0) -> np.ndarray:
    """The outcome by statics (n,): 0 left, 1 right, 2 standing; -1 if a margin is thin or levels fall to both sides."""
    left, right = margins[..., 0].min(1), margins[..., 1].min(1)
    result = np.full(len(margins), -1)
    result[(left >= stands) & (right >= stands)] = 2
    result[(left <= falls) & (right >= stands)] = 0
    result[(right <= falls) & (left >= stands)] = 1
    return result


def propose_asked(rng: np.random.Generator, split: str, wanted: str, lucky: bool) -> list[Part] | None:
    """The stack on the yellow stand and its ground."""
    return _stack(rng, split, FLOORS[int(rng.integers(2))], wanted, lucky, STANDS[0], ASKED)


def propose_other(rng: np.random.Generator, split: str, asked: Sequence[Part]) -> list[Part] | None:
    """The scene with a stack on a purple stand on the other floor."""
    floor = next(floor for floor in FLOORS if abs(floor + THICKNESS / 2 - asked[0].y) > 1)
    outcome, lucky = OUTCOMES[int(rng.integers(len(OUTCOMES)))], bool(rng.random() < NAIVE_RIGHT)
    other = _stack(rng, split, floor, outcome, lucky, STANDS[1], OTHER)
    return None if other is None else [*asked, *other]


def _stack(
    rng: np.random.Generator, split: str, floor: float, wanted: str, lucky: bool, role: str, group: int
) -> list[Part] | None:
    """Ground, stand and blocks: the first of many random stacks that has the wanted outcome by statics."""
    first = wanted if wanted in SIDES else SIDES[int(rng.integers(3))]
    second = [colour for colour in SIDES if colour != first][int(rng.integers(2))]
    colours = (first, second) if rng.random() < 0.5 else (second, first)
    count = 5 if split == "hard" else 3 + int(rng.random() < 0.5)
    tries = 256
    width = rng.uniform(9, 22, (tries, count + 1))
    width[:, 0] = rng.uniform(8, 14, tries)
    height = rng.uniform(4.8, 6.6, (tries, count + 1)) * min(1.0, 4.0 / count)
    height[:, 0] = 3.5
    stone = rng.random((tries, count + 1)) < 0.45
    furthest = (width[:, :-1] + width[:, 1:]) / 2 - 4.0  # at least 4 px of contact
    step = np.clip(rng.normal(0, 0.45, furthest.shape), -1, 1) * furthest
    x = np.concatenate([np.zeros((tries, 1)), np.cumsum(step, axis=1)], axis=1) + rng.uniform(22, 42, (tries, 1))
    volume = width * height
    verdict = _verdicts(
        _margins(x, width, volume * np.where(stone, DENSITY["stone"], DENSITY["wood"])), _STANDS, _FALLS
    )
    guess = _verdicts(_margins(x, width, volume))
    side = 2 if wanted == "standing" else colours.index(wanted)
    fits = (verdict == side) & ((guess == verdict) == lucky) & (height.sum(1) < 25.5)
    # nothing touches the edge at first
    fits &= ((x - width / 2).min(1) > 3) & ((x + width / 2).max(1) < IMAGE_SIZE - 3)
    if not fits.any():
        return None
    i = int(fits.argmax())
    middle, y = float(x[i, 0]), floor + THICKNESS / 2
    parts = [
        Part("ground", colours[0], "box", (middle, THICKNESS), middle / 2, y, role=role, group=group),
        Part("ground", colours[1], "box", (64 - middle, THICKNESS), (64 + middle) / 2, y, role=role, group=group),
    ]
    top = floor
    for level in range(count + 1):
        material = role if level == 0 else "stone" if stone[i, level] else "wood"
        size = (float(width[i, level]), float(height[i, level]))
        kind, density = ("block", DENSITY[material]) if level else ("stand", 0.0)
        middle, y = float(x[i, level]), top - size[1] / 2
        parts.append(Part(kind, material, "box", size, middle, y, density=density, role=role, group=group))
        top -= size[1]
    return parts


def moved(parts: Sequence[Part], dx: float, dy: float = 0.0) -> list[Part]:
    """The same scene with the asked blocks shifted by dx relative to their stand."""
    return [part.moved(dx) if part.kind == "block" and part.group == ASKED else part for part in parts]


def state(parts: Sequence[Part], poses: np.ndarray, frame: int, role: str = STANDS[0]) -> str:
    """ "standing", the colour of the side it has fallen on, or "" if it is unclear."""
    blocks = [i for i, part in enumerate(parts) if part.kind == "block" and part.role == role]
    shift = poses[blocks, frame, :2] - poses[blocks, 0, :2]
    turn = np.abs(poses[blocks, frame, 2])
    if np.abs(shift).max() < 0.8 and turn.max() < 0.06:
        return "standing"
    fallen = shift[:, 1] > 3.5
    if not fallen.any() or np.abs(shift[~fallen]).max(initial=0.0) > 4.0:
        return ""
    x = poses[blocks, frame, 0][fallen]
    stand = next(part for part in parts if part.kind == "stand" and part.role == role)
    grounds = [part for part in parts if part.kind == "ground" and part.role == role]
    for ground, away in zip(grounds, (-1, 1), strict=True):
        if (shift[fallen, 0] * away > 4.0).all() and ((x - stand.x) * away > 3.0).all():
            return ground.colour
    return ""


def judge(parts: Sequence[Part], poses: np.ndarray, touched: bool) -> str | None:
    """The outcome of a run; None if it is unclear or comes too late."""
    if np.abs(poses[:, -1, :2] - poses[:, -3, :2]).max() > 2.0 or not _below_ceiling(parts, poses, STANDS[0]):
        return None
    return state(parts, poses, -1) or None


def _below_ceiling(parts: Sequence[Part], poses: np.ndarray, role: str) -> bool:
    """Whether no corner of a falling block reaches the floor above or leaves the image."""
    blocks = [i for i, part in enumerate(parts) if part.kind == "block" and part.role == role]
    size = np.array([parts[i].size for i in blocks])[:, None] / 2  # (blocks, 1, 2)
    angle = poses[blocks, :, 2]
    top = poses[blocks, :, 1] - np.abs(size[..., 0] * np.sin(angle)) - np.abs(size[..., 1] * np.cos(angle))
    ceiling = FLOORS[0] + THICKNESS if parts[blocks[0]].y > FLOORS[0] else 0.0
    return bool(top.min() > ceiling - 0.5)


def fits(parts: Sequence[Part], poses: np.ndarray) -> bool:
    """Whether the other stack also clearly stands or has fallen in the end."""
    return bool(
        judge(parts, poses, False) and state(parts, poses, -1, STANDS[1]) and _below_ceiling(parts, poses, STANDS[1])
    )


def naive(parts: Sequence[Part]) -> str:
    """The outcome by statics if all blocks were of one material."""
    stack = [part for part in parts if part.kind in ("stand", "block") and part.role == STANDS[0]]
    x, width, height = np.array([[(part.x, *part.size)] for part in stack]).transpose(2, 1, 0)
    found = int(_verdicts(_margins(x, width, width * height))[0])
    return "standing" if found in (-1, 2) else parts[found].colour  # the grounds of the yellow stand come first
