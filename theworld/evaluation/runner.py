"""Answers of every arm to every item: one model in memory at a time, in batches, by greedy decoding.

The arms of one model process the items together, batch by batch. An image is encoded, and a rollout computed, when the
first arm needs it; an image's soft tokens are kept for the next arms, so that their prompts are encoded without pixels;
and every answer is in the store before the next batch. The key-value cache of the prompt's image part is not shared: it
would save one image of 256 tokens before up to 3,920 world tokens, rows are padded to different lengths, and a cache at
other positions rounds differently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.evaluation.arms import ARMS, Arm, Batch, Imagination
from theworld.evaluation.tasks import LABEL, Item, other_images
from theworld.media.video import Video
from theworld.messages import TaskProgress
from theworld.model.call_plan import UNTRAINED
from theworld.model.gate import jumps

if TYPE_CHECKING:
    from theworld.evaluation.run_folder import RunFolder

MAX_NEW_TOKENS = 8  # answers are a word or a letter
ANSWERING = "Answering questions"

Finish = Callable[[Imagination | None, dict[str, list["Answer"]]], None]


@dataclass(frozen=True)
class Answer:
    """The answer of one arm to one item, and its cost.

    Attributes:
        id: of the item.
        text: the free-text answer.
        logprobs: log-probability of each of `Item.options`; None where the answer does not decide between them.
        prompt_tokens: tokens of the prompt, padding excluded.
        new_tokens: generated tokens.
        seconds: its share of the batch's time, rollouts excluded.
        label_logprob, label_tokens: of a training sample, the log-probability of its label and of the end of its turn,
            and their number of tokens; else None and 0.
        rollouts, rollout_seconds, passes: what this arm would need on its own, even if another arm computed the
            rollouts; `passes` are those of the world transformer (None in runs of earlier versions).
        confidence: as in `Reply`; None if the model was asked several times.
        jump: how far its future begins from the present (see `theworld.model.gate.jumps`); None without a future.
        agreement, spread: of several futures, the share that gives this answer and the standard deviation of its
            likelihood; otherwise None.
    """

    id: str
    text: str
    logprobs: tuple[float, ...] | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    rollouts: float = 0.0
    rollout_seconds: float = 0.0
    label_logprob: float | None = None
    label_tokens: int = 0
    passes: float | None = None
    confidence: float | None = None
    jump: float | None = None
    agreement: float | None = None
    spread: float | None = None


def with_steps(arms: Mapping[str, Arm], steps: Sequence[int]) -> dict[str, tuple[Arm, int]]:
    """Each arm with its number of world steps; with several numbers, `fused@0` and `fused@4` where they matter."""
    if len(steps) == 1:
        return {name: (arm, steps[0]) for name, arm in arms.items()}
    runs: dict[str, tuple[Arm, int]] = {}
    for name, arm in arms.items():
        runs.update({f"{name}@{n}": (arm, n) for n in steps} if arm.looks_ahead else {name: (arm, steps[-1])})
    return runs


def run_arms(
    items: Sequence[Item],
    arms: Mapping[str, Arm],
    load: Callable[[str | None], ModelAnswerer],
    *,
    num_world_steps: int | Sequence[int],
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: TaskProgress | None = None,
    store: RunFolder | None = None,
    finish: Finish | None = None,
) -> dict[str, list[Answer]]:
    """Answers of every arm, in the order of `items`; answers that are in the store are not generated again.

    Args:
        items: the questions.
        arms: name -> arm; arms with the same weights share one loaded model.
        load: returns the model for the name of a trained control, or for None the model under test. It is not called
            for weights whose answers are all in the store.
        num_world_steps: N of every arm that does not set its own; with several, each such arm runs with each of them,
            named as in `with_steps`.
        seed: of the rollouts, and of the choice of other images in `shuffled`.
        progress: called with (description, answers done, total) over all arms; answers in the store do not count.
        store: receives answers as soon as they are generated; None keeps them in memory.
        finish: called at the end with the rollouts that the arms of the model under test shared (None if that model
            was not loaded) and all answers, while that model is still in memory.

    Raises:
        ValueError: if an arm cannot run on these items or this model, an image cannot be read, or the model's projector
            is untrained. Answers generated until then are in the store.
    """
    steps = [num_world_steps] if isinstance(num_world_steps, int) else list(num_world_steps)
    runs = with_steps(arms, steps)
    known: dict[str, dict[str, Answer]] = {name: {} if store is None else store.known(name) for name in runs}
    done, total = 0, sum(item.id not in known[name] for name in runs for item in items)
    # the model under test comes last, so that it is in memory when all answers are complete
    groups = sorted({arm.weights for arm, _ in runs.values()}, key=lambda weights: (weights is None, weights))
    imagination: Imagination | None = None
    for weights in groups:
        group = {name: run for name, run in runs.items() if run[0].weights == weights}
        is_wanted = finish is not None and weights is None
        if all(item.id in known[name] for name in group for item in items) and not is_wanted:
            continue
        imagination = None  # frees the previous weights before the next are loaded
        imagination = Imagination(load(weights))
        check_arms(imagination.model, {name: arm for name, (arm, _) in group.items()})
        for name, given in missing_answers(items, group, imagination, known, seed, batch_size, max_new_tokens):
            if store is not None:
                store.add(name, given)
            known[name].update((one.id, one) for one in given)
            done += len(given)
            if progress is not None:
                progress(ANSWERING, done, total)
    answers = {name: [known[name][item.id] for item in items] for name in runs}
    if finish is not None:
        finish(imagination if None in groups else None, answers)
    return answers


def missing_answers(
    items: Sequence[Item],
    runs: Mapping[str, tuple[Arm, int]],
    imagination: Imagination,
    known: Mapping[str, Mapping[str, Answer]],
    seed: int,
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[tuple[str, list[Answer]]]:
    """Yields the arm and its answers that are not in `known`, batch by batch and arm by arm."""
    reads_others = any(arm.reads_others for arm, _ in runs.values())
    config, use_all = imagination.model.config, imagination.uses_all_images
    others = other_images(items, seed, use_all, config) if reads_others else [[] for _ in items]
    for start in range(0, len(items), batch_size):
        chunk = range(start, min(start + batch_size, len(items)))
        decoded: dict[int, list[Any]] = {}  # images of the chunk, read once for all arms
        for name, (arm, n) in runs.items():
            missing = [row for row in chunk if items[row].id not in known[name]]
            decoded.update({row: items[row].images(config) for row in missing if row not in decoded})
            for row in missing if arm.needs_world else ():
                items[row].check_past(decoded[row], config)
            for kind, rows in alike(missing, decoded).items():
                batch = Batch(
                    images=[decoded[row] for row in rows],
                    questions=[items[row].asked for row in rows],
                    num_world_steps=n,
                    seed=seed,
                    items=[items[row] for row in rows],
                    world_images=[items[row].world_images(use_all, decoded[row]) for row in rows],
                    other_images=[others[row] for row in rows],
                    imagination=imagination,
                )
                yield name, answer(arm if kind else without_images(arm), batch, max_new_tokens)
        imagination.end_batch(seed)


def alike(rows: Sequence[int], images: Mapping[int, Sequence[Any]]) -> dict[tuple[int, ...], list[int]]:
    """Rows that can share a batch: those with clips of the same lengths, and apart those without an image, as ()."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        lengths = {image.num_frames if isinstance(image, Video) else 1 for image in images[row]}
        groups.setdefault(tuple(sorted(lengths)), []).append(row)
    return groups


def without_images(arm: Arm) -> Arm:
    """The arm that asks without images, which have no future, with the weights of `arm`."""
    return ARMS["gemma" if arm.needs_base_gemma else "no-world"]


def answer(arm: Arm, batch: Batch, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0) -> list[Answer]:
    """Answers of one arm to one batch with their costs; greedy decoding unless the temperature is above 0."""
    imagination = batch.imagination
    imagination.start()
    started = time.perf_counter()
    answers = arm.strategy(arm.change, batch, lambda changed: ask(changed, max_new_tokens, temperature, top_p))
    count = len(answers)
    seconds = (time.perf_counter() - started - imagination.spent) / count
    mean = 0.0 if any(one.rollouts for one in answers) else round(imagination.num_rollouts() / count, 3)
    return [
        replace(
            one,
            seconds=round(seconds, 6),
            rollouts=one.rollouts or mean,  # a strategy may know which questions needed them
            passes=(one.rollouts or mean) * imagination.model.passes_per_rollout,
            rollout_seconds=round(imagination.rollout_seconds() / count, 6),
        )
        for one in answers
    ]


def ask(changed: Batch, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0) -> list[Answer]:
    """Answers to a batch that an arm has changed, without their costs."""
    model, inputs = changed.imagination.model, inputs_of(changed)
    options = [item.options for item in changed.items]
    replies = model.reply(
        changed.images, changed.questions, options, max_new_tokens, inputs, temperature=temperature, top_p=top_p
    )
    labels: list[tuple[float | None, int]] = [(None, 0)] * len(replies)
    if all(item.form == LABEL for item in changed.items):
        answers = [item.answer for item in changed.items]
        scores = model.label_logprobs(changed.images, changed.questions, answers, inputs)
        labels = [(round(logprob, 6), count) for logprob, count in scores]
    return [
        Answer(
            item.id,
            reply.text,
            reply.option_logprobs,
            reply.prompt_tokens,
            reply.num_tokens,
            label_logprob=label_logprob,
            label_tokens=label_tokens,
            confidence=None if reply.confidence is None else round(reply.confidence, 6),
            jump=jump,
        )
        for item, reply, (label_logprob, label_tokens), jump in zip(
            changed.items, replies, labels, jumps_of(changed), strict=True
        )
    ]


def jumps_of(batch: Batch) -> list[float | None]:
    """The largest of the `jumps` of each question's futures; None for questions without one."""
    if (
        batch.world_latents is None
        or not batch.num_world_steps
        or batch.world_latents.shape[2] <= batch.num_world_steps
    ):
        return [None] * len(batch.items)
    values = iter(jumps(batch.world_latents, batch.num_world_steps).tolist())
    return [round(max(next(values) for _ in images), 6) for images in batch.world_images]


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


def check_arms(model: ModelAnswerer, arms: Mapping[str, Arm]) -> None:
    """Raises a ValueError for arms that this model cannot run, before the first question is answered."""
    readers = [name for name, arm in arms.items() if arm.needs_trained_projector]
    if readers and not model.projector_is_trained:
        raise ValueError(f"{UNTRAINED} Train it, or leave out the arms that read them: {', '.join(readers)}.")
    needing_gemma = [name for name, arm in arms.items() if arm.needs_base_gemma]
    if needing_gemma and not model.has_base_gemma:
        raise ValueError(
            f"Vision or language weights of this model were trained, so {', '.join(needing_gemma)} cannot use the base "
            "Gemma model; evaluate the base model itself, or leave these arms out."
        )
