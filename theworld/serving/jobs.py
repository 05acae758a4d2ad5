"""What the engine works on: questions and rollouts, each of which can share a batch with others of its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch

from theworld.inference.futures import combine
from theworld.inference.options import RolloutOptions, decoding_arguments
from theworld.inference.pipeline import TheWorld
from theworld.inference.prompting import Chat, Question
from theworld.inference.scored_answers import Reply
from theworld.media.inputs import ImageOrVideo, LoadedImages
from theworld.media.video import Video
from theworld.model.call_plan import CallPlan
from theworld.serving.decoding import Decoding, Row, RowEnds, TokenChoice, TokenScore
from theworld.serving.errors import RequestError
from theworld.serving.latents import LatentCache
from theworld.serving.schemas import FinishReason


@dataclass(frozen=True)
class Piece:
    """New text of an answer that is streamed."""

    text: str
    scores: list[TokenScore]


@dataclass(frozen=True)
class Shown:
    """Frames (F, H, W, 3) uint8 for people, of which the first `num_past` were seen before now."""

    frames: np.ndarray
    num_past: int


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    scores: list[TokenScore] | None
    imagined: Shown | None
    shares: Mapping[str, float] = field(default_factory=dict)  # of several futures: answer -> share, the largest first


Event: TypeAlias = Piece | Answer | Shown | Exception


class Abandoned(Exception):
    """Ends a rollout that no client waits for any more."""


@dataclass(eq=False)
class Job(ABC):
    """One request at the engine.

    Attributes:
        images: decoded images and videos, in the order of the prompt.
        plan: how the world model is used.
        seed: of the rollout.
        deliver: takes events in the engine's thread; the last one is a result or an exception.
        cancelled: set from any thread when no client waits for the result any more.
        num_past_steps: P of the images.
        latents: where those of earlier jobs are.
        started: whether events were delivered, so that the job cannot be repeated.
    """

    images: list[ImageOrVideo]
    plan: CallPlan
    seed: int = 0
    world_prompt: str | None = None
    deliver: Callable[[Event], None] = lambda event: None
    cancelled: bool = False
    started: bool = False
    num_past_steps: int = 0
    latents: LatentCache = field(default_factory=LatentCache)
    kind: ClassVar[str]

    @property
    def key(self) -> Hashable:
        """Jobs with equal keys can share a batch."""
        steered = bool(self.world_prompt)
        return self.kind, self.plan, self.seed, steered, self.num_past_steps, bool(self.images)

    @classmethod
    @abstractmethod
    def work(cls, model: TheWorld, jobs: Sequence[Any]) -> None:
        """Does all of `jobs` in one batch and delivers their results."""


@dataclass(eq=False)
class ImagineJob(Job):
    """Imagines what follows one image or video; the result is a `Shown`."""

    kind = "imagine"

    @classmethod
    @torch.no_grad()
    def work(cls, model: TheWorld, jobs: Sequence[ImagineJob]) -> None:
        for job, shown in zip(jobs, shown_of(model, jobs, imagine(model, jobs)), strict=True):
            job.deliver(shown)


@dataclass(eq=False)
class AnswerJob(Job):
    """Answers one question; the results are `Piece`s, if it is streamed, and an `Answer`.

    Attributes:
        futures: how many futures are imagined; the answers from all of them are combined, and cannot be streamed.
        max_prompt_tokens: limit of the prompt's length.
        shows_rollout: whether the answer is accompanied by what was imagined.
    """

    question: Question = ""
    decoding: Decoding = field(default_factory=lambda: Decoding(128))
    stream: bool = False
    shows_rollout: bool = False
    max_prompt_tokens: int = 8192
    futures: int = 1
    kind = "answer"

    @property
    def key(self) -> Hashable:
        return *super().key, self.shows_rollout, self.futures  # type: ignore[misc]

    @classmethod
    @torch.no_grad()
    def work(cls, model: TheWorld, jobs: Sequence[AnswerJob]) -> None:
        jobs = [job for job in jobs if job.fits(model)]
        if not jobs:
            return
        plan, count = jobs[0].plan, jobs[0].futures
        latents = imagine_futures(model, jobs, count) if plan.mode == "tokens" or plan.num_world_steps else None
        end_if_abandoned(jobs)
        rollout = RolloutOptions(
            plan.num_world_steps,
            jobs[0].seed,
            False if plan.mode == "off" else None,
            world_latents=latents,
            mode=None if plan.mode == "off" else plan.mode,
        )
        repeated = [job for job in jobs for _ in range(count)]  # a row for each future
        inputs = model.prepare_generation(
            LoadedImages(job.images for job in repeated), [job.question for job in repeated], rollout=rollout
        )
        rows = [job.row(model, number) for job in jobs for number in range(count)]
        further: dict[str, Any] = {"stopping_criteria": [RowEnds(rows)]}
        if any(job.decoding.reads_scores for job in jobs):
            further["logits_processor"] = [TokenChoice(rows)]
        longest = max(job.decoding.max_new_tokens for job in jobs)
        model.model.generate(**inputs, **decoding_arguments(longest, 0.0, further, model.processor.tokenizer))
        shown: Sequence[Shown | None] = [None] * len(jobs)
        if latents is not None and jobs[0].shows_rollout:
            shown = shown_of(model, jobs, latents, count)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        for number, (job, imagined) in enumerate(zip(jobs, shown, strict=True)):
            own = slice(number * count, (number + 1) * count)
            job.deliver(job.answer_of(rows[own], lengths[own], imagined))

    def answer_of(self, rows: Sequence[Row], lengths: Sequence[int], imagined: Shown | None) -> Answer:
        """The answer out of one row per future, of which one prompt had each of the lengths."""
        found = combine([Reply(row.text(), len(row.ids), length) for row, length in zip(rows, lengths, strict=True)])
        chosen = next(row for row in rows if row.text() == found.answer)
        return Answer(
            found.answer,
            "stop" if chosen.ended == "stop" else "length",
            sum(lengths),
            sum(len(row.ids) for row in rows),
            None if self.decoding.top_logprobs is None else chosen.scores,
            imagined,
            found.shares if len(rows) > 1 else {},
        )

    def fits(self, model: TheWorld) -> bool:
        """Whether the prompt is short enough; if not, an error is delivered."""
        context = model.config.get_text_config().max_position_embeddings
        limit, processor = min(self.max_prompt_tokens, context - self.decoding.max_new_tokens), model.processor
        texts = [self.question] if isinstance(self.question, str) else texts_of_chat(self.question)
        length = sum(map(len, processor.tokenizer(texts, add_special_tokens=False)["input_ids"]))
        images = len(self.images) + (self.plan.num_world_steps + self.num_past_steps) * (self.plan.mode == "frames")
        length += images * processor.image_seq_length
        if self.plan.mode == "tokens":
            length += model.config.world_token_count(self.plan.num_world_steps, self.num_past_steps)
        if length <= limit:
            return True
        message = f"The prompt has about {length:,} tokens, and this server takes {limit:,} at most: make it shorter."
        self.deliver(RequestError(400, message, param="messages", code="context_length_exceeded"))
        return False

    def row(self, model: TheWorld, number: int = 0) -> Row:
        """The row of the future with this number, whose samples have a seed of their own."""
        seed = None if self.decoding.seed is None else self.decoding.seed + number
        ends = model.model.generation_config.eos_token_id

        def send(text: str, scores: list[TokenScore]) -> None:
            self.started = True
            self.deliver(Piece(text, scores))

        return Row(
            replace(self.decoding, seed=seed),
            model.processor.tokenizer,
            frozenset([ends] if isinstance(ends, int) else ends or ()),
            lambda: self.cancelled,
            send if self.stream else None,
        )


def texts_of_chat(chat: Chat) -> list[str]:
    contents = [turn["content"] for turn in chat.messages]
    return [
        text
        for content in contents
        for text in ([content] if isinstance(content, str) else [part.get("text", "") for part in content])
    ]


def imagine_futures(model: TheWorld, jobs: Sequence[Job], count: int) -> torch.Tensor:
    """Latents (futures · n, C, P + 1 + N, h, w): job by job, and for each job future by future."""
    if count == 1:
        return imagine(model, jobs)
    sizes = [len(row) for row in model.processor.with_world([job.images for job in jobs])]
    futures = [imagine(model, jobs, number).split(sizes) for number in range(count)]  # [future][job]
    return torch.cat([future[place] for place in range(len(jobs)) for future in futures])


def imagine(model: TheWorld, jobs: Sequence[Job], number: int = 0) -> torch.Tensor:
    """Latents (n, C, P + 1 + N, h, w) of the images that the world model reads of all jobs, of one of their futures."""
    chosen = model.processor.with_world([job.images for job in jobs])
    every = [image for row in chosen for image in row]
    prompts = [job.world_prompt or "" for job, row in zip(jobs, chosen, strict=True) for _ in row]
    steering = prompts if any(prompts) else None
    steps, seed, progress = jobs[0].plan.num_world_steps, jobs[0].seed + number, stop_if_abandoned(jobs)
    return jobs[0].latents.imagine(model, every, steps, seed, steering, progress)


def shown_of(model: TheWorld, jobs: Sequence[Job], latents: torch.Tensor, futures: int = 1) -> list[Shown]:
    """What people see of each job's first image and future: the frames that were given, and what was imagined."""
    first, shown = 0, []
    for row in model.processor.with_world([job.images for job in jobs]):
        end_if_abandoned(jobs)
        frames, image = model.decode(latents[first : first + 1])[0], row[0]
        past = model.seen(image) if isinstance(image, Video) else frames[:1]
        shown.append(Shown(np.concatenate([past, frames[len(past) :]]), len(past) - 1))
        first += futures * len(row)
    return shown


def stop_if_abandoned(jobs: Sequence[Job]) -> Callable[[int, int], None]:
    """A progress function that ends the rollout when no client waits for it."""

    return lambda done, total: end_if_abandoned(jobs)


def end_if_abandoned(jobs: Sequence[Job]) -> None:
    """Raises Abandoned when no client waits for any of the jobs."""
    if all(job.cancelled for job in jobs):
        raise Abandoned
