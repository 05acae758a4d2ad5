"""Benchmarks: what can be asked, each one function from a request to items and one line of BENCHMARKS."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from theworld.datasets import blink, multiple_choice
from theworld.datasets.columns import Fields
from theworld.datasets.multiple_choice import ChoiceQuestion
from theworld.datasets.physics import FAMILIES
from theworld.datasets.published import KNOWN_SETS, KnownSet
from theworld.evaluation import physics
from theworld.evaluation.items import Item, check_items

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What is wanted of a benchmark.

    Attributes:
        data: a file, a folder or a Hub id; None is the benchmark's own place.
        split: None is the benchmark's own.
        tasks: some of its tasks; none of them means all.
        limit: most questions in all, the tasks in turn; None asks all (of physics, 300).
        seed: which scenes are drawn, in physics.
        fields: which column is what, for mcq and the sets on top of it.
        config: configuration of a Hub dataset, or a folder inside a folder.
        progress: called with (scenes made, of how many).
    """

    data: str | None = None
    split: str | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    fields: Fields | None = None
    config: str | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Benchmark:
    """One thing that can be asked.

    Attributes:
        meaning: one line for people.
        load: from a request to items.
        split: the split that is asked where none is named.
        families_alike: whether its headline weighs families (sub-tasks) alike, instead of questions.
    """

    meaning: str
    load: Callable[[Request], list[Item]]
    split: str | None
    families_alike: bool = False


def physics_items(request: Request) -> list[Item]:
    if request.data is not None or request.fields is not None:
        raise ValueError("physics makes its scenes itself; leave --data and --fields out.")
    unknown = [task for task in request.tasks if task not in FAMILIES]
    if unknown:
        raise ValueError(f"physics has no family {unknown[0]!r}; choose among {', '.join(FAMILIES)}.")
    split, limit = request.split or "test", 300 if request.limit is None else request.limit
    return physics.pick(split, limit, request.seed, request.progress, request.tasks or FAMILIES)


def blink_items(request: Request) -> list[Item]:
    if request.fields is not None:
        raise ValueError("BLINK's columns are known; leave --fields out, or ask the set as mcq.")
    asked = blink.load_blink(request.data or blink.HUB, request.split or "val", request.tasks)
    return in_turn([to_item(question) for question in asked], request.limit)


def mcq_items(request: Request, known: KnownSet | None = None) -> list[Item]:
    place = request.data or (None if known is None else known.hub)
    if place is None:
        raise ValueError("this benchmark has no place of its own; name a file, a folder or a Hub id with --data.")
    fields = request.fields if request.fields is not None or known is None else known.fields
    split = request.split or (None if known is None else known.split)
    asked = multiple_choice.load_questions(place, fields, split, request.config)
    missing = [task for task in request.tasks if task not in multiple_choice.tasks_of(asked)]
    if missing:
        raise ValueError(
            f"there is no task {missing[0]!r} in {place}; it has {', '.join(multiple_choice.tasks_of(asked))}."
        )
    wanted = [question for question in asked if not request.tasks or question.task in request.tasks]
    return in_turn([to_item(question) for question in wanted], request.limit)


def to_item(question: ChoiceQuestion) -> Item:
    """A multiple-choice or yes/no question as an item."""
    return Item(
        id=question.id,
        family=question.task,
        topic=question.task,
        form="choice" if question.lettered else "free",
        image=question.images,
        question=question.prompt,
        answer=question.answer,
        future=question.future,
        choices=question.choices,
    )


def in_turn(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, their families in turn, evenly spaced inside each; in the order they came in.

    Raises:
        ValueError: a limit below 1.
    """
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit is {limit}; give 1 or more.")
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(item.family, []).append(row)
    wanted = dict.fromkeys(rows, 0)
    left = limit
    while left:
        for family in [name for name in rows if wanted[name] < len(rows[name])][:left]:
            wanted[family] += 1
            left -= 1
    chosen = {
        own[place]
        for family, own in rows.items()
        for place in np.linspace(0, len(own) - 1, wanted[family]).round().astype(int)
    }
    return [items[row] for row in sorted(chosen)]


BENCHMARKS: dict[str, Benchmark] = {
    "physics": Benchmark("what happens next in simulated scenes, by family and horizon", physics_items, "test"),
    "blink": Benchmark("BLINK: fourteen visual tasks, headline the mean over them", blink_items, "val", True),
    "mcq": Benchmark("any multiple-choice or yes/no questions of yours (--data, --fields)", mcq_items, None),
    **{
        name: Benchmark(known.meaning, partial(mcq_items, known=known), known.split)
        for name, known in KNOWN_SETS.items()
    },
}


def load_benchmark(name: str, request: Request) -> list[Item]:
    """Items of a benchmark, checked.

    Raises:
        ValueError: no such benchmark, or questions that cannot be asked.
    """
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose among {', '.join(BENCHMARKS)}."
        raise ValueError(f"there is no benchmark {name!r}; {hint}")
    benchmark = BENCHMARKS[name]
    items = benchmark.load(replace(request, split=request.split or benchmark.split))
    check_items(items)
    return items
