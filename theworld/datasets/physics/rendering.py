"""From parts and their poses to images: flat colours, antialiased by exact distances, all frames at once."""

from collections.abc import Sequence

import numpy as np

from theworld.datasets.physics.simulation import IMAGE_SIZE, Part

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 205, 30),
    "purple": (150, 60, 190),
    "orange": (250, 130, 20),
    "cyan": (40, 200, 215),
    "pink": (250, 130, 185),
    "brown": (125, 75, 35),
    "black": (45, 45, 50),
    "stone": (105, 112, 128),
    "wood": (225, 165, 90),
}
BACKGROUND = (240, 239, 232)
_EDGE_SHADE = 0.55  # blocks have a darker rim, so that two of one material can be distinguished
_RIM = 1.0

_YY, _XX = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + np.float32(0.5)


def _signed_distance(part: Part, poses: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Distance to the outline, negative inside: poses (f, 3) -> (f, rows, columns) float32, px."""
    x, y, angle = (poses[:, i].astype(np.float32)[:, None, None] for i in range(3))
    dx, dy = _XX[None, rows, columns] - x, _YY[None, rows, columns] - y
    if part.shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - np.float32(part.size[0])
    c, s = np.cos(angle), np.sin(angle)
    u, v = c * dx + s * dy, c * dy - s * dx
    if part.shape == "box":
        return np.maximum(np.abs(u) - np.float32(part.size[0] / 2), np.abs(v) - np.float32(part.size[1] / 2))
    points = np.array(part.size, dtype=np.float32).reshape(-1, 2)
    following = np.roll(points, -1, axis=0)
    distance = np.full(u.shape, -np.inf, dtype=np.float32)
    for (px, py), (qx, qy) in zip(points, following, strict=True):  # clockwise on screen: outside is on the left
        ex, ey = qx - px, qy - py
        length = np.float32(np.hypot(ex, ey))
        np.maximum(distance, ((u - px) * ey - (v - py) * ex) / length, out=distance)
    return distance


def _paint(frames: np.ndarray, part: Part, poses: np.ndarray) -> None:
    """Paints one part over frames (f, H, W, 3) float32 in place, within the rows and columns that it can reach."""
    reach = max(part.size) * (1.0 if part.shape != "box" else 0.75) + 2
    if part.shape == "polygon":
        reach = float(np.abs(np.array(part.size)).max()) * 1.5 + 2
    left, right = int(max(0, poses[:, 0].min() - reach)), int(min(IMAGE_SIZE, poses[:, 0].max() + reach + 1))
    top, bottom = int(max(0, poses[:, 1].min() - reach)), int(min(IMAGE_SIZE, poses[:, 1].max() + reach + 1))
    if left >= right or top >= bottom:
        return
    rows, columns = slice(top, bottom), slice(left, right)
    window = (slice(None), rows, columns)
    distance = _signed_distance(part, poses, rows, columns)
    colour = np.array(PALETTE[part.colour], dtype=np.float32)
    layers = [(distance, colour)]
    if part.kind == "block":
        layers = [(distance, colour * np.float32(_EDGE_SHADE)), (distance + np.float32(_RIM), colour)]
    for layer, paint in layers:
        alpha = np.clip(np.float32(0.5) - layer, 0.0, 1.0)[..., None]
        frames[window] += alpha * (paint - frames[window])


def render(parts: Sequence[Part], poses: np.ndarray) -> np.ndarray:
    """Paints the parts in order: poses (len(parts), f, 3) -> frames (f, H, W, 3) uint8 RGB."""
    still = np.empty((1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    still[:] = BACKGROUND
    for part, path in zip(parts, poses, strict=True):
        if part.density == 0:
            _paint(still, part, path[:1])
    frames = np.repeat(still, poses.shape[1], axis=0)
    for part, path in zip(parts, poses, strict=True):
        if part.density > 0:
            _paint(frames, part, path)
    return (frames + 0.5).astype(np.uint8)
