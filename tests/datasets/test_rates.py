"""The world model sees the same frames of one motion, at any rate it was filmed at: training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.media.encoding import animation, encode_video
from tests.media.motion import TIMES, animated, delays, film, lossless, write_frames
from tests.tiny import tiny_bases, tiny_config
from tests.world_models.tiny import TINY_SIZE
from theworld.datasets.collator import BatchSampling, ChatCollator, IndexedSample
from theworld.datasets.columns import Fields
from theworld.datasets.jsonl import JsonlDataset
from theworld.datasets.multiple_choice import load_questions
from theworld.datasets.samples import TheWorldDataset
from theworld.evaluation.media_digest import media_digest
from theworld.evaluation.tasks import Request, load_benchmark, to_item
from theworld.media import video as video_module
from theworld.media.images import stack_pixels
from theworld.media.video import Video
from theworld.model.configuration import TheWorldConfig
from theworld.model.processing import TheWorldProcessor

CHAT = {"text": "Does it move?", "label": "yes"}
ROW = {"question": "Does it move?", "choices": ["yes", "no"], "answer": "A"}
NOW = 9  # of the frames at 16 per second, of which the clip begins at NOW - 8
SEEN = film(TIMES["16 fps"])[NOW - 8 : NOW + 9]  # two past world steps, now, and two that follow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TheWorldConfig:
    bases = tiny_bases(tmp_path_factory.mktemp("bases"))
    return tiny_config(bases, world_image_size=TINY_SIZE, max_world_steps=4, max_past_steps=2, num_world_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The motion as files: `48.mov`, `frames/144.png`, …, of which number 27 is now at 48 frames per second."""
    folder = tmp_path_factory.mktemp("rates")
    for fps in (16, 32, 48):
        (folder / f"{fps}.mov").write_bytes(lossless(f"{fps} fps"))
    (folder / "48.m4v").write_bytes(lossless("48 fps"))
    (folder / "16.gif").write_bytes(animated(16, "GIF"))
    (folder / "16.webp").write_bytes(animated(16, "WEBP"))
    write_frames(folder / "frames", film(TIMES["48 fps"]))
    return folder


def clip_of(config: TheWorldConfig, sample: Any) -> np.ndarray:
    """The frames that the world model reads of a sample with its true future."""
    sampling = BatchSampling(num_world_steps=2, true_futures=1.0)
    collator = ChatCollator(TheWorldProcessor.from_config(config), sampling)
    (request,) = collator([IndexedSample(0, sample)])["world_requests"]
    return request.pixels.numpy()


def expected(first: int = 0) -> np.ndarray:
    frames = [Image.fromarray(frame) for frame in SEEN[first:]]
    return stack_pixels([frames], TINY_SIZE)[0]


def names(first: int, last: int) -> list[str]:
    return [f"frames/{number}.png" for number in range(first, last + 1)]


RECORDS: dict[str, dict[str, Any]] = {
    "frames": {"video": "48.mov", "now": 27, "past": 8},
    "seconds": {"video": "48.mov", "now": "0.5625 s", "past": "0.5 s"},
    "m4v": {"video": "48.m4v", "now": "0.5625 s", "past": 8},
    "half the rate": {"video": "32.mov", "now": 18, "past": "500 ms"},
    "its rate": {"video": "16.mov", "now": 9, "past": 8},
    "GIF with merged frames": {"video": "16.gif", "now": "0.5625 s", "past": 8},
    "WebP": {"video": "16.webp", "now": "0.5625 s", "past": 8},
    "stride in frames": {"video": "48.mov", "now": 27, "past": 8, "stride": 3},
    "stride in seconds": {"video": "48.mov", "now": 27, "past": 8, "stride": "0.0625 s"},
    "folder": {"video": "frames", "fps": 48, "now": "0.5625 s", "past": 8},
    "lists": {"frames": names(0, 27), "future_frames": names(28, 72), "fps": 48},
}


@pytest.mark.parametrize("name", RECORDS)
def test_training_records(name: str, config: TheWorldConfig, folder: Path) -> None:
    (folder / "train.jsonl").write_text(json.dumps({**RECORDS[name], **CHAT}))
    dataset = JsonlDataset(folder / "train.jsonl")
    assert dataset.num_future_frames(0) is None
    np.testing.assert_array_equal(clip_of(config, dataset[0]), expected())
    if "past" in RECORDS[name]:  # without one, now is an image
        record = {key: value for key, value in RECORDS[name].items() if key != "past"}
        (folder / "train.jsonl").write_text(json.dumps({**record, **CHAT}))
        np.testing.assert_array_equal(clip_of(config, JsonlDataset(folder / "train.jsonl")[0]), expected(8))


def test_records_in_python(config: TheWorldConfig) -> None:
    frames = film(TIMES["48 fps"])
    record = {"frames": frames[:28], "future_frames": np.stack(frames[28:]), "fps": 48, **CHAT}
    for given in (record, {**record, "frames": np.stack(frames[:28])}):
        np.testing.assert_array_equal(clip_of(config, TheWorldDataset([given])[0]), expected())
    own = {key: value for key, value in record.items() if key != "fps"} | {"frames": Video(frames[:28], fps=48)}
    sample = TheWorldDataset([own])[0]
    assert sample.images == (Video(frames[:28], fps=48),)
    with pytest.raises(ValueError, match="record 0 has fps and a Video, which has its own"):
        TheWorldDataset([{**own, "fps": 48}])[0]


def test_a_future_that_is_too_short_or_missing(config: TheWorldConfig, folder: Path) -> None:
    """At the end of a video nothing is known of the future, and it is imagined."""
    for now, num_steps in (("1.5 s", 2), ("1.25 s", None)):
        (folder / "train.jsonl").write_text(json.dumps({"video": "48.mov", "now": now, **CHAT}))
        (sample,) = JsonlDataset(folder / "train.jsonl")
        if num_steps is None:
            with pytest.raises(ValueError, match="line 1 has 4 future frames, and 2 world steps need 8"):
                clip_of(config, sample)
        else:
            assert len(clip_of(config, sample)) == 1


def test_an_unknown_rate_is_the_world_model_s_and_warned_about(
    config: TheWorldConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sixteenths = [f"frames/{3 * number}.png" for number in range(25)]
    video_module._warn_assumed.cache_clear()
    record = {"frames": sixteenths[: NOW + 1], "future_frames": sixteenths[NOW + 1 :], **CHAT}
    (folder / "train.jsonl").write_text(json.dumps(record))
    (folder / "test.jsonl").write_text(json.dumps({**ROW, "image": "frames/27.png", "future_frames": sixteenths[10:]}))
    for _ in range(2):
        np.testing.assert_array_equal(clip_of(config, JsonlDataset(folder / "train.jsonl")[0]), expected())
        assert len(true_clip(config, folder / "test.jsonl")) == 9
    (warning,) = caplog.records
    assert "16 frames per second are assumed" in warning.message


def true_clip(config: TheWorldConfig, rows: Path) -> np.ndarray:
    """What `oracle-future` reads of a row: now and two world steps."""
    (question,) = load_questions(str(rows))
    frames = to_item(question).true_frames(config, 9)
    return stack_pixels([[Image.open(f) if isinstance(f, Path) else f for f in frames]], TINY_SIZE)[0]


@pytest.mark.parametrize(
    "row",
    [
        {"image": "frames/27.png", "future_frames": names(28, 72), "fps": 48},
        {"image": "frames/27.png", "future_frames": "after.mov"},
        {"image": "frames/27.png", "future_frames": "after.m4v"},
        {"image": "frames/27.png", "future_frames": "after.webp"},
        {"image": "frames/27.png", "future_frames": "after", "fps": 48},
        {"video": "frames", "anchor": "27", "fps": 48},
    ],
    ids=["list", "video", "m4v", "WebP", "folder", "later frames of a folder"],
)
def test_evaluation_rows(row: dict[str, Any], config: TheWorldConfig, folder: Path) -> None:
    after = film(TIMES["48 fps"])[28:]
    for name in ("after.mov", "after.m4v"):
        (folder / name).write_bytes(encode_video(after, "mov", "png", "rgb24", per_second=48))
    sixteenths = film(TIMES["16 fps"])[NOW + 1 :]
    (folder / "after.webp").write_bytes(animation(sixteenths, "WEBP", duration=delays(16, len(sixteenths))))
    if not (folder / "after").exists():
        write_frames(folder / "after", after)
    (folder / "test.jsonl").write_text(json.dumps({**ROW, **row}))
    (question,) = load_questions(str(folder / "test.jsonl"), Fields(now="anchor"))
    item = to_item(question)
    frames = item.true_frames(config, 9)
    assert len(frames) == 9
    shown = [Image.open(frame) if isinstance(frame, Path) else frame for frame in frames]
    np.testing.assert_array_equal(stack_pixels([shown], TINY_SIZE)[0], expected(8))


def test_a_row_with_a_rate_that_is_none(folder: Path) -> None:
    (folder / "test.jsonl").write_text(json.dumps({**ROW, "video": "48.mov", "fps": -1}))
    with pytest.raises(ValueError, match="Row row/0: fps is -1: give the frames per second of the video"):
        load_questions(str(folder / "test.jsonl"))


MOMENTS: dict[str, dict[str, Any]] = {
    "frames": {"now": 27, "past": 8},
    "seconds": {"now": "0.5625 s", "past": "0.5 s"},
    "stride": {"now": 27, "past": 8, "stride": 3},
    "stride in seconds": {"now": 27, "past": 8, "stride": "0.0625 s"},
}


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("source", ["48.mov", "frames"])
def test_evaluations_honour_now_past_and_stride(
    name: str, source: str, config: TheWorldConfig, folder: Path, tmp_path: Path
) -> None:
    """A row of mcq and a record of `eval jsonl` show the world model what a training record shows it."""
    given = {"video": str(folder / source), "fps": 48, **MOMENTS[name]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROW, **given}))
    (tmp_path / "train.jsonl").write_text(json.dumps({**CHAT, **given}))
    (question,) = load_questions(str(tmp_path / "rows.jsonl"))
    (sample,) = load_benchmark("jsonl", Request(data=str(tmp_path / "train.jsonl")))
    for item in (to_item(question), sample):
        (seen,) = item.images(config)
        assert isinstance(seen, Video)
        np.testing.assert_array_equal(stack_pixels([seen.frames], TINY_SIZE)[0], expected()[:9])
        (start,) = item.world_images(use_all=False, config=config)
        assert start == seen
        after = item.true_frames(config, 9)
        np.testing.assert_array_equal(stack_pixels([after], TINY_SIZE)[0], expected(8))
        (alone,) = item.images()  # without a model's rate only now is known
        np.testing.assert_array_equal(np.asarray(alone), np.asarray(seen.now))


def test_now_alone_shows_frames_up_to_it_and_the_rest_is_the_future(
    config: TheWorldConfig, folder: Path, tmp_path: Path
) -> None:
    for given in ({"video": "48.mov", "now": 27}, {"video": "frames", "now": "27"}, {"video": "frames", "now": 27}):
        row = {**ROW, "fps": 48, **given, "video": str(folder / given["video"])}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        item = to_item(load_questions(str(tmp_path / "rows.jsonl"))[0])
        images = item.images(config)
        assert len(images) == 8
        np.testing.assert_array_equal(np.asarray(images[-1]), film(TIMES["48 fps"])[27])
        np.testing.assert_array_equal(stack_pixels([item.true_frames(config, 9)], TINY_SIZE)[0], expected(8))
        digests = set()
        for now in (27, 28):
            (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "now": now}))
            digests.add(media_digest(to_item(load_questions(str(tmp_path / "rows.jsonl"))[0])))
        assert len(digests) == 2  # a run does not resume with another moment


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "48.mov", "now": "later"}, "Row row/0: now is 'later', and must be an integer of at least 0, or a"),
        ({"video": "48.mov", "now": -1}, "Row row/0: now is -1"),
        ({"video": "frames", "now": "frame_3"}, "Row row/0: .* has no frame 'frame_3' among its 73"),
        ({"video": "48.mov", "now": 2, "past": 8, "stride": 3}, "Row row/0: there are no 8 frames before frame 2"),
        ({"video": "48.mov", "stride": 3}, "Row row/0: stride is 3, and there is no past or future to apply it to"),
        ({"image": "frames/3.png", "past": 8}, "Row row/0: past is a key of a video, and there is none"),
    ],
)
def test_moments_of_a_row_that_cannot_be_honoured(row: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "test.jsonl").write_text(json.dumps({**ROW, **row}))
    with pytest.raises(ValueError, match=message):
        load_questions(str(folder / "test.jsonl"))
