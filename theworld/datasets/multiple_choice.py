"""Multiple-choice and yes/no questions about pictures or videos, from anybody's files.

Rows come from JSON Lines, JSON, parquet, a folder of these, or a dataset on the Hub; `Fields` says which column is
what. Where a row says what really happened after its picture (`future_frames`), oracle futures can be run on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from theworld.datasets.columns import USUAL, Fields, check_answers, value_of
from theworld.datasets.rows import read_rows
from theworld.media.video import FrameSelection, SpacedFrames, StridedFrames, Video, frame_paths

LETTERS = "ABCDEFGHIJ"
SHOWN_FRAMES = SpacedFrames(8)  # what is shown of a video
FUTURE_FRAMES = StridedFrames(count=128)  # what is read of a true future: 32 world steps
VIDEO_FILES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
YES_NO = ("yes", "no")
HIDDEN_ANSWERS = ("", "hidden", "none", "n/a")
ALL = "all"  # task of rows that have none


@dataclass(frozen=True)
class ChoiceQuestion:
    """One row, read.

    Attributes:
        id: unique within the set.
        task: what scores are broken down by.
        images: pictures in any form that `theworld.media.images` takes, or one video.
        prompt: the full text, choices included.
        choices: words of choice A, B, …; of a yes/no question, yes and no.
        answer: the letter of the right choice, "" where it is not published.
        future: pictures after now, or None.
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
    place: str, fields: Fields | None = None, split: str | None = None, config: str | None = None
) -> list[ChoiceQuestion]:
    """The questions of a set, in order.

    Args:
        place: a file (.jsonl, .json, .parquet), a folder with such files, or a dataset's id on the Hub.
        fields: which column is what.
        split: of a folder, the files whose name begins so; of the Hub, the split. None takes all files of a folder.
        config: of the Hub, the configuration; of a folder, a folder inside it.

    Raises:
        ValueError: no such place, or a row without a question, pictures, choices or a readable answer; the sentence
            names the row.
    """
    fields = fields or Fields()
    rows, root = read_rows(place, split, config)
    if fields.only is not None:
        column, _, value = fields.only.partition("=")
        rows = [row for row in rows if str(value_of(row, column)) == value]
    if not rows:
        raise ValueError(
            f"{place} has no rows{f' of split {split!r}' if split else ''}; check the place and the split."
        )
    check_answers(rows, fields, place)
    found = [read_row(row, fields, root, f"{config or split or 'row'}/{number}") for number, row in enumerate(rows)]
    seen: set[str] = set()
    for question in found:
        if question.id in seen:
            raise ValueError(f"{place} has two rows with the id {question.id!r}; give each its own.")
        seen.add(question.id)
    return found


# -------------------------------------------------------------------------------------------------------- one row


def read_row(row: Mapping[str, Any], fields: Fields, root: Path, number: str) -> ChoiceQuestion:
    """One row as a question.

    Args:
        root: the folder that its paths are seen from.
        number: its id, where it has none of its own.
    """

    def get(name: str) -> Any:
        column = vars(fields)[name]
        if column is not None:
            return value_of(row, column)
        return next((row[usual] for usual in USUAL[name] if row.get(usual) is not None), None)

    given = get("id")
    own_id = number if given is None else str(given)
    prompt, question = get("prompt"), fields.ask or get("question")
    if prompt is None and question is None:
        raise ValueError(
            f"row {own_id} has no question; name its column with --fields question=COLUMN (there are {', '.join(row)})."
        )
    question = str(question if question is not None else prompt)
    if fields.strip is not None:
        question = re.sub(fields.strip, "", question, flags=re.S).strip()
    choices, in_question = read_choices(get("choices"), question, get("answer"), own_id)
    lettered = choices != YES_NO
    images, future = read_pictures(row, fields, get, root, own_id)
    task = get("task")
    if task is not None and fields.task_pattern is not None:
        found = re.search(fields.task_pattern, str(task))
        task = found[0] if found else ALL
    return ChoiceQuestion(
        id=own_id,
        task=ALL if task is None else str(task),
        images=images,
        prompt=str(prompt) if prompt is not None else write_prompt(question, choices, in_question, lettered),
        choices=choices,
        answer=read_truth(get("answer"), choices, fields.first_answer, own_id),
        future=future,
        lettered=lettered,
    )


def read_choices(given: Any, question: str, answer: Any, own_id: str) -> tuple[tuple[str, ...], bool]:
    """The words of the choices, and whether they stand in the question itself."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"row {own_id}: its choices are {given!r}, which is no list; give a list of texts."
            ) from error
    if isinstance(given, Mapping):
        given = [given[letter] for letter in sorted(given) if given[letter] is not None]
    if isinstance(given, list | tuple) and given:
        if not 2 <= len(given) <= len(LETTERS):
            raise ValueError(f"row {own_id} has {len(given)} choices; 2 to {len(LETTERS)} are understood.")
        return tuple(re.sub(r"^\(?[A-J][).:]\s+", "", str(choice)) for choice in given), False
    written = re.findall(r"(?m)^[ \t]*\(?([A-J])[).:][ \t]*(.*)$", question)
    if len(written) > 1 and [letter for letter, _ in written] == list(LETTERS[: len(written)]):
        return tuple(words.strip() for _, words in written), True
    if isinstance(answer, bool | np.bool_) or str(answer).strip().lower().rstrip(".") in YES_NO:
        return YES_NO, False
    raise ValueError(f"row {own_id} has no choices; name their column with --fields choices=COLUMN.")


def read_truth(answer: Any, choices: Sequence[str], first: int, own_id: str) -> str:
    """The letter of the right choice, "" where it is not published."""
    letters = LETTERS[: len(choices)]
    if answer is None or (isinstance(answer, str) and answer.strip().lower() in HIDDEN_ANSWERS):
        return ""
    if isinstance(answer, bool | np.bool_):
        answer = "yes" if answer else "no"
    text = str(answer).strip()
    same = [letter for letter, words in zip(letters, choices, strict=True) if words.strip().lower() == text.lower()]
    if len(same) == 1:
        return same[0]
    bare = re.fullmatch(r"\(?([A-Ja-j])[).:]?", text)
    if bare and bare[1].upper() in letters:
        return bare[1].upper()
    number = re.fullmatch(r"\d+", text)
    if number and 0 <= int(text) - first < len(letters):
        return letters[int(text) - first]
    raise ValueError(f"row {own_id}: the answer {text!r} is none of its choices ({', '.join(choices)}).")


def write_prompt(question: str, choices: Sequence[str], in_question: bool, lettered: bool) -> str:
    """The question as it is asked; choices as BLINK lists them."""
    if not lettered:
        return f"{question} Answer yes or no."
    listed = "" if in_question else "\n".join(f"({LETTERS[i]}) {words}" for i, words in enumerate(choices))
    parts = [question, *(["Select from the following choices.", listed] if listed else [])]
    return "\n".join([*parts, "Answer with the letter."])


def read_pictures(
    row: Mapping[str, Any], fields: Fields, get: Any, root: Path, own_id: str
) -> tuple[tuple[Any, ...] | Video, tuple[Any, ...] | Video | None]:
    """The pictures (or the video) of a row, and those of its future."""
    folders = [root / folder for folder in fields.media] or [root]

    def find(name: str) -> Path:
        path = Path(name)
        places = [path] if path.is_absolute() else [folder / path for folder in folders]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise ValueError(f"row {own_id}: there is no picture or video {name!r} in {folders[0]}; check the paths.")
        return found

    def picture(value: Any) -> Any:
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        return find(value) if isinstance(value, str) else value

    def several(value: Any, frames: FrameSelection) -> tuple[Any, ...] | Video:
        if isinstance(value, str) and (Path(value).suffix.lower() in VIDEO_FILES or find(value).is_dir()):
            return Video(find(value), frames)
        given = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        return tuple(
            (
                Video(find(own), frames)
                if isinstance(own, str) and Path(own).suffix.lower() in VIDEO_FILES
                else picture(own)
            )
            for own in given
        )

    future = get("future_frames")
    ahead = None if future is None or (isinstance(future, list) and not future) else several(future, FUTURE_FRAMES)
    shown = get("video")
    if shown is not None:
        name = shown.get("path") if isinstance(shown, Mapping) else shown
        if not isinstance(name, str):
            raise ValueError(f"row {own_id}: its video is {type(name).__name__}; give the path of a file or a folder.")
        if fields.cut is not None:
            name = name.partition(fields.cut)[2] or name
        video = Video(find(name), SHOWN_FRAMES)
        last = None if fields.now is None else value_of(row, fields.now)
        if last is not None and video.source.is_dir():
            try:
                frames = frame_paths(video.source)
            except ValueError as error:
                raise ValueError(f"row {own_id}: {error}") from error
            video, rest = replace(video, until=str(last)), Video(video.source, FUTURE_FRAMES, after=str(last))
            ahead = rest if ahead is None and frames[-1].stem != rest.after else ahead
        return video, ahead
    given = _numbered_images(
        row, fields.images or next((name for name in USUAL["images"] if row.get(name) is not None), "")
    )
    if given is None or (isinstance(given, list | tuple) and not given):
        raise ValueError(f"row {own_id} has no picture; name its column with --fields images=COLUMN (or video=COLUMN).")
    return several(given, SHOWN_FRAMES), ahead


def _numbered_images(row: Mapping[str, Any], column: str) -> Any:
    """A column's pictures; `image_1` stands for image_1, image_2, … as far as they go."""
    if not column.endswith("_1"):
        return value_of(row, column)
    stem = column[:-1]
    numbered = (row.get(f"{stem}{number}") for number in range(1, len(LETTERS) + 1))
    return [picture for picture in numbered if picture is not None]


def tasks_of(questions: Iterable[ChoiceQuestion]) -> list[str]:
    """The tasks, in order of their first question."""
    return list(dict.fromkeys(question.task for question in questions))
