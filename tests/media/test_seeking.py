"""Frames of a video file at any times, in any order, with one decoder that stays open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.media.encoding import encode_video
from theworld.media.seeking import OpenVideos

NUMBERS = range(40)
CODECS = {
    "h264": ("libx264", {"g": "12", "bf": "3", "crf": "8"}),
    # key frames that are stored before frames that are shown before them: a seek may end too late
    "open groups": ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=12:crf=8:scenecut=0"}),
    "av1": ("libsvtav1", {"g": "16", "crf": "8", "preset": "12"}),
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "1")


def write_video(folder: Path, codec: str) -> Path:
    """A video whose frame n, at n / 8 s, has the brightness 10 + 6 n."""
    encoder, options = CODECS[codec]
    frames = [np.full((64, 64, 3), 10 + 6 * number, np.uint8) for number in NUMBERS]
    path = folder / "video.mp4"
    path.write_bytes(encode_video(frames, codec=encoder, codec_options=options))
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_any_frame_in_any_order(tmp_path: Path, codec: str) -> None:
    path, videos = write_video(tmp_path, codec), OpenVideos()
    rng = np.random.default_rng(0)
    for wanted in [[number] for number in NUMBERS] + rng.integers(0, len(NUMBERS), (20, 3)).tolist():
        images = videos.frames_at(path, [number / 8 for number in wanted], 1e-4)
        assert [round((float(np.asarray(image).mean()) - 10) / 6) for image in images] == wanted


def test_the_nearest_frame_within_the_tolerance(tmp_path: Path) -> None:
    path, videos = write_video(tmp_path, "h264"), OpenVideos()
    exact = videos.frames_at(path, [0.5, 0.625, 4.875], 1e-4)
    assert videos.frames_at(path, [0.55, 0.57, 4.9], 0.06) == exact
    for time in (0.55, 4.9, 1000.0):
        with pytest.raises(ValueError, match=rf"video.mp4' has no frame at {time:.4f} s \(the nearest is at "):
            videos.frames_at(path, [time], 1e-2)
    assert videos.frames_at(path, [0.5], 1e-4) == exact[:1]
