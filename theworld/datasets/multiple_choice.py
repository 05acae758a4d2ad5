"""Multiple-choice and yes/no questions about images or videos, from user-provided files.

Rows come from JSON Lines, JSON, parquet, a folder of these, or a dataset on the Hub; `Fields` maps their columns. If a
row contains what really happened after its image (`future_frames`), oracle futures can be evaluated on it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from theworld.datasets.columns import USUAL, Fields, answer_column, cell, value_of
from theworld.datasets.jsonl import check_video, is_moment, split_at
from theworld.datasets.rows import read_rows
from theworld.datasets.samples import naming
from theworld.datasets.truths import LETTERS, GivenAnswer, read_truths
from theworld.media.selection import FramesAfterNow, FrameSelection, SpacedFrames, check_rate
from theworld.media.video import Video, frame_paths
from theworld.messages import shortened

SHOWN_FRAMES = SpacedFrames(8)  # what is shown of a video
FUTURE_FRAMES = FramesAfterNow(128)  # what is read of a true future, at the world model's rate: 32 world steps
VIDEO_FILES = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".gif", ".apng")
YES_NO = ("yes", "no")
MOMENTS = ("now", "past", "stride")  # fields that say which frames of a video are seen
ALL = "all"  # the task of rows without one


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question.

    Attributes:
        id: unique within the set.
        task: what scores are broken down by.
        images: images in any form that `theworld.media.images` takes, and videos, or one video.
        prompt: the full text, choices included.
        choices: the text of choice A, B, …; of a yes/no question, yes and no.
        answer: the letter of the right choice, "" if it is not published.
        future: the images after now, or None.
        lettered: whether the prompt asks for a letter; a yes/no question does not.
    """

    id: str
    task: str
    images: tuple[Any, ...] | Video
    prompt: str
    choices: tuple[str, ...]
    answer: str
    future: tuple[Any, ...] | Video | None = None
    lettered: bool = True


def load_questions(
    source: str, fields: Fields | None = None, split: str | None = None, config: str | None = None
) -> list[ChoiceQuestion]:
    """Reads the questions of a set, in order.

    Args:
        source: a file (.jsonl, .json, .parquet), a folder with such files, or the id of a Hub dataset.
        fields: the column of each field.
        split: of a folder, the files whose name begins with it; of the Hub, the split. None takes all files of a
            folder.
        config: of the Hub, the configuration; of a folder, a folder inside it.

    Raises:
        ValueError: if there is no such set, or if a row has no question, images, choices or readable answer; the
            message names the row.
    """
    fields = fields or Fields()
    rows, root = read_rows(source, split, config)
    if fields.only is not None:
        column, _, value = fields.only.partition("=")
        rows = [row for row in rows if str(value_of(row, column)) == value]
    if not rows:
        raise ValueError(
            f"{source} has no rows{f' of split {split!r}' if split else ''}: check the path and the split."
        )
    column = answer_column(rows, fields, source)
    questions = [read_row(row, fields, root, f"{config or split or 'row'}/{number}") for number, row in enumerate(rows)]
    given = [GivenAnswer(q.id, cell(row, fields, "answer"), q.choices) for q, row in zip(questions, rows, strict=True)]
    truths = read_truths(column, given, fields.first_answer, fields.answers_are)
    questions = [replace(question, answer=truth) for question, truth in zip(questions, truths, strict=True)]
    for row_id, count in Counter(question.id for question in questions).items():
        if count > 1:
            raise ValueError(f"{source} has two rows with the id {row_id!r}: ids must be unique.")
    return questions


# -------------------------------------------------------------------------------------------------------- one row


def read_row(row: Mapping[str, Any], fields: Fields, root: Path, number: str) -> ChoiceQuestion:
    """Reads one row as a question, without its answer.

    Args:
        root: the folder that its paths are relative to.
        number: its id if the row has none.
    """

    def get(name: str) -> Any:
        return cell(row, fields, name)

    given = get("id")
    row_id = number if given is None else str(given)
    prompt, question = get("prompt"), fields.ask or get("question")
    if prompt is None and question is None:
        raise ValueError(
            f"Row {row_id} has no question: name its column in the fields, as question=COLUMN (the columns are "
            f"{', '.join(row)})."
        )
    question = str(question if question is not None else prompt)
    if fields.strip is not None:
        question = re.sub(fields.strip, "", question, flags=re.S).strip()
    choices, in_question = read_choices(get("choices"), question, get("answer"), row_id)
    lettered = choices != YES_NO
    images, future = read_images(row, fields, get, root, row_id)
    task = get("task")
    if task is not None and fields.task_pattern is not None:
        found = re.search(fields.task_pattern, str(task))
        task = found[0] if found else ALL
    return ChoiceQuestion(
        id=row_id,
        task=ALL if task is None else str(task),
        images=images,
        prompt=str(prompt) if prompt is not None else write_prompt(question, choices, in_question, lettered),
        choices=choices,
        answer="",
        future=future,
        lettered=lettered,
    )


def read_choices(given: Any, question: str, answer: Any, row_id: str) -> tuple[tuple[str, ...], bool]:
    """The text of the choices, and whether the question itself lists them."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"Row {row_id}: its choices are {given!r}, and must be a list of texts.") from error
    if isinstance(given, Mapping):
        given = [given[letter] for letter in sorted(given) if given[letter] is not None]
    if isinstance(given, list | tuple) and given:
        if not 2 <= len(given) <= len(LETTERS):
            raise ValueError(f"Row {row_id} has {len(given)} choices, and must have 2 to {len(LETTERS)}.")
        texts = [str(choice) for choice in given]
        lettered = [re.match(rf"\(?{letter}[).:]\s+", text) for letter, text in zip(LETTERS, texts)]  # noqa: B905
        return (
            tuple(
                text[found.end() :] if found and all(lettered) else text
                for found, text in zip(lettered, texts, strict=True)
            ),
            False,
        )
    written = re.findall(r"(?m)^[ \t]*\(?([A-J])[).:][ \t]*(.*)$", question)
    if len(written) > 1 and [letter for letter, _ in written] == list(LETTERS[: len(written)]):
        return tuple(text.strip() for _, text in written), True
    if isinstance(answer, bool | np.bool_) or str(answer).strip().lower().rstrip(".") in YES_NO:
        return YES_NO, False
    raise ValueError(f"Row {row_id} has no choices: name their column in the fields, as choices=COLUMN.")


def write_prompt(question: str, choices: Sequence[str], in_question: bool, lettered: bool) -> str:
    """The prompt of a question, with choices listed as in BLINK."""
    if not lettered:
        return f"{question} Answer yes or no."
    listed = "" if in_question else "\n".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(choices))
    parts = [question, *(["Select from the following choices.", listed] if listed else [])]
    return "\n".join([*parts, "Answer with the letter."])


def read_images(
    row: Mapping[str, Any], fields: Fields, get: Any, root: Path, row_id: str
) -> tuple[tuple[Any, ...] | Video, tuple[Any, ...] | Video | None]:
    """The images (or the video) of a row, and those of its future."""
    folders = [root / folder for folder in fields.media] or [root]

    def find(name: str) -> Path:
        if not name:
            raise ValueError(f"Row {row_id}: the path of an image or a video is empty: name a file, or leave it out.")
        found = next((path for folder in folders if os.path.exists(path := folder / name)), None)
        if found is None:
            raise ValueError(
                f"Row {row_id}: there is no image or video {shortened(name)!r} in {folders[0]}: check the paths."
            )
        return found

    def image(value: Any) -> Any:
        value = encoded(value)
        return find(value) if isinstance(value, str) else value

    def several(value: Any, frames: FrameSelection) -> tuple[Any, ...] | Video:
        is_future = frames is FUTURE_FRAMES
        if isinstance(value, str) and (is_future or is_video(value) or find(value).is_dir()):  # or a WebP animation
            return Video(find(value), frames, fps=fps)
        entries = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        if is_future and not any(map(is_video, entries)):
            return Video([image(entry) for entry in entries], frames, fps=fps)
        return tuple(Video(find(entry), frames, fps=fps) if is_video(entry) else image(entry) for entry in entries)

    fps = get("fps")
    with naming(f"Row {row_id}"):
        check_rate(fps)
    moments = {name: get(name) for name in MOMENTS if get(name) not in (None, "")}
    given = get("future_frames")
    is_empty = given is None or (isinstance(given, list | str) and not given)
    future = None if is_empty else several(given, FUTURE_FRAMES)
    shown = get("video")
    if shown is not None and shown != "":  # tables fill a column with empty texts
        source = encoded(shown)
        if not isinstance(source, str | bytes):
            raise ValueError(
                f"Row {row_id}: its video has type {type(source).__name__}: give the path of a file or a folder."
            )
        if fields.cut is not None and isinstance(source, str):
            source = source.partition(fields.cut)[2] or source
        seen, rest = read_video(
            find(source) if isinstance(source, str) else source, moments, fps, future is None, f"Row {row_id}"
        )
        return seen, rest if future is None else future
    check_video(moments, f"Row {row_id}")
    column = fields.images or next((name for name in USUAL["images"] if row.get(name) is not None), "")
    given = _numbered_images(row, column)
    if given is None or (isinstance(given, list | tuple) and not given):
        raise ValueError(
            f"Row {row_id} has no image: name its column in the fields, as images=COLUMN (or video=COLUMN)."
        )
    return several(given, SHOWN_FRAMES), future


def read_video(
    source: Path | bytes, moments: Mapping[str, Any], fps: float | None, needs_future: bool, where: str
) -> tuple[Video, Video | None]:
    """What is seen of a video, and what follows it.

    Args:
        moments: its `now`, `past` and `stride`, where they are given.
        needs_future: whether what follows is wanted.
        where: begins errors.

    Raises:
        ValueError: if these are not valid, or `stride` would not be used.
    """
    now, past, stride = (moments.get(name) for name in MOMENTS)
    num_frames = None
    if isinstance(source, Path) and source.is_dir():
        with naming(where):
            names = [frame.stem for frame in frame_paths(source)]
        num_frames = len(names)
        now = names.index(now) if now in names else now
        if isinstance(now, str) and not is_moment(now, 0):
            raise ValueError(f"{where}: {str(source)!r} has no frame {now!r} among its {num_frames}: check the name.")
    check_video({**moments, "video": "", "now": now}, where)
    is_future_known = needs_future and now is not None and now != (num_frames or 0) - 1
    if stride is not None and past is None and not is_future_known:
        raise ValueError(
            f"{where}: stride is {stride!r}, and there is no past or future to apply it to: add past or now."
        )
    seen, rest = split_at(source, now, past or 0, stride, fps, FUTURE_FRAMES.count)
    return seen if past is not None else Video(source, SHOWN_FRAMES, fps=fps, at=now), rest if is_future_known else None


def encoded(value: Any) -> Any:
    """The content or the path of an image or a video that `datasets` has not decoded; anything else unchanged."""
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        return value["bytes"] if value.get("bytes") is not None else value.get("path")
    return value


def is_video(value: Any) -> bool:
    """Whether a value is a path with the ending of a video file."""
    return isinstance(value, str) and Path(value).suffix.lower() in VIDEO_FILES


def _numbered_images(row: Mapping[str, Any], column: str) -> Any:
    """The images of a column; `image_1` reads image_1, image_2, … up to the last one that exists."""
    if not column.endswith("_1"):
        return value_of(row, column)
    stem = column[:-1]
    numbered = (row.get(f"{stem}{number}") for number in range(1, len(LETTERS) + 1))
    return [image for image in numbered if image is not None]


def tasks_of(questions: Iterable[ChoiceQuestion]) -> list[str]:
    """The tasks, in order of their first question."""
    return list(dict.fromkeys(question.task for question in questions))
