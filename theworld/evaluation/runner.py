"""Asks every item in every arm: one model in memory at a time, batches, greedy answers, what arms share made once.

The arms of one model go through the questions together, batch by batch: a rollout is made when the first arm asks for
it and kept, a picture's soft tokens are made once a batch, and every answer is in the store before the next batch. The
key-value cache of the prompt's picture part is not shared: it is one picture of 256 tokens before up to 3,920 world
tokens, rows are padded to different lengths, and a cache that starts at another place gives other roundings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from theworld.evaluation.answering import Answerer, ReplyInputs
from theworld.evaluation.arms import Arm, Batch, Imagination
from theworld.evaluation.items import Item, other_pictures
from theworld.media.images import load_image

MAX_NEW_TOKENS = 8  # answers are a word or a letter

Progress = Callable[[str, int, int], None]
Finish = Callable[[Imagination | None, dict[str, list["Answer"]]], None]


@dataclass(frozen=True)
class Answer:
    """What one arm said to one item, and what it cost.

    Attributes:
        id: of the item.
        text: the free-text answer.
        logprobs: log-probability of each of `Item.options`; None where the answer does not decide between them.
        prompt_tokens, new_tokens: read, padding aside, and written.
        seconds: of its share of the batch, rollouts aside.
        rollouts, rollout_seconds: that this arm alone would have made for it, whoever made them.
    """

    id: str
    text: str
    logprobs: tuple[float, ...] | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    rollouts: float = 0.0
    rollout_seconds: float = 0.0


class Store(Protocol):
    """Where answers go as they are made, and where those of an earlier run come from."""

    def known(self, arm: str) -> dict[str, Answer]: ...

    def add(self, arm: str, answers: Sequence[Answer]) -> None: ...


class InMemory:
    """A store that forgets with the process."""

    def __init__(self) -> None:
        self.answers: dict[str, dict[str, Answer]] = {}

    def known(self, arm: str) -> dict[str, Answer]:
        return dict(self.answers.get(arm, {}))

    def add(self, arm: str, answers: Sequence[Answer]) -> None:
        self.answers.setdefault(arm, {}).update((answer.id, answer) for answer in answers)


def with_steps(arms: Mapping[str, Arm], steps: Sequence[int]) -> dict[str, tuple[Arm, int]]:
    """Each arm with its number of world steps: `fused@0`, `fused@4` where several are wanted and it matters."""
    if len(steps) == 1:
        return {name: (arm, steps[0]) for name, arm in arms.items()}
    found: dict[str, tuple[Arm, int]] = {}
    for name, arm in arms.items():
        found.update({f"{name}@{n}": (arm, n) for n in steps} if arm.looks_ahead else {name: (arm, steps[-1])})
    return found


def run_arms(
    items: Sequence[Item],
    arms: Mapping[str, Arm],
    load: Callable[[str | None], Answerer],
    *,
    num_world_steps: int | Sequence[int],
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
    store: Store | None = None,
    finish: Finish | None = None,
) -> dict[str, list[Answer]]:
    """Answers of every arm, in the order of `items`; what the store knows already is not asked again.

    Args:
        items: what is asked.
        arms: name -> arm; those of the same weights run on one loaded model.
        load: from the name of a trained control (None: the model under test) to the model. It is not called for
            weights whose answers are all known.
        num_world_steps: N of every arm that does not fix its own; of several, each such arm runs with each, as
            `with_steps` names them.
        seed: of the rollouts, and of which picture is another's in `shuffled`.
        progress: called with (arm, questions answered in it, of how many).
        store: where answers go as soon as they are there; None keeps them in memory.
        finish: called when all arms are through, with what the arms of the model under test shared (None where that
            model was not asked) and all answers; for what only a model in memory can show.

    Raises:
        ValueError: an arm that cannot be run on these items or this model, a picture that cannot be read, or a model
            whose projector was never trained. Answers given until then are in the store.
    """
    steps = [num_world_steps] if isinstance(num_world_steps, int) else list(num_world_steps)
    runs = with_steps(arms, steps)
    store = InMemory() if store is None else store
    known = {name: store.known(name) for name in runs}
    # the model under test comes last, so that it is in memory when all answers are there
    groups = sorted({arm.weights for arm, _ in runs.values()}, key=lambda weights: (weights is None, weights))
    imagination: Imagination | None = None
    for weights in groups:
        own = {name: run for name, run in runs.items() if run[0].weights == weights}
        wanted = finish is not None and weights is None
        if all(item.id in known[name] for name in own for item in items) and not wanted:
            continue
        imagination = None  # before the next weights come into memory
        model = load(weights)
        check_arms(model, {name: arm for name, (arm, _) in own.items()})
        imagination = Imagination(model)
        del model
        ask_arms(items, own, imagination, known, store, seed, batch_size, max_new_tokens, progress)
    answers = {name: [known[name][item.id] for item in items] for name in runs}
    if finish is not None:
        finish(imagination if None in groups else None, answers)
    return answers


def ask_arms(
    items: Sequence[Item],
    runs: Mapping[str, tuple[Arm, int]],
    imagination: Imagination,
    known: dict[str, dict[str, Answer]],
    store: Store,
    seed: int,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress | None,
) -> None:
    """Asks what is not known yet, batch by batch, arm by arm; answers go to the store and to `known`."""
    reads_others = any(arm.reads_others for arm, _ in runs.values())
    others = other_pictures(items, seed, imagination.every) if reads_others else [[] for _ in items]
    for start in range(0, len(items), batch_size):
        chunk = range(start, min(start + batch_size, len(items)))
        shown: dict[int, list[Any]] = {}  # pictures of the chunk, read once for all arms
        for name, (arm, n) in runs.items():
            rows = [row for row in chunk if items[row].id not in known[name]]
            if rows:
                shown.update({row: read_pictures(items[row]) for row in rows if row not in shown})
                batch = Batch(
                    images=[shown[row] for row in rows],
                    questions=[items[row].question for row in rows],
                    num_world_steps=n,
                    seed=seed,
                    enable_world=True,
                    world_latents=None,
                    records=[items[row] for row in rows],
                    seen=[items[row].looks_from(imagination.every, shown[row]) for row in rows],
                    others=[others[row] for row in rows],
                    imagination=imagination,
                )
                answers = answer(arm, batch, max_new_tokens)
                store.add(name, answers)
                known[name].update((own.id, own) for own in answers)
            if progress is not None:
                progress(name, chunk.stop, len(items))
        imagination.forget_features()


def read_pictures(item: Item) -> list[Any]:
    """The pictures of an item, decoded.

    Raises:
        ValueError: a picture that cannot be read, with the id of its item.
    """
    try:
        return [load_image(picture) for picture in item.pictures()]
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{item.id}: {error}") from error


def answer(arm: Arm, batch: Batch, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0) -> list[Answer]:
    """Answers of one arm to one batch, greedy unless the temperature is above 0, and what each cost."""
    imagination = batch.imagination
    imagination.start()
    started = time.perf_counter()
    changed = arm.change(batch)
    replies = imagination.model.reply(
        changed.images,
        changed.questions,
        [item.options for item in batch.records],
        max_new_tokens,
        inputs_of(changed),
        temperature=temperature,
        top_p=top_p,
    )
    count = len(replies)
    seconds = (time.perf_counter() - started - imagination.spent) / count
    return [
        Answer(
            item.id,
            reply.text,
            reply.option_logprobs,
            reply.prompt_tokens,
            reply.num_tokens,
            round(seconds, 6),
            round(imagination.num_rollouts() / count, 3),
            round(imagination.rollout_seconds() / count, 6),
        )
        for item, reply in zip(batch.records, replies, strict=True)
    ]


def inputs_of(batch: Batch) -> ReplyInputs:
    """What the model is given in addition to images and questions, once an arm has changed the batch."""
    return ReplyInputs(
        num_world_steps=batch.num_world_steps,
        seed=batch.seed,
        enable_world=batch.enable_world,
        world_latents=batch.world_latents,
        world_tokens=batch.world_tokens,
        image_features=batch.imagination.features(batch.images) if any(batch.images) else None,
        lora=batch.lora,
    )


def check_arms(model: Answerer, arms: Mapping[str, Arm]) -> None:
    """Raises a ValueError for arms that this model cannot run: told before the first question is asked."""
    readers = [name for name, arm in arms.items() if arm.reads_tokens]
    if readers and not model.projector_is_trained:
        raise ValueError(
            f"the projector of this model is untrained, so {', '.join(readers)} would read noise; train it with "
            "`theworld train`, or leave these arms out."
        )
    askers = [name for name, arm in arms.items() if arm.asks_gemma]
    if askers and not model.has_base_gemma:
        raise ValueError(
            f"vision or language of this model were trained, so {', '.join(askers)} cannot ask Gemma as it was; "
            "evaluate the base model itself, or leave these arms out."
        )
