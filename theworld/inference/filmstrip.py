"""Mode frames: what was seen before and what is imagined, as further pictures, and words that say which is which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def filmstrip(
    now: Sequence[Any], before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]], question: str
) -> tuple[list[Any], str]:
    """The pictures of one question in the order in which they are shown, and the question, introduced.

    One picture stands between what came before it and what comes after; of several, those of now come first, so that
    the question may call them by their numbers.

    Args:
        now: the question's own pictures, as they are now; at least one.
        before, after: what was seen before and what is imagined after the first pictures of `now`, a list for each, in
            order of time.
    """
    pictures: list[Any] = []
    said: list[str] = []

    def show(some: Sequence[Any], what: str) -> None:
        if some:
            first, last = len(pictures) + 1, len(pictures) + len(some)
            subject = f"Picture {first} shows" if first == last else f"Pictures {first} to {last} show"
            said.append(f"{subject} {what}.")
            pictures.extend(some)

    if len(now) == 1:
        show(before[0], "what was there before, in order of time")
        show(now, "what is there now")
        show(after[0], "what is imagined to happen next, in order of time")
    else:
        show(now, "what is there now")
        for number, (past, future) in enumerate(zip(before, after, strict=True), start=1):
            show(past, f"what was there before picture {number}, in order of time")
            show(future, f"what is imagined to happen after picture {number}, in order of time")
    return pictures, f"{' '.join(said)}\n\n{question}"
