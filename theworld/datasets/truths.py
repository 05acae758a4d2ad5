"""Which choice is the right one: the column of answers, which is read in one way for all rows.

An answer of "2" may be the text of a choice or its number, and "B" its text or its letter. What a column means shows in
all of its rows; where several meanings fit and disagree, only the user knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theworld.datasets.columns import MEANINGS

LETTERS = "ABCDEFGHIJ"
HIDDEN_ANSWERS = ("", "hidden", "none", "n/a")


@dataclass(frozen=True)
class GivenAnswer:
    """The cell of one row: its id, what it holds, and the choices of the row."""

    row_id: str
    value: Any
    choices: Sequence[str]

    def readings(self, first: int) -> dict[str, str]:
        """Meaning -> letter of the choice, for each meaning that the cell can have.

        Args:
            first: the number of the first choice.
        """
        letters, text = LETTERS[: len(self.choices)], self.text()
        found = {}
        for fold in (str, str.lower):  # case counts only if it must
            same = [
                letter for letter, own in zip(letters, self.choices, strict=True) if fold(own.strip()) == fold(text)
            ]
            if len(same) == 1 and "texts" not in found:
                found["texts"] = same[0]
        bare = re.fullmatch(r"\(?([A-Ja-j])[).:]?", text)
        if bare and bare[1].upper() in letters:
            found["letters"] = bare[1].upper()
        if re.fullmatch(r"\d+", text) and 0 <= int(text) - first < len(letters):
            found["numbers"] = letters[int(text) - first]
        return found

    def text(self) -> str:
        if isinstance(self.value, bool | np.bool_):
            words = ("no", "yes") if {"no", "yes"} & {choice.strip().lower() for choice in self.choices} else ()
            return (words or ("false", "true"))[bool(self.value)]
        if isinstance(self.value, float) and self.value.is_integer():  # tables with an empty cell hold numbers as 1.0
            return str(int(self.value))
        return str(self.value).strip()

    def is_hidden(self) -> bool:
        """Whether the answer is not published; "None" is an answer where a choice says so."""
        if isinstance(self.value, float) and math.isnan(self.value):  # an empty cell of a table
            return True
        text = self.value.strip().lower() if isinstance(self.value, str) else None
        names_choice = bool(text) and "texts" in self.readings(0)
        return self.value is None or (text in HIDDEN_ANSWERS and not names_choice)


def read_truths(column: str, answers: Sequence[GivenAnswer], first: int, meaning: str | None = None) -> list[str]:
    """The letter of the right choice in each row, "" where it is not published.

    Args:
        column: name of the column, for errors.
        first: the number of the first choice.
        meaning: one of MEANINGS; None finds it out.

    Raises:
        ValueError: if an answer is none of the choices, or if it could be one or another; the message names the row.
    """
    found = [None if answer.is_hidden() else answer.readings(first) for answer in answers]
    fitting = [name for name in MEANINGS if all(name in readings for readings in found if readings is not None)]
    if meaning is not None:
        fitting = [meaning]
    letters = []
    for answer, readings in zip(answers, found, strict=True):
        if readings is None:
            letters.append("")
            continue
        # a column that mixes letters and texts is read row by row
        possible = {name: readings[name] for name in fitting or readings if name in readings}
        if not possible:
            expected = f", as {meaning} (answers_are={meaning})" if meaning is not None else ""
            raise ValueError(
                f"Row {answer.row_id}: the answer {answer.text()!r} ({column}) is none of its choices{expected} "
                f"({', '.join(answer.choices)})."
            )
        if len(set(possible.values())) > 1:
            named = " and ".join(f"the {name[:-1]} of choice {letter}" for name, letter in possible.items())
            ways = " or ".join(f"answers_are={name}" for name in possible)
            raise ValueError(
                f"Row {answer.row_id}: the answer {answer.text()!r} ({column}) could be {named}; say in the fields "
                f"what the answers are, as {ways}."
            )
        letters.append(next(iter(possible.values())))
    return letters
