"""What the library reports to its callers: progress, and suggestions in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable

Progress = Callable[[int, int], None]  # called with (steps done, total)
TaskProgress = Callable[[str, int, int], None]  # called with (task, steps done, total)


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """What to do about an unknown name: `did you mean 'x'?`, or `otherwise` (default: a list of the known names)."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose one of {', '.join(names)}." if otherwise is None else otherwise


def shortened(text: str, limit: int = 300) -> str:
    """A text of people for an error message: of a long one, such as the content of a file, the beginning."""
    return text if len(text) <= limit else f"{text[: limit // 2]}… ({len(text):,} characters)"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def enumerate_names(names: Collection[str]) -> str:
    """The first three names, with an ellipsis if there are more."""
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
