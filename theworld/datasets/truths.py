"""Which choice is the right one: the column of answers, which is read in one way for all rows.

An answer of "2" may be the text of a choice or its number, and "B" its text or its letter. What a column means shows in
all of its rows; where several meanings fit and disagree, only the user knows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
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

    def is_yes_or_no(self) -> bool:
        """Whether the answer of a yes/no question is given in words, which cannot mean anything else."""
        words = sorted(choice.strip().lower() for choice in self.choices)
        return words == ["no", "yes"] and self.text().lower() in words

    def is_hidden(self) -> bool:
        """Whether the answer is not published; "None" is an answer where a choice says so."""
        if isinstance(self.value, float) and math.isnan(self.value):  # an empty cell of a table
            return True
        text = self.value.strip().lower() if isinstance(self.value, str) else None
        names_choice = bool(text) and "texts" in self.readings(0)
        return self.value is None or (text in HIDDEN_ANSWERS and not names_choice)


def read_truths(column: str, answers: Sequence[GivenAnswer], first: int, meaning: str | None = None) -> list[str]:
    """The letter of the right choice in each row, "" where it is not published.

    All rows are read in one way. Only the words yes and no of yes/no questions may be mixed with letters or numbers.

    Args:
        column: name of the column, for errors.
        first: the number of the first choice.
        meaning: one of MEANINGS; None finds it out.

    Raises:
        ValueError: if an answer is none of the choices, if it could be one or another, or if the column mixes texts,
            letters and numbers; the message names the row.
    """
    found = [None if answer.is_hidden() else answer.readings(first) for answer in answers]
    other = [
        readings for readings, answer in zip(found, answers, strict=True) if readings and not answer.is_yes_or_no()
    ]
    fitting = [name for name in MEANINGS if all(name in readings for readings in other)]
    if meaning is not None:
        fitting = [meaning]
    letters = []
    for answer, readings in zip(answers, found, strict=True):
        if readings is None:
            letters.append("")
            continue
        if answer.is_yes_or_no():
            letters.append(readings["texts"])
            continue
        if not readings or meaning not in (None, *readings):
            raise ValueError(f"Row {answer.row_id}: {_unreadable(column, answer, answers, first, meaning)}")
        possible = {name: readings[name] for name in fitting}
        if not possible:
            raise _mixed(column, answers, found)
        if len(set(possible.values())) > 1:
            named = " and ".join(f"the {name[:-1]} of choice {letter}" for name, letter in possible.items())
            ways = " or ".join(f"answers_are={name}" for name in possible)
            raise ValueError(
                f"Row {answer.row_id}: the answer {answer.text()!r} ({column}) could be {named}; say in the fields "
                f"what the answers are, as {ways}."
            )
        letters.append(next(iter(possible.values())))
    return letters


def _unreadable(
    column: str, answer: GivenAnswer, answers: Sequence[GivenAnswer], first: int, meaning: str | None
) -> str:
    """Why an answer is none of the choices of its row, or several of them."""
    text, choices = answer.text(), ", ".join(answer.choices)
    expected = f", as {meaning} (answers_are={meaning})" if meaning is not None else ""
    equal = [LETTERS[i] for i, own in enumerate(answer.choices) if own.strip().lower() == text.lower()]
    if len(equal) > 1 and meaning in (None, "texts"):
        return (
            f"the answer {text!r} ({column}) is the text of the choices {' and '.join(equal)}: give each choice "
            "another text, or the letter as the answer."
        )
    is_last_from_1 = first == 0 and text == str(len(answer.choices)) and meaning in (None, "numbers")
    if is_last_from_1 and all(other.text() != "0" for other in answers):
        return (
            f"the answer {text} ({column}) is none of its {text} choices, which are counted from 0; no answer is 0, so "
            "the numbers seem to count from 1: add first_answer=1 to the fields."
        )
    return f"the answer {text!r} ({column}) is none of its choices{expected} ({choices})."


def _mixed(column: str, answers: Sequence[GivenAnswer], found: Sequence[dict[str, str] | None]) -> ValueError:
    """The error for a column that cannot be read in one way: it names the first row that is not as most rows are."""
    rows = zip(answers, found, strict=True)
    counts = Counter(name for answer, readings in rows if not answer.is_yes_or_no() for name in readings or ())
    usual = max(MEANINGS, key=counts.__getitem__)
    answer, readings = next(
        (answer, readings)
        for answer, readings in zip(answers, found, strict=True)
        if readings and usual not in readings and not answer.is_yes_or_no()
    )
    named = " or ".join(f"the {name[:-1]} of choice {letter}" for name, letter in readings.items())
    return ValueError(
        f"Row {answer.row_id}: the answer {answer.text()!r} ({column}) is {named}, and most answers of the column are "
        f"{usual}: write all of them as {usual}."
    )
