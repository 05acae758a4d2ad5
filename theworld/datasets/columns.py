"""Which column of somebody's rows is what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

# What a column is called where nobody says: the first of these that a row has.
USUAL: dict[str, tuple[str, ...]] = {
    "id": ("id", "idx", "question_id", "sample_id"),
    "images": ("images", "image", "image_1"),
    "video": ("video", "video_path"),
    "question": ("question",),
    "choices": ("choices", "options"),
    "answer": ("answer", "correct_answer"),
    "task": ("task", "sub_task", "category"),
    "prompt": ("prompt",),
    "future_frames": ("future_frames",),
}


@dataclass(frozen=True)
class Fields:
    """Which column is what; None takes the usual names (`USUAL`). A dot leads into a nested object: `qa.Options`.

    Attributes:
        id: unique; the row's number where there is none.
        images: one picture or a list; `image_1` stands for image_1, image_2, … as far as they go.
        video: a video file or a folder of frames, given instead of images.
        question, prompt: a prompt is asked as it is; of a question, a prompt is made.
        choices: a list, or an object of letter and words; where there is none, they are read out of the question's
            lines (`A. …`, `(B) …`), and an answer of yes or no makes a yes/no question.
        answer: a letter, the words of a choice, a number counted from `first_answer`, or true and false.
        task: what scores are broken down by.
        future_frames: pictures after now, at the world model's rate, four a world step; a list, a video or a folder.
        now: name of the frame, among those of a folder, up to which a question sees; later ones are its future.
        only: column and value that rows of the split have, such as split=val.
        first_answer: number of the first choice, where answers are numbers.
        ask: the question of all rows, where there is no column for it.
        strip: a pattern that is taken out of questions, such as placeholders of pictures.
        media: folders, beside the file of the rows, in which pictures and videos are looked for.
        task_pattern: what of `task` counts.
        cut: what is taken off the front of a video's path.
    """

    id: str | None = None
    images: str | None = None
    video: str | None = None
    question: str | None = None
    choices: str | None = None
    answer: str | None = None
    task: str | None = None
    prompt: str | None = None
    future_frames: str | None = None
    now: str | None = None
    only: str | None = None
    first_answer: int = 0
    ask: str | None = None
    strip: str | None = None
    media: tuple[str, ...] = ()
    task_pattern: str | None = None
    cut: str | None = None


def read_fields(text: str) -> Fields:
    """Fields from `question=q,choices=opts`, or from a JSON file of such names.

    Raises:
        ValueError: a name that is no field, or text that is neither.
    """
    known = {field.name for field in fields(Fields)}
    if text.endswith(".json"):
        try:
            given = json.loads(Path(text).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(
                f"There is no file {text!r}; write the fields as NAME=COLUMN,… or check the path."
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{text} is not JSON ({error}); write an object of field and column.") from error
    else:
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(separator and value for _, separator, value in pairs):
            raise ValueError(f"{text!r} is no list of fields; write NAME=COLUMN,NAME=COLUMN.")
        given = {name.strip(): value.strip() for name, _, value in pairs}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"there is no field {unknown[0]!r}; known are {', '.join(sorted(known))}.")
    if "first_answer" in given:
        given["first_answer"] = int(given["first_answer"])
    if "media" in given:
        given["media"] = tuple([given["media"]] if isinstance(given["media"], str) else given["media"])
    return replace(Fields(), **given)


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """A column's value; a dot leads into a nested object. None where it is not there."""
    value: Any = row
    for part in [column] if column in row else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_answers(rows: Sequence[Mapping[str, Any]], fields: Fields, place: str) -> None:
    """Raises a ValueError where no row has a column of answers: a misspelt one is no set with hidden answers.

    Where answers are not published the column is there, and empty or `hidden`.
    """
    names = USUAL["answer"] if fields.answer is None else (fields.answer,)
    if not any(name in row or value_of(row, name) is not None for row in rows for name in names):
        raise ValueError(
            f"no row of {place} has an answer ({' or '.join(names)}); its columns are {', '.join(rows[0])}: name the "
            "right one with --fields answer=COLUMN, or add an empty one where the answers are not known."
        )
