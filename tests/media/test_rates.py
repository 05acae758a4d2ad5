"""The same motion gives the same frames at the world model's rate, at any rate it was filmed at."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.encoding import animation, encode_video, one_sentence
from tests.media.motion import (
    RATE,
    SECONDS,
    TIMES,
    VARIABLE,
    animated,
    film,
    lossless,
    position,
    positions,
    write_frames,
)
from theworld.media import streams
from theworld.media import video as video_module
from theworld.media.export import moment_labels, save_rollout
from theworld.media.selection import (
    FramesAfterNow,
    FramesUntilNow,
    LastFrames,
    SpacedFrames,
    StridedFrames,
    Timeline,
    seconds_of,
)
from theworld.media.video import Video, load_video

MOMENTS = [k / RATE for k in range(int(SECONDS * RATE) + 1)]


@pytest.fixture(autouse=True)
def first_warning() -> None:
    """Warnings that are logged once per process are logged again."""
    video_module._warn_assumed.cache_clear()
    video_module._warn_average.cache_clear()


def past(video: Video, count: int = 9, rate: float = RATE) -> list[int]:
    return positions(video.load_past(rate, count).frames)


def future(source: object, count: int = 8, **options: object) -> list[int]:
    return positions(Video(source, FramesAfterNow(), **options).load_future(RATE, count).frames)  # type: ignore[arg-type]


# --- the same motion ---


@pytest.mark.parametrize("name", ["16 fps", "32 fps", "48 fps"])
def test_rates_that_are_multiples_give_exactly_the_same_frames(name: str) -> None:
    content = lossless(name)
    at_end = [position(time) for time in MOMENTS]
    for video in (Video(content), load_video(content)):  # decoded for the model, or before
        read = video.load_past(RATE, 9)
        assert (positions(read.frames), read.num_frames) == (at_end[-9:], len(MOMENTS))
        assert read.times == pytest.approx(MOMENTS[-9:])
    assert past(Video(content), 99) == at_end
    middle = [position(time) for time in MOMENTS[12 - 8 : 12 + 9]]
    for at in ("0.75 s", "750 ms", round(0.75 * int(name.split()[0]))):
        assert past(Video(content, at=at)) == past(Video(content, at=at).load()) == middle[:9]
        assert past(Video(content, FramesUntilNow(8), at=at), 1) == middle[:9]
        assert past(Video(content, FramesUntilNow("0.5 s"), at=at), 1) == middle[:9]
        assert future(content, at=at) == middle[9:]


@pytest.mark.parametrize("name", ["15 fps", "30 fps", "60 fps", "variable"])
def test_other_rates_give_the_nearest_frames(name: str) -> None:
    content, times = lossless(name), np.array(TIMES[name])
    read = Video(content, at="1 s").load_past(RATE, 9)
    assert read.times is not None
    wanted = np.arange(8, 17) / RATE
    nearest = np.abs(times[:, None] - wanted).min(axis=0)
    np.testing.assert_allclose(np.abs(np.array(read.times) - wanted), nearest, atol=0.003)
    assert positions(read.frames) == [position(time + 1e-4) for time in read.times]
    exact = past(Video(content, at="1 s"), 9, rate=15)
    if name != "variable":
        assert exact == [position(1 - k / 15) for k in range(8, -1, -1)]


def test_a_frame_midway_belongs_to_the_earlier_also_where_times_are_rounded() -> None:
    frames = film(TIMES["30 fps"])
    read = [
        Video(encode_video(frames, container, per_second=30), at="1 s").load_past(RATE, 17)
        for container in ("mp4", "matroska")  # which rounds to milliseconds
    ]
    assert positions(read[0].frames) == positions(read[1].frames)
    assert read[0].times == pytest.approx([round(k / RATE * 30 - 0.01) / 30 for k in range(17)], abs=1e-3)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("fps", [16, 32])
def test_animations_are_read_by_the_durations_of_their_frames(file_format: str, fps: int) -> None:
    """Writers merge equal frames, of which this motion has many while the square rests."""
    content = animated(fps, file_format)
    if file_format == "GIF":
        with Image.open(io.BytesIO(content)) as image:
            assert image.n_frames < len(TIMES[f"{fps} fps"]) - 3, "equal frames were merged"
    expected = [position(time) for time in MOMENTS]
    tolerance = 0 if fps == RATE else 1  # delays of ten milliseconds do not tell 1/32 s
    read = Video(content).load_past(RATE, 99)
    np.testing.assert_allclose(positions(read.frames), expected, atol=tolerance)
    np.testing.assert_allclose(positions(load_video(content).load_past(RATE, 99).frames), expected, atol=tolerance)
    np.testing.assert_allclose(future(content, at="0.5 s"), expected[9:17], atol=tolerance)


def test_frames_without_a_file_are_read_by_the_given_rate(tmp_path: Path) -> None:
    folder, frames = write_frames(tmp_path / "frames", film(TIMES["48 fps"])), film(TIMES["48 fps"])
    expected = [position(time) for time in MOMENTS]
    for source in (folder, frames, np.stack(frames), encode_video(frames)):
        assert past(Video(source, fps=48)) == expected[-9:]  # also instead of the file's own
        assert past(load_video(source, fps=48)) == expected[-9:]
        assert past(Video(source, fps=48, at="0.75 s")) == expected[4:13]
    assert future(frames[1:], 24, fps=48) == expected[1:]  # what follows now, without it
    assert future(folder, 12, after="36", fps=48) == expected[13:]


def test_slow_videos_repeat_their_frames() -> None:
    content = encode_video(film([k / 4 for k in range(7)]), per_second=4)
    read = Video(content).load_past(RATE, 9)
    assert read.times == pytest.approx([1, 1, 1, 1.25, 1.25, 1.25, 1.25, 1.5, 1.5])
    assert read.num_frames == 25
    assert future(content, 4, at="0.5 s") == [position(t) for t in (0.5, 0.5, 0.75, 0.75)]


# --- what is not resampled ---


def test_selections_by_number_and_at_a_rate_of_their_own_stay_as_they_are() -> None:
    content = lossless("32 fps")
    drawn = [position(time) for time in TIMES["32 fps"]]
    for selection, indices in (
        (StridedFrames(3, 5, 4), [3, 8, 13, 18]),
        (SpacedFrames(5), [0, 12, 24, 36, 48]),
        (FramesUntilNow(3, stride=5), [9, 14, 19, 24]),
    ):
        at = None if isinstance(selection, SpacedFrames) else 24
        for read in (Video(content, selection, at=at).load(), Video(content, selection, at=at).load_past(RATE, 2)):
            assert positions(read.frames) == [drawn[index] for index in indices]
            assert read.times == pytest.approx([index / 32 for index in indices])
            assert read.num_frames == len(indices)
    strided = Video(content, FramesAfterNow(9, stride=6), at=24)
    assert positions(strided.load().frames) == [drawn[index] for index in (30, 36, 42, 48)]
    assert positions(strided.load_future(RATE, 2).frames) == [drawn[30], drawn[36]]
    assert positions(Video(content, LastFrames(2)).load().frames) == drawn[-2:]
    halved = Video(content, FramesUntilNow(2, rate=8), at="1 s")
    assert past(halved) == [position(t) for t in (0.75, 0.875, 1)]


def test_only_as_many_frames_are_read_as_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the future those of the world steps, and nothing after them."""
    decoded: list[int] = []
    packets = streams.decoded_packets

    def counted(*arguments: object) -> object:
        for promised, frames in packets(*arguments):  # type: ignore[arg-type]
            decoded.extend(1 for _ in frames)
            yield promised, frames

    monkeypatch.setattr(streams, "decoded_packets", counted)
    content = lossless("32 fps")
    for at in (8, "0.25 s"):
        decoded.clear()
        assert len(Video(content, FramesAfterNow(), at=at).load_future(RATE, 4).frames) == 4
        assert len(decoded) == 8 + 4 * 2 + 1


# --- rates that are not known, and times that are wrong ---


@pytest.mark.parametrize("form", ["list", "array", "folder", "GIF without times"])
def test_an_unknown_rate_is_assumed_with_one_warning(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = film(MOMENTS[:21])
    source = {
        "list": lambda: frames,
        "array": lambda: np.stack(frames),
        "folder": lambda: write_frames(tmp_path / "frames", frames),
        "GIF without times": lambda: animation(frames[4:], "GIF"),
    }[form]()
    expected = [position(time) for time in MOMENTS[12:21]]
    assert past(Video(source), 1) == expected[-1:]
    assert caplog.text == "", "one frame has no rate"
    for video in (Video(source), load_video(source)):
        assert past(video) == expected
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "16 frames per second are assumed" in record.message
    assert "give it as fps, of a Video or of a record, or as video-fps" in record.message
    with pytest.raises(ValueError, match="has no frame rate, which is needed to find the moment '1 s': give") as error:
        Video(source, at="1 s").load()
    one_sentence(error)


def test_times_that_are_missing_or_equal_give_the_average_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = lossless("32 fps")
    seconds = streams.seconds
    for wrong in (lambda timed: float("nan"), lambda timed: min(seconds(timed), 1.0)):
        caplog.clear()
        first_of_process = video_module._warn_average.cache_clear
        first_of_process()
        monkeypatch.setattr(streams, "seconds", wrong)
        for _ in range(2):
            assert past(Video(content)) == [position(time) for time in MOMENTS[-9:]]
        (record,) = caplog.records
        assert "does not say when each of its frames is shown, so its average rate of 32" in record.message
        caplog.clear()
        assert len(Video(content, SpacedFrames(4)).load().frames) == 4
        assert caplog.text == ""


def test_the_first_timestamp_is_the_beginning() -> None:
    late = encode_video(film(TIMES["16 fps"]), "mov", "png", "rgb24", times=[n + 40 for n in range(25)], per_second=16)
    assert past(Video(late, at="1 s")) == [position(time) for time in MOMENTS[8:17]]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), True, "30"])
def test_a_rate_is_a_positive_number(fps: float) -> None:
    with pytest.raises(ValueError, match="give the frames per second of the video") as error:
        Video("clip.mp4", fps=fps)
    one_sentence(error)


def test_moments_that_a_video_does_not_have() -> None:
    content = lossless("16 fps")
    for video, says in (
        (Video(content, at="2 s"), "ends after 1.5 s, so there is no frame at 2 s: choose an earlier moment"),
        (Video(content, at=25), "has 25 frames, so there is no frame 25: choose an earlier one"),
        (Video(content, FramesUntilNow(8), at="0.25 s"), "has 4 of the 8 frames that are wanted before now"),
        (Video(content, FramesUntilNow("1 s"), at=4), "has 4 of the 16 frames that are wanted before now"),
        (Video(content, at="1.5"), "'1.5' is not a time: write seconds as '1.5 s'"),
        (Video(content, FramesUntilNow("1 s", stride=2), at=9), "past is '1 s', and frames are counted here"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            video.load_past(RATE, 9)
        one_sentence(error)
    assert future(content, at=24) == []
    assert (seconds_of(".5s"), seconds_of(" 250 ms ")) == (0.5, 0.25)


def test_kept_frames_that_do_not_reach_back_far_enough() -> None:
    """The model says so, from the number of frames that the video has."""
    short = load_video(lossless("48 fps"), keep=7).load_past(RATE, 9)
    assert (len(short.frames), short.num_frames) == (3, 25)
    assert positions(short.frames) == [position(time) for time in MOMENTS[-3:]]


def test_a_video_that_is_shorter_than_a_frame_of_the_world_model_is_no_image() -> None:
    assert load_video(lossless("60 fps")).load_past(1, 9).num_frames == 2
    assert Video(film([0, 1 / 60]), fps=60).load_past(RATE, 9).num_frames == 2
    assert Video(film([0]), fps=60).load_past(RATE, 9).num_frames == 1


def test_the_nearest_frame_by_hand() -> None:
    """Until now every half gap; a frame that is shown for long counts as repeated."""
    times = np.array([0, 1, 2, 8, 9]) / RATE
    timeline = Timeline("a video", 5, times)
    assert timeline.nearest(np.arange(10) / RATE, 1 / RATE).tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4]
    assert timeline.count_until_now(RATE) == 10
    assert len(VARIABLE) == len(TIMES["variable"])


# --- what this package writes ---


@pytest.mark.parametrize("fps", [12, 16, 24, 30, 50])
def test_a_gif_keeps_the_times_of_its_frames(fps: int, tmp_path: Path) -> None:
    """Rounded to hundredths of a second, but the errors do not add up."""
    times = [k / fps for k in range(int(SECONDS * fps) + 1)]
    path = save_rollout(np.stack(film(times)), tmp_path / "clip.gif", fps, scale=1, hold=0)
    read = Video(path).load_past(fps, 99)
    assert positions(read.frames) == [position(time) for time in times]


@pytest.mark.parametrize("extension", ["gif", "mp4"])
def test_a_rollout_is_read_as_it_was_written(extension: str, tmp_path: Path) -> None:
    """At the default rate, which is that of the world models, with the resting frames that a GIF merges."""
    frames = np.stack(film(MOMENTS))
    path = save_rollout(frames, tmp_path / f"clip.{extension}", scale=1, hold=0)
    assert past(Video(path), 99) == positions(frames)
    assert future(path, at="0.5 s") == positions(frames[9:17])


def test_labels_are_in_seconds() -> None:
    assert moment_labels(2, 5, 16) == ["seen -0.12 s", "seen -0.06 s", "now", "imagined +0.06 s", "imagined +0.12 s"]
