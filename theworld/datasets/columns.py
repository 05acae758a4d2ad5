"""Column mapping of user-provided question files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from theworld.messages import suggest
from theworld.storage.files import no_file, read_json_file

MEANINGS = ("texts", "letters", "numbers")  # what answers can be
# Usual names of each column; the first that a row has is used if the user names none.
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
    "fps": ("fps",),
    "now": ("now",),
    "past": ("past",),
    "stride": ("stride",),
}


@dataclass(frozen=True)
class Fields:
    """The column of each field; None takes the usual names (`USUAL`). A dot reads a nested object: `qa.Options`.

    Attributes:
        id: unique; the number of the row if there is none.
        images: one image or a list; `image_1` reads image_1, image_2, … up to the last one that exists.
        video: a video file or a folder of frames, instead of images.
        question, prompt: a prompt is passed to the model unchanged; a question is completed to a prompt.
        choices: a list, or an object of letters and texts. Without it, the choices are read from the question's lines
            (`A. …`, `(B) …`), and an answer of yes or no makes a yes/no question.
        answer: a letter, the text of a choice, a number counted from `first_answer`, or true and false.
        answers_are: texts, letters or numbers; without it the rows show which, and an error names a row where several
            fit and disagree.
        task: what scores are broken down by.
        future_frames: images after now; a list, a video or a folder. They are read at the world model's rate, four per
            world step.
        fps: frames per second of videos and future frames; None reads them from the files.
        now: the moment of a video that the question is asked at, as the number of a frame, as a time ("1.5 s"), or as
            the name of a frame of a folder; later frames are its future. None takes the last frame.
        past: how many frames before now the world model sees, or their time; the language model then sees the frame
            that is now. None shows the language model some frames up to now.
        stride: every how many frames of the video `past` and the future take one, or the time between two; None takes
            the world model's rate.
        only: a column and value that rows of the split have, such as split=val.
        first_answer: the number of the first choice, if answers are numbers.
        ask: the question of all rows, if there is no column for it.
        strip: a pattern that is removed from questions, such as placeholders of images.
        media: folders, relative to the file, in which images and videos are searched.
        task_pattern: the part of `task` that is used.
        cut: what is removed from the start of a video's path.
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
    fps: str | None = None
    now: str | None = None
    past: str | None = None
    stride: str | None = None
    only: str | None = None
    first_answer: int = 0
    answers_are: str | None = None
    ask: str | None = None
    strip: str | None = None
    media: tuple[str, ...] = ()
    task_pattern: str | None = None
    cut: str | None = None


def read_fields(text: str) -> Fields:
    """Reads fields from text such as `question=q,choices=opts`, or from a JSON file with such names.

    Raises:
        ValueError: if a name is not a field, or if the text is neither.
    """
    known = {field.name for field in fields(Fields)}
    if text.endswith(".json"):
        if not Path(text).is_file():
            raise ValueError(f"{no_file(text)}: write the fields as NAME=COLUMN,… or check the path.")
        given = read_json_file(text, "write an object of fields and columns")
    else:
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(separator and value for _, separator, value in pairs):
            raise ValueError(f"{text!r} is not a list of fields: write NAME=COLUMN,NAME=COLUMN.")
        given = {name.strip(): value.strip() for name, _, value in pairs}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"There is no field {unknown[0]!r}; {suggest(unknown[0], sorted(known))}")
    if "first_answer" in given:
        if not re.fullmatch(r"[0-9]+", str(given["first_answer"])):
            raise ValueError(f"first_answer is {given['first_answer']!r}, and must be the number of the first choice.")
        given["first_answer"] = int(given["first_answer"])
    if given.get("answers_are", MEANINGS[0]) not in MEANINGS:
        raise ValueError(
            f"answers_are is {given['answers_are']!r}; it must be {', '.join(MEANINGS[:-1])} or {MEANINGS[-1]}."
        )
    if "media" in given:
        given["media"] = tuple([given["media"]] if isinstance(given["media"], str) else given["media"])
    return Fields(**given)


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or None; a dot reads a nested object."""
    value: Any = row
    for part in [column] if column in row else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def cell(row: Mapping[str, Any], fields: Fields, name: str) -> Any:
    """What a row has for the field `name`: the value of the column that the user names, or of a usual one; or None."""
    column = vars(fields)[name]
    if column is not None:
        return value_of(row, column)
    return next((row[usual] for usual in USUAL[name] if row.get(usual) is not None), None)


def answer_column(rows: Sequence[Mapping[str, Any]], fields: Fields, source: str) -> str:
    """The name of the column of answers.

    Raises:
        ValueError: if no row has it, so that it is probably misspelt. If answers are not published, the column exists
            and is empty or `hidden`.
    """
    names = USUAL["answer"] if fields.answer is None else (fields.answer,)
    found = next((n for row in rows for n in names if n in row or value_of(row, n) is not None), None)
    if found is None:
        raise ValueError(
            f"No row of {source} has an answer ({' or '.join(names)}); its columns are {', '.join(rows[0])}: name the "
            "right one in the fields, as answer=COLUMN, or add an empty one if the answers are not known."
        )
    return found
