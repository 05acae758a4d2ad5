"""Samples from a JSON Lines file: one record per line, images and videos by path.

    {"image": "a.png", "text": "What is this?", "label": "A cat"}
    {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"},
     {"type": "text", "text": "Which is older?"}]}, {"role": "assistant", "content": "The first."}]}
    {"video": "pour.mp4", "now": 12, "text": "Will it spill?", "label": "yes"}

A `video` gives the image at `now` (default: the first frame) and the true frames after it; with `past`, that number of
frames before the image is seen as well. They are read at the world model's rate, or every `stride`-th frame of the
video. `now`, `past` and `stride` are numbers of frames, or times such as "1.5 s". Paths are relative to the file.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from theworld.datasets.samples import Message, Sample, TheWorldDataset, chat_of, naming, to_sample
from theworld.media.selection import MAX_FRAMES, FramesAfterNow, FramesUntilNow, seconds_of
from theworld.media.video import Video
from theworld.messages import shortened
from theworld.storage.files import no_file, other_than_file

VIDEO_KEYS = ("video", "now", "stride", "past")
PATH_KEYS = ("video", "image", "images", "frames", "future_frames")
LISTS = ("images", "future_frames")  # keys whose value is a list of paths
LIST_KEYS = (*LISTS, "frames")  # keys whose value may be one


class JsonlDataset(TheWorldDataset):
    """The records of a file: its lines are checked when it is opened, its images are read when a batch needs them.

    Opening checks that images and videos exist, and not what they contain.

    Args:
        path: the file.
        limit: the largest number of lines to read; None for all.

    Raises:
        ValueError: if there is no such file, a line is not a valid record, or an image is missing; the message names
            the line.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{no_file(path)}: pass the path of a JSON Lines file.")
        self.lines = list(islice(read_lines(self.path), limit))
        if not self.lines:
            raise ValueError(f"{path} has no lines: write one JSON object per line.")
        super().__init__([record for _, record in self.lines], self.path.parent, str(path))
        known: set[str] = set()
        for index, (_, record) in enumerate(self.lines):
            for key, value in record.items():
                if value is None:
                    raise ValueError(f"{self.where(index)}: {key} is null: give it a value, or remove the key.")
            self.messages(index)
            check_video(record, self.where(index))
            check_files(record, self.path.parent, self.where(index), known)

    def where(self, index: int) -> str:
        return f"{self.path} line {self.lines[index][0]}"

    def messages(self, index: int) -> list[Message]:
        _, record = self.lines[index]
        num_images = 1 if "video" in record else None
        return chat_of(record, self.where(index), num_images, VIDEO_KEYS)

    def num_future_frames(self, index: int) -> int | None:
        return None if "video" in self.lines[index][1] else super().num_future_frames(index)

    def __getitem__(self, index: int) -> Sample:
        record = dict(self.lines[index][1])
        if "video" in record:
            record.update(self._frames(record, self.where(index)))
        return to_sample(record, self.where(index), self.folder)

    def _frames(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        """What is seen of a video, and its true future; the keys of the video are removed from the record."""
        path, now, past = self.path.parent / record.pop("video"), record.pop("now", 0), record.pop("past", 0)
        seen, future = split_at(path, now, past, record.pop("stride", None), record.pop("fps", None))
        if past:
            return {"frames": seen, "future_frames": future}
        with naming(where):
            return {"image": seen.load().now, "future_frames": future}


def split_at(
    path: Path | bytes,
    now: int | str | None,
    past: int | str,
    stride: int | str | None,
    fps: float | None,
    count: int = MAX_FRAMES,
) -> tuple[Video, Video]:
    """What is seen of a video, and at most `count` frames of its true future; the keys are those of a record."""
    rate = 1 / seconds_of(stride) if isinstance(stride, str) else None
    step = None if isinstance(stride, str) else stride
    seen = Video(path, FramesUntilNow(past, step, rate), fps=fps, at=now)
    return seen, Video(path, FramesAfterNow(count, step, rate), fps=fps, at=now)


def check_video(record: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError for keys of a video that contradict each other, or that have no video."""
    if "video" not in record:
        alone = [key for key in VIDEO_KEYS if key in record]
        if alone:
            raise ValueError(f"{where}: {alone[0]} is a key of a video, and there is none: add video, or remove it.")
        return
    if not isinstance(record["video"], str):
        raise ValueError(f"{where}: video is {shortened(repr(record['video']))}, and must be the path of a video.")
    now, stride, past = record.get("now", 0), record.get("stride"), record.get("past", 0)
    for name, value, least in (("now", now, 0), ("stride", stride, 1), ("past", past, 0)):
        is_valid = value is None or is_moment(value, least)
        if not is_valid:
            raise ValueError(
                f"{where}: {name} is {value!r}, and must be an integer of at least {least}, or a time as '1.5 s'."
            )
    more = [key for key in PATH_KEYS if key != "video" and record.get(key) is not None]
    if more:
        raise ValueError(
            f"{where} has a video and also {', '.join(more)}: remove one of them, since the image is the video's frame "
            "`now`, and its future are the frames after it."
        )
    if isinstance(stride, int) and isinstance(past, str):
        raise ValueError(f"{where}: past is {past!r} and stride is {stride} frames: give both in seconds or in frames.")
    if isinstance(stride, int) and isinstance(now, int) and now - past * stride < 0:
        raise ValueError(f"{where}: there are no {past} frames before frame {now}: choose a smaller `past`.")


def is_moment(value: Any, least: int) -> bool:
    """Whether a value is a number of frames, of at least `least`, or a time; with `least` above 0 no time of 0."""
    if not isinstance(value, str):
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    try:
        return seconds_of(value) > 0 or least == 0
    except ValueError:
        return False


def check_files(record: Mapping[str, Any], folder: Path, where: str, known: set[str]) -> None:
    """Checks that the images and videos of a record exist, without opening them.

    Args:
        folder: what their paths are relative to.
        known: paths that are known to exist; those of this record are added.

    Raises:
        ValueError: if a file is missing, or the value of a key is not a path or not a list of paths.
    """
    for key in PATH_KEYS:
        if key not in record:
            continue
        value = record[key]
        names = value if isinstance(value, list) else [value]
        fits = (isinstance(value, list) and key in LIST_KEYS) or (isinstance(value, str) and key not in LISTS)
        if not fits or not all(isinstance(name, str) and name for name in names) or (not names and key != "images"):
            wanted = "a list of paths" if key in LISTS else "a path"
            raise ValueError(
                f"{where}: {key} is {shortened(repr(value))}, and must be {wanted}: fix it, or remove the key."
            )
        for name in names:
            if name in known:
                continue
            path = folder / name
            if not (os.path.isfile(path) or (key in ("video", "frames") and os.path.isdir(path))):
                other = other_than_file(path)
                problem = "there is no such file" if other is None else f"it is {other}"
                raise ValueError(f"{where}: {key} names {shortened(str(path))}, and {problem}: fix the path.")
            known.add(name)


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the object of each line that is not empty.

    Raises:
        ValueError: if the file is not UTF-8, or a line is not a JSON object whose keys differ.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"), object_pairs_hook=with_unique_keys)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} line {number} is not valid JSON ({error}): fix or remove it.") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path} line {number} is not a JSON object: write one record per line.")
            check_characters(record, f"{path} line {number}")
            yield number, record


def check_characters(content: Any, where: str) -> None:
    """Raises a ValueError for half of a character, such as `\\ud83d`, which JSON can hold and UTF-8 cannot."""
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(f"{where} holds half of a character ({half}): write the whole character.") from error


def with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which Python would keep the last of several values of a key.

    Raises:
        ValueError: if a key occurs twice.
    """
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return dict(pairs)
