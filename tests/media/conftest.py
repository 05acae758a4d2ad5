"""Frames of which videos are made."""

import numpy as np
import pytest


@pytest.fixture
def clip() -> np.ndarray:
    """Seven frames of 16 x 24 pixels, smooth enough for a video codec, no two alike."""
    rows, columns = np.mgrid[0:16, 0:24]
    grey = np.stack([(rows * 6 + columns * 4 + 12 * number) % 200 + 20 for number in range(7)])
    return np.stack([grey, grey, 255 - grey], axis=-1).astype(np.uint8)


@pytest.fixture
def noise() -> np.ndarray:
    """Twelve frames that no codec compresses away, so that every part of the file matters."""
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
