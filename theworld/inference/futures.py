"""Several imagined futures of one image, and what their answers have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from theworld.inference.options import RolloutOptions
from theworld.inference.scored_answers import Reply, generate_scored
from theworld.media.inputs import LoadedImages
from theworld.model.call_plan import check_integer
from theworld.model.gate import Gate, jumps

if TYPE_CHECKING:
    from theworld.inference.pipeline import TheWorld

MAX_FUTURES = 64
IMAGINE = ("always", "auto")


@dataclass(frozen=True)
class GateDecision:
    """What the gate decided about one question.

    Attributes:
        confidence: of the answer without a future.
        min_confidence: below which the model imagines.
        imagined: number of futures that were imagined.
        kept: number of them that agree with the present.
    """

    confidence: float | None
    min_confidence: float
    imagined: int
    kept: int


@dataclass(frozen=True)
class FutureAnswers:
    """The answers from several futures.

    Attributes:
        answer: the option with the highest mean probability; without options, the most frequent answer.
        answers: the answer from each future, in the order of the seeds. One without a future, if none was used.
        shares: answer -> share of the futures that give it, the largest first. With options these are the options that
            are most probable in some future, and the texts of answers that do not decide between the options.
        probabilities: option -> mean over the futures of its normalised likelihood; empty without options, and if no
            answer decides between them.
        spread: option -> standard deviation of that likelihood over the futures.
        undecided: number of answers that do not decide between the options; they do not enter the probabilities.
        num_futures: how many futures were used.
        gate: what was decided with `imagine="auto"`; otherwise None.
        latents: (num_futures · images, C, P + 1 + N, h, w) of the futures that were used, for `TheWorld.decode`; None
            if there is none.
    """

    answer: str
    answers: tuple[str, ...]
    shares: Mapping[str, float]
    probabilities: Mapping[str, float]
    spread: Mapping[str, float]
    undecided: int
    num_futures: int
    gate: GateDecision | None = None
    latents: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def agreement(self) -> float:
        """The share of the futures that give `answer`."""
        return self.shares.get(self.answer, 0.0)

    def as_json(self) -> dict[str, Any]:
        """All fields but the latents, as JSON values."""
        values = asdict(replace(self, latents=None))
        del values["latents"]
        return values

    def __str__(self) -> str:
        return self.answer


def normalise(text: str) -> str:
    """Lower case, single spaces, no final full stop, no enclosing brackets: "(B)." -> "b"."""
    text = " ".join(text.lower().split()).rstrip(".").strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    return text


def normalised(logprobs: Sequence[float]) -> np.ndarray:
    """Probabilities (options,) that sum to 1."""
    weights = np.exp(np.asarray(logprobs, dtype=float) - max(logprobs))
    return weights / weights.sum()


def combine(replies: Sequence[Reply], options: Sequence[str] = ()) -> FutureAnswers:
    """Combines the answers to one question, one per future; `options` are those of their log-probabilities."""
    texts = tuple(reply.text for reply in replies)
    decided = [None if reply.option_logprobs is None else normalised(reply.option_logprobs) for reply in replies]
    rows = [row for row in decided if row is not None]
    picks = [text if row is None else options[int(row.argmax())] for text, row in zip(texts, decided, strict=True)]
    spelling: dict[str, str] = {}
    groups = Counter(spelling.setdefault(normalise(pick), pick) for pick in picks)
    shares = {answer: count / len(picks) for answer, count in groups.most_common()}
    mean, spread = (np.mean(rows, axis=0), np.std(rows, axis=0)) if rows else (np.zeros(0), np.zeros(0))
    return FutureAnswers(
        options[int(mean.argmax())] if rows else next(iter(shares)),
        texts,
        shares,
        dict(zip(options, mean.tolist(), strict=True)) if rows else {},
        dict(zip(options, spread.tolist(), strict=True)) if rows else {},
        len(replies) - len(rows) if options else 0,
        len(replies),
    )


def check_futures(futures: Any) -> int:
    """Returns a number of futures, or raises a ValueError if it is out of range."""
    if not 1 <= check_integer("futures", futures) <= MAX_FUTURES:
        raise ValueError(f"futures is {futures}; it must be between 1 and {MAX_FUTURES}.")
    return int(futures)


def check_imagines(futures: int, imagine: str, has_future: bool) -> None:
    """Raises a ValueError if futures are requested in a call that imagines nothing."""
    if not has_future and (futures > 1 or imagine == "auto"):
        wanted = f"{futures} futures were" if futures > 1 else "imagine='auto' was"
        raise ValueError(
            f"{wanted} requested, and this call imagines nothing; it needs an image, the world model, and 1 world step "
            "or more."
        )


@torch.no_grad()
def ask(
    model: TheWorld,
    image: Any,
    question: str,
    video: Any,
    options: Sequence[str],
    futures: int,
    imagine: str,
    rollout: RolloutOptions,
    decoding: Mapping[str, Any],
) -> FutureAnswers:
    """What `TheWorld.ask` does; `decoding` are arguments of `generate_scored` and of transformers' `generate`."""
    if not isinstance(question, str):
        raise ValueError("ask answers one question; pass a list of questions to generate.")
    if imagine not in IMAGINE:
        raise ValueError(f"imagine is {imagine!r}; choose one of {', '.join(IMAGINE)}.")
    if isinstance(options, str) or not all(isinstance(option, str) and option.strip() for option in options):
        raise ValueError(f"options is {options!r}; pass a list of texts, such as ['left', 'right'].")
    if len(options) == 1 or len({normalise(option) for option in options}) < len(options):
        raise ValueError(f"options is {options!r}; pass two or more different texts.")
    check_futures(futures)
    if rollout.world_latents is not None:
        raise ValueError("ask imagines futures itself, and world_latents were given; pass them to generate.")
    (row,), _ = model.prompts.normalize_inputs(image, question, video)
    chosen: list[Any] = []
    if row and rollout.enable_world is not False and model.config.enable_world:
        (chosen,) = model.processor.with_world([row], rollout.world_images)
    plan = model.plan(rollout.mode, rollout.num_world_steps, model.processor.num_past_steps(chosen))
    has_future = bool(chosen) and plan.num_world_steps > 0
    check_imagines(futures, imagine, has_future)

    def answers(count: int, given: RolloutOptions) -> list[Reply]:
        inputs = model.prepare_generation(LoadedImages([row] * count), [question] * count, rollout=given)
        if count > 1 and plan.mode == "tokens":  # the image is the same in all rows, and is seen once
            pixels = inputs.pop("pixel_values")[: len(row)]
            inputs["image_features"] = model.model.image_features(pixels).repeat(count, 1, 1)
        return generate_scored(model, inputs, [options] * count, **decoding)

    gate = Gate(**model.config.gate) if model.config.gate else Gate()
    first: Reply | None = None
    decision: GateDecision | None = None
    if imagine == "auto":
        (first,) = answers(1, replace(rollout, num_world_steps=0, world_prompt=None))
        if gate.is_sure(first.confidence):
            decision = GateDecision(first.confidence, gate.min_confidence, 0, 0)
            return replace(combine([first], options), num_futures=0, gate=decision)
    if not has_future:
        return replace(combine(answers(1, rollout), options), num_futures=0)
    latents = model.runner.imagine_futures(
        chosen, plan.num_world_steps, rollout.seed, futures, rollout.world_prompt, rollout.progress
    )  # (futures · images, C, P + 1 + N, h, w), one future after the other
    if first is not None:
        latents = latents.unflatten(0, (futures, len(chosen)))
        kept = [row for row in latents if all(map(gate.keeps, jumps(row, plan.num_world_steps).tolist()))]
        decision = GateDecision(first.confidence, gate.min_confidence, futures, len(kept))
        if not kept:
            return replace(combine([first], options), num_futures=0, gate=decision)
        latents, futures = torch.cat(kept), len(kept)
    given = replace(rollout, world_latents=latents, world_prompt=None)  # the prompt is in the latents
    return replace(combine(answers(futures, given), options), gate=decision, latents=latents)
