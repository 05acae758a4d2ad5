"""The physics benchmark: what happens next, one question a scene, answers in balance.

Seed S takes the scenes from index S·36,000 of the split on, so two seeds share no scene; K questions are spread evenly
over the families, one question a scene. Which of a scene's questions is asked keeps topics and forms, and within each
of them the answers, as even as they can be.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from theworld.datasets.physics import FAMILIES, SPLITS, Clip, Question, contact, drop, make_clip, next_questions, tower
from theworld.datasets.physics.rendering import PALETTE
from theworld.evaluation.items import Item

SCENES_PER_SEED = 36_000  # a multiple of the 36 scenes over which outcomes are in exact balance
FRAMES_PER_STEP = 4
POOL_FROM = 48  # scenes from which on worker processes pay for their start

Progress = Callable[[int, int], None]


def pick(
    split: str,
    limit: int,
    seed: int = 0,
    progress: Progress | None = None,
    families: Sequence[str] = FAMILIES,
) -> list[Item]:
    """`limit` items of a split, the families in turn.

    Args:
        families: some of FAMILIES.
        progress: called with (scenes made, of how many).

    Raises:
        ValueError: an unknown split, fewer than one question, or a negative seed.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose among {', '.join(SPLITS)}.")
    if not 1 <= limit <= SCENES_PER_SEED * len(families):
        raise ValueError(f"limit is {limit}; give 1 to {SCENES_PER_SEED * len(families)}.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or more.")
    first = seed * SCENES_PER_SEED
    counts = [limit // len(families) + (place < limit % len(families)) for place in range(len(families))]
    scenes = [
        (family, split, first + offset) for family, n in zip(families, counts, strict=True) for offset in range(n)
    ]
    clips = []
    for done, clip in enumerate(make_clips(scenes), start=1):
        clips.append(clip)
        if progress is not None:
            progress(done, len(scenes))
    questions = [next_questions(clip) for clip in clips]
    legal = legal_answers([question for own in questions for question in own])
    return [
        to_item(question, clip, legal[question.family, question.topic, question.form])
        for question, clip in zip(choose_one_each(questions), clips, strict=True)
    ]


def make_clips(scenes: Sequence[tuple[str, str, int]]) -> Iterator[Clip]:
    """The clips (family, split, index), in order; many are made by worker processes."""
    workers = min(os.cpu_count() or 1, 16)
    if len(scenes) < POOL_FROM or workers == 1:
        yield from (make_clip(*scene) for scene in scenes)
        return
    # spawn, not fork: this process may hold a GPU context
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make_clip, *zip(*scenes, strict=True), chunksize=4)


def choose_one_each(questions: Sequence[Sequence[Question]]) -> list[Question]:
    """One question of each scene: first for even answers, then for even topics and forms, then by a fixed draw."""
    answers: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for own in questions:
        for question in own:
            answers[group(question)].add(question.answer)
    asked: Counter[tuple[str, str, str]] = Counter()
    answered: Counter[tuple[tuple[str, str, str], str]] = Counter()

    def cost(question: Question) -> tuple[int, int]:
        key = group(question)
        rarest = min(answered[key, answer] for answer in answers[key])
        return answered[key, question.answer] - rarest, asked[key]

    rng = np.random.default_rng(0)
    chosen = []
    for own in questions:
        shuffled = [own[i] for i in rng.permutation(len(own))]  # min takes the first of equals
        best = min(shuffled, key=cost)
        chosen.append(best)
        asked[group(best)] += 1
        answered[group(best), best.answer] += 1
    return chosen


def horizon_of(clip: Clip) -> int:
    """World steps until a scene's outcome can be seen: from then on its state is the last one.

    Where the outcome is that something does not happen (a box is not touched, a stack stands), that can only be known
    at the end.
    """
    last = clip.poses.shape[1] - 1
    states = [_state(clip, frame) for frame in range(last + 1)]
    if clip.outcome in ("no", "standing"):
        return last // FRAMES_PER_STEP
    decided = last
    while decided and states[decided - 1] == states[last]:
        decided -= 1
    return max(1, -(-decided // FRAMES_PER_STEP))


def _state(clip: Clip, frame: int) -> str:
    """What a judge of one frame would say of the outcome."""
    if clip.family == "drop":
        return drop.bin_of_ball(clip.parts, clip.poses[-1, frame].tolist())
    if clip.family == "contact":
        return "yes" if contact.gap(clip.parts, clip.poses, frame) < contact.TOUCHING else "no"
    return tower.state(clip.parts, clip.poses, frame)


def group(question: Question) -> tuple[str, str, str]:
    """What answers are balanced within."""
    return question.family, question.topic, question.form


def legal_answers(questions: Sequence[Question]) -> dict[tuple[str, str, str], frozenset[str]]:
    """Per group, every answer that makes sense: letters for choice, and for free text all that could be meant."""
    known: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for question in questions:
        known[group(question)].add(question.answer)
        if question.form == "choice":
            known[group(question)].update("ABCD"[: len(question.choices)])
            known[question.family, question.topic, "free"].update(question.choices)
        elif question.answer in PALETTE:  # a colour: any other would be an answer too, if a wrong one
            known[group(question)].update(PALETTE)
    return {key: frozenset(answers) for key, answers in known.items()}


def to_item(question: Question, clip: Clip, legal: frozenset[str]) -> Item:
    """A question about a clip as a benchmark item, with its true frames."""
    return Item(
        id=question.id,
        family=question.family,
        topic=question.topic,
        form=question.form,
        image=clip.frames[0],
        question=question.text,
        answer=question.answer,
        legal=legal,
        now_form=question.now_form,
        frames=clip.frames,
        horizon=horizon_of(clip),
    )
