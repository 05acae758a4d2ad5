"""Samples out of a JSON Lines file: one record a line, pictures and videos by path.

    {"image": "a.png", "text": "What is this?", "label": "A cat"}
    {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"},
     {"type": "text", "text": "Which is older?"}]}, {"role": "assistant", "content": "The first."}]}
    {"video": "pour.mp4", "now": 12, "text": "Will it spill?", "label": "yes"}

A `video` stands for the picture at frame `now` (0 when left out) and the true frames after it, of which every
`stride`-th is taken; with `past`, so many frames before the picture are seen as well. Paths are relative to the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from theworld.datasets.samples import Message, Sample, TheWorldDataset, chat_of, to_sample
from theworld.datasets.videos import read_frames

VIDEO_KEYS = ("video", "now", "stride", "past")
MAX_FUTURE_FRAMES = 64  # read of one video: 16 world steps


class JsonlDataset(TheWorldDataset):
    """The records of a file; its lines are checked when it is opened, its pictures are read when they are needed.

    Args:
        path: the file.
        limit: at most so many lines.

    Raises:
        ValueError: no such file, or a line that is no record; it says which.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int | None = None) -> None:
        self.path = Path(path)
        self.lines = list(read_lines(self.path, limit))
        if not self.lines:
            raise ValueError(f"{path} has no lines; write one JSON object a line.")
        super().__init__([record for _, record in self.lines], self.path.parent, str(path))
        for index in range(len(self)):
            self.messages(index)

    def where(self, index: int) -> str:
        return f"{self.path} line {self.lines[index][0]}"

    def messages(self, index: int) -> list[Message]:
        _, record = self.lines[index]
        pictures = 1 if "video" in record else None
        return chat_of(
            {key: value for key, value in record.items() if key not in VIDEO_KEYS}, self.where(index), pictures
        )

    def __getitem__(self, index: int) -> Sample:
        record = dict(self.lines[index][1])
        if "video" in record:
            record.update(self._frames(record, self.where(index)))
        return to_sample(record, self.where(index), self.folder)

    def _frames(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        """Picture and true future of a video; takes its keys out of the record."""
        video, now, stride = record.pop("video"), record.pop("now", 0), record.pop("stride", 1)
        past = record.pop("past", 0)
        for name, value, least in (("now", now, 0), ("stride", stride, 1), ("past", past, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{where}: {name} is {value!r}; give a whole number, {least} or more.")
        if {"image", "images", "frames"} & set(record):
            raise ValueError(f"{where} has a video and a picture; the picture is the video's frame `now`.")
        first = now - past * stride
        if first < 0:
            raise ValueError(f"{where}: there are no {past} frames before frame {now}; give a smaller past.")
        frames = read_frames(self.path.parent / video, first, stride, past + 1 + MAX_FUTURE_FRAMES)
        if len(frames) <= past:
            raise ValueError(f"{where}: the video ends before frame {now}; give a smaller `now`.")
        seen = {"frames": frames[: past + 1]} if past else {"image": frames[0]}
        return {**seen, "future_frames": frames[past + 1 :]}


def read_lines(path: Path, limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line that is not empty.

    Raises:
        ValueError: no such file, or a line that holds no JSON object.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}; give the path of a JSON Lines file.")
    count = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if count == limit:
                return
            count += 1
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not valid JSON ({error}); mend or remove it.") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path} line {number} is no JSON object; write one record a line.")
            yield number, record
