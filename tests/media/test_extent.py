"""The extent of images and videos, without decoding them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from theworld.media.export import encode_rollout
from theworld.media.extent import Extent, extent_of


def test_images_and_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 16, 32, 3), np.uint8) * 40
    for extension in (".gif", ".mp4"):
        content = encode_rollout(frames, extension, 16, scale=1, hold=0)
        is_image = extension == ".gif"
        assert extent_of(content) == Extent(32, 16, 5, is_image)
        assert extent_of(content, count=False) == Extent(32, 16, 1, is_image)
    file = io.BytesIO()
    Image.new("L", (7, 3)).save(file, "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda image: pytest.fail("it was decoded"))
    assert extent_of(file.getvalue()) == Extent(7, 3, 1, is_image=True)
    assert Extent(7, 3, 1).pixels == 21


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"no image", "neither an image nor a video"), (b"\0\0\0\x18ftypisom", "is damaged or cut")],
)
def test_other_files(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extent_of(content)
