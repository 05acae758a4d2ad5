"""Benchmarks and their items: each benchmark is one function from a request to items and one entry of BENCHMARKS."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from theworld.datasets import blink, multiple_choice
from theworld.datasets.columns import Fields
from theworld.datasets.jsonl import JsonlDataset
from theworld.datasets.multiple_choice import ChoiceQuestion
from theworld.datasets.physics import FAMILIES
from theworld.datasets.published import KNOWN_SETS, KnownSet
from theworld.evaluation.answer_parser import LETTERS
from theworld.evaluation.training_format import SampleMedia, load_clip, question_of
from theworld.inference.prompting import Chat, Question
from theworld.media.animations import load_still
from theworld.media.images import load_image
from theworld.media.selection import FramesUntilNow
from theworld.media.video import Video
from theworld.messages import Progress, counted, enumerate_names, suggest
from theworld.model.configuration import TheWorldConfig

LABEL = "label"  # the form of questions whose answer is the label of a training sample
HIDDEN = ""  # the answer of a question whose true answer is not published


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark.
        family: sub-task, by which scores are broken down.
        topic: what the question is about.
        form: "free", "choice", or "label" of a training sample, whose likelihood is measured as well.
        image: an image in any form that `theworld.media.images` takes, a tuple or list of them, a `Video`, whose last
            frame is the present, or the `SampleMedia` of a training sample. A `Video` of `FramesUntilNow` is a clip:
            the world model reads it, and the language model sees its last frame.
        question: the full prompt text.
        answer: the exact correct answer, with `choices` its letter; HIDDEN if it is not published.
        legal: every answer that is understood; anything else counts as wrong and as unparsed.
        now_form: the same question about the last frame as a state, or None.
        frames: true frames (F, H, W, 3) from the present on, at the world model's frame rate, or None.
        future: the true future without the present, as images or a video that are read when needed, or None.
        choices: the text of choice A, B, …; answers are then read by `read_choice`. Empty: answers must match exactly.
        horizon: world steps until the outcome is visible, or None if unknown.
        chat: the question as a chat, if it is more than one turn with a text after all images.
        world_prompt: what the imagined future shows; "" for none.
    """

    id: str
    family: str
    topic: str
    form: str
    image: Any
    question: str
    answer: str
    legal: frozenset[str] = frozenset()
    now_form: str | None = None
    frames: np.ndarray | None = None
    future: tuple[Any, ...] | Video | SampleMedia | None = None
    choices: tuple[str, ...] = ()
    horizon: int | None = None
    chat: Chat | None = None
    world_prompt: str = ""

    @property
    def asked(self) -> Question:
        """What the model is asked."""
        return self.question if self.chat is None else self.chat

    def images(self, config: TheWorldConfig | None = None) -> list[Any]:
        """The images of the question, decoded and in order; of a video, some of its frames, and clips as `Video`.

        Args:
            config: reads clips at the rate of this model; None reads the last frame of each.

        Raises:
            ValueError: if one cannot be read; the message names the item.
        """
        with self.named():
            if isinstance(self.image, SampleMedia):
                return self.image.images(config)
            entries = list(self.image) if isinstance(self.image, list | tuple) else [self.image]
            return [
                image
                for entry in entries
                for image in ([load_clip(entry, config)] if is_clip(entry) else map(load_still, _frames_of(entry)))
            ]

    def world_images(
        self, use_all: bool, images: Sequence[Any] | None = None, config: TheWorldConfig | None = None
    ) -> list[Any]:
        """The images that the world model starts from: the first, or all with `use_all`; of a video its last frame.

        Args:
            images: those of the item, if they are decoded already.
            config: as in `images`.
        """
        images = self.images(config) if images is None else list(images)
        if isinstance(self.image, SampleMedia):
            return images if use_all else images[:1]
        entries = list(self.image) if isinstance(self.image, list | tuple) else [self.image]
        if any(isinstance(entry, Video) for entry in entries):  # earlier frames are not the present
            lengths = [1 if is_clip(entry) else len(_frames_of(entry)) for entry in entries]
            images = [images[last - 1] for last in itertools.accumulate(lengths)]
        return images if use_all else images[:1]

    def true_frames(self, config: TheWorldConfig | None = None, count: int | None = None) -> Sequence[Any] | np.ndarray:
        """True frames, the present first; empty if there are none. Errors as in `images`.

        Args:
            config: reads a video at the rate of this model; None takes all of its frames.
            count: how many frames are needed of files and images; None takes all. An array is returned as it is.
        """
        if self.future is None:
            return () if self.frames is None else self.frames
        limit = None if count is None else count - 1
        with self.named():
            if isinstance(self.future, SampleMedia):
                future = self.future.future(config, limit)
            elif config is not None and limit is not None and isinstance(self.future, Video):
                future = config.read_future(self.future, limit)
            else:
                future = [load_image(image) for image in _frames_of(self.future)[:limit]]
        if not future:
            return ()
        now = self.world_images(use_all=False, config=config)[0]
        return [now.now if isinstance(now, Video) else now, *future][:count]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within the context, errors of files name the item."""
        try:
            yield
        except (ValueError, OSError) as error:
            prefix = f"{self.where}: "
            raise ValueError(prefix + str(error).removeprefix(prefix)) from error

    @property
    def where(self) -> str:
        """Where the item is, for errors: its id, or the file and the line of a training sample."""
        return self.image.where if isinstance(self.image, SampleMedia) else self.id

    def check_past(self, images: Sequence[Any], config: TheWorldConfig) -> None:
        """Raises a ValueError that names the item if a model cannot read the past of one of its decoded images."""
        with self.named():
            for image in images:
                if isinstance(image, Video):
                    config.past_steps_of(image.num_frames)

    @property
    def options(self) -> tuple[str, ...]:
        """The answers whose likelihoods are compared: the letters of the choices, or all legal answers."""
        if self.form == "choice" and self.choices:
            return tuple(LETTERS[: len(self.choices)])
        return self.choices or tuple(sorted(self.legal))


def is_clip(entry: Any) -> bool:
    """Whether the language model sees only the last frame of a video, and the world model also those before it."""
    return isinstance(entry, Video) and isinstance(entry.selection, FramesUntilNow)


def _frames_of(images: Any) -> list[Any]:
    """An image, or the images of a list, with each video replaced by its selected frames."""
    entries = list(images) if isinstance(images, list | tuple) else [images]
    frames = [entry.load().frames if isinstance(entry, Video) else (entry,) for entry in entries]
    return [frame for entry in frames for frame in entry]


def image_key(image: Any) -> str:
    """A hash of the pixels of an image or a clip: equal pixels, equal key."""
    frames = [np.asarray(frame) for frame in (image.frames if isinstance(image, Video) else [load_image(image)])]
    content = b"".join(pixels.tobytes() + repr(pixels.shape).encode() for pixels in frames)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint(items: Sequence[Item]) -> str:
    """A hash of the items' ids, prompts, choices and answers, in order; images are identified by the ids."""
    content = [[item.id, item.question, list(item.choices), item.answer] for item in items]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()


def check_items(items: Sequence[Item]) -> None:
    """Raises a ValueError for items that cannot be scored: none, duplicate ids, an answer outside the choices."""
    if not items:
        raise ValueError("The benchmark has no questions; check the split, the tasks and the data.")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"Two questions have the id {item.id!r}; ids must be unique.")
        seen.add(item.id)
        if item.choices and item.answer != HIDDEN and item.answer not in tuple(LETTERS[: len(item.choices)]):
            raise ValueError(f"{item.id}: the answer {item.answer!r} is not one of its {len(item.choices)} choices.")
    hidden = [item.id for item in items if item.answer == HIDDEN]
    if hidden and len(hidden) < len(items):
        raise ValueError(
            f"{counted(len(hidden), 'question')} of {len(items)} without an answer ({enumerate_names(hidden)}), and "
            "the others have one; add the missing answers, or evaluate them separately."
        )


def other_images(
    items: Sequence[Item], seed: int, use_all: bool = False, config: TheWorldConfig | None = None
) -> list[list[Any]]:
    """For each image that the world model starts from, an image of another item, of the same family if it has two.

    Args:
        seed: every image gets one other image, sampled with this seed; no image gets itself.
        use_all, config: as in `Item.world_images`.

    Raises:
        ValueError: if all items have the same image.
    """
    images = [[(image_key(image), image) for image in item.world_images(use_all, None, config)] for item in items]
    families: dict[str, dict[str, Any]] = {}
    by_key: dict[str, Any] = {}
    for entry, item in zip(images, items, strict=True):
        families.setdefault(item.family, {}).update(entry)
        by_key.update(entry)
    if len(by_key) < 2:
        raise ValueError("Another image's future needs a second image; evaluate more questions (a larger limit).")
    following = {name: _cycle(members, seed) for name, members in families.items() if len(members) > 1}
    following_any = _cycle(by_key, seed)
    return [
        [by_key[following.get(item.family, following_any)[key]] for key, _ in entry]
        for entry, item in zip(images, items, strict=True)
    ]


def _cycle(images: dict[str, Any], seed: int) -> dict[str, str]:
    """One cycle through all images in random order, so that none follows itself."""
    order = [sorted(images)[i] for i in np.random.default_rng(seed).permutation(len(images))]
    return dict(zip(order, [*order[1:], order[0]], strict=True))


# ---------------------------------------------------------------------------------------------------------- benchmarks


@dataclass(frozen=True)
class Request:
    """What is requested of a benchmark.

    Attributes:
        data: a file, a folder or a Hub id; None means the benchmark's own data.
        split: None means the benchmark's default split.
        tasks: names of its tasks; empty means all.
        limit: maximum number of questions, spread evenly over the tasks; None means all (300 for physics).
        seed: of the scenes, for physics.
        fields: column names, for mcq and the benchmarks based on it.
        config: configuration of a Hub dataset, or a folder inside a folder.
        progress: called with (scenes generated, total).
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
    """One benchmark.

    Attributes:
        meaning: one line of help.
        load: from a request to items.
        split: the default split.
        equal_families: whether its headline figure is the mean over families (sub-tasks) instead of over questions.
        max_new_tokens: default maximum length of an answer, in tokens.
    """

    meaning: str
    load: Callable[[Request], list[Item]]
    split: str | None
    equal_families: bool = False
    max_new_tokens: int = 64


def physics_items(request: Request) -> list[Item]:
    from theworld.evaluation.physics import pick  # it imports `Item` from here

    if request.data is not None or request.fields is not None:
        raise ValueError("The physics benchmark generates its scenes; leave data and fields out.")
    unknown = [task for task in request.tasks if task not in FAMILIES]
    if unknown:
        raise ValueError(f"The physics benchmark has no family {unknown[0]!r}; choose one of {', '.join(FAMILIES)}.")
    split, limit = request.split or "test", 300 if request.limit is None else request.limit
    return pick(split, limit, request.seed, request.progress, request.tasks or FAMILIES)


def blink_items(request: Request) -> list[Item]:
    if request.fields is not None:
        raise ValueError("The columns of BLINK are known; leave fields out, or evaluate the data as mcq.")
    questions = blink.load_blink(request.data or blink.HUB, request.split or "val", request.tasks)
    return limit_evenly([to_item(question) for question in questions], request.limit)


def mcq_items(request: Request, known: KnownSet | None = None) -> list[Item]:
    data = request.data or (None if known is None else known.hub)
    if data is None:
        raise ValueError("This benchmark has no data of its own; name a file, a folder or a Hub id as its data.")
    fields = request.fields if request.fields is not None or known is None else known.fields
    questions = multiple_choice.load_questions(data, fields, request.split, request.config)
    tasks = multiple_choice.tasks_of(questions)
    missing = [task for task in request.tasks if task not in tasks]
    if missing:
        raise ValueError(f"There is no task {missing[0]!r} in {data}; it has {', '.join(tasks)}.")
    wanted = [question for question in questions if not request.tasks or question.task in request.tasks]
    return limit_evenly([to_item(question) for question in wanted], request.limit)


def jsonl_items(request: Request) -> list[Item]:
    if request.data is None:
        raise ValueError("Name the file of questions: theworld eval jsonl FILE.")
    if request.fields is not None or request.config is not None or request.tasks:
        raise ValueError("The training format has no other columns, configurations or tasks; leave them out.")
    dataset = JsonlDataset(request.data)
    items = []
    for index in range(len(dataset)):
        where, messages = dataset.where(index), dataset.messages(index)
        media = SampleMedia(dataset, index)
        question, chat = question_of(messages[:-1])
        line = where.rpartition(" ")[2]
        label = messages[-1]["content"].strip()
        prompt = media.record.get("world_prompt", "").strip()
        items.append(
            Item(
                f"line {line}",
                "all",
                "all",
                LABEL,
                media,
                question,
                label,
                future=media,
                chat=chat,
                world_prompt=prompt,
            )
        )
    return limit_evenly(items, request.limit)


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


def limit_evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items in their order: as many of each family as possible, evenly spaced within it.

    Raises:
        ValueError: if the limit is below 1.
    """
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be 1 or more.")
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
        members[i]
        for family, members in rows.items()
        for i in np.linspace(0, len(members) - 1, wanted[family]).round().astype(int)
    }
    return [items[row] for row in sorted(chosen)]


BENCHMARKS: dict[str, Benchmark] = {
    "physics": Benchmark(
        "what happens next in simulated scenes, by family and horizon", physics_items, "test", max_new_tokens=8
    ),
    "blink": Benchmark("BLINK: fourteen visual tasks, headline the mean over them", blink_items, "val", True),
    "mcq": Benchmark("your own multiple-choice or yes/no questions (from data and fields)", mcq_items, None),
    "jsonl": Benchmark(
        "your own questions in the training format: exact match, and likelihood of the label", jsonl_items, None
    ),
    **{
        name: Benchmark(known.meaning, partial(mcq_items, known=known), known.split)
        for name, known in KNOWN_SETS.items()
    },
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: if there is none.
    """
    if name.endswith(".jsonl"):
        raise ValueError(f"{name} is no benchmark: name it first, as in `theworld eval jsonl {name}`.")
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; {suggest(name, BENCHMARKS)}")
    return BENCHMARKS[name]


def load_benchmark(name: str, request: Request) -> list[Item]:
    """Items of a benchmark, checked.

    Raises:
        ValueError: if there is no such benchmark, or its questions cannot be evaluated.
    """
    benchmark = find_benchmark(name)
    items = benchmark.load(replace(request, split=request.split or benchmark.split))
    check_items(items)
    return items
