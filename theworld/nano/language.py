"""Stage (c): a small Gemma 3 learns to see, and to read world latents, from questions about *now*.

Each chat holds several questions about one picture, coarse and fine; each batch gives the model the picture, the world
tokens, or both, so that neither way of seeing is neglected. Some batches carry the latents of the following moments as
well, with questions about now all the same, so that tokens of later moments are told from tokens of now.

Shapes: B chats, F pixel frames, n pictures.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from theworld import freezing
from theworld.datasets.physics import FAMILIES, make_clip, next_questions, now_questions
from theworld.datasets.physics.pictures import BACKGROUND, PALETTE
from theworld.modeling import TheWorldForConditionalGeneration
from theworld.nano.chats import MODES, ChatBatch, ChatWriter, Turn, answered_rightly
from theworld.nano.gemma import build_tokenizer
from theworld.nano.progress import CsvLog
from theworld.processing import TheWorldProcessor

logger = logging.getLogger(__name__)

# How the two towers are cut: together 3.9 M parameters, small enough that two copies ship.
TEXT = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 1024,
    "max_position_embeddings": 4096,
    "initializer_range": 0.07,  # 1/√192: text embeddings, which Gemma multiplies by √D, then have unit size
}
VISION = {
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "patch_size": 8,
}
TOKENS_PER_IMAGE = 64
VOCABULARY = 704
SURE = 12  # of 255: how far a pixel may be from a colour to be called by its name
FINE = ("cell", "column", "row")  # topics that only a model that looks at one place can answer
KINDS = (*MODES, "future")  # losses are logged apart


@dataclass(frozen=True)
class LanguageSettings:
    """How stage (c) is trained.

    Args:
        clips_per_family: training clips whose pictures are asked about.
        frames_per_clip: pictures of each; the first frame is always one of them.
        questions: questions packed into one chat, half of them about exact places.
        cells: questions about the colour of a cell drawn for each picture, beside those about things.
        modes: share of batches that see the picture, the world tokens, both.
        validation_clips: clips of each family that the gate is measured on.
        workers: processes that draw clips before training.
        loaders: processes that write batches during training; none means that the training loop does.
        tokenizer_clips: training clips of each family whose words make the vocabulary.
        future: share of the batches with world tokens that also carry the latents of the moments after now.
    """

    steps: int = 8000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.02
    clips_per_family: int = 8000
    frames_per_clip: int = 5
    questions: int = 12
    cells: int = 12
    modes: tuple[float, float, float] = (0.45, 0.35, 0.2)
    future: float = 0.3
    world_steps: tuple[int, ...] = (1, 2, 4)
    validation_clips: int = 200
    tokenizer_clips: int = 200
    evaluate_every: int = 1000
    seed: int = 0
    workers: int = 2
    loaders: int = 0


class Asked(NamedTuple):
    """What stage (c) keeps of a Question; millions of them cross process borders."""

    text: str
    answer: str
    family: str
    topic: str


@dataclass
class Pictures:
    """Clips with questions about some of their frames.

    `clips` uint8 (n, F, H, W, 3); `entries` name a clip and a frame; `questions` belong to the entries.
    """

    clips: np.ndarray
    entries: list[tuple[int, int]]
    questions: list[list[Asked]]


def each(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """`function` of every task, in order, by so many processes; by none but this one when `workers` is 0."""
    if workers == 0:
        yield from map(function, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(function, tasks, chunksize=8)


def cell_questions(picture: np.ndarray, family: str, count: int, rng: np.random.Generator) -> list[Asked]:
    """What colour is where, in up to `count` of the 8×8 cells of a picture (H, W, 3) uint8, mostly of things.

    The plainest questions there are: the words name a place, the answer stands there. They teach where to look and what
    colours are called, without which questions about things ("where is the red ball?") stay at chance for long.
    """
    side = picture.shape[0] // 8
    centre = side // 2
    samples = picture[centre - 1 :: side, centre - 1 :: side].astype(np.int32)  # (8, 8, 3), upper left of each middle
    others = picture[centre::side, centre::side].astype(np.int32)
    names = ["empty", *PALETTE]
    colours = np.array([BACKGROUND, *PALETTE.values()])  # (colours, 3)
    distance = np.maximum(
        np.abs(samples[:, :, None] - colours).max(-1), np.abs(others[:, :, None] - colours).max(-1)
    )  # (8, 8, colours)
    nearest = distance.argmin(-1)
    sure = distance.min(-1) <= SURE
    full, empty = np.argwhere(sure & (nearest > 0)), np.argwhere(sure & (nearest == 0))
    chosen = [*rng.permutation(full)[: count - count // 4], *rng.permutation(empty)[: count // 4]]
    return [
        Asked(f"What colour is at column {column + 1}, row {row + 1}?", names[nearest[row, column]], family, "cell")
        for row, column in chosen
    ]


def draw(
    task: tuple[str, str, int], frames_per_clip: int, cells: int
) -> tuple[np.ndarray, list[tuple[int, list[Asked]]]]:
    """One clip and the now-questions of some of its frames, the first among them."""
    clip = make_clip(*task)
    rng = np.random.default_rng(task[2])
    later = rng.choice(np.arange(1, len(clip.frames)), size=frames_per_clip - 1, replace=False)
    frames = [0, *sorted(int(frame) for frame in later)]
    asked = [
        (
            frame,
            [Asked(q.text, q.answer, q.family, q.topic) for q in now_questions(clip, frame)]
            + cell_questions(clip.frames[frame], clip.family, cells, rng),
        )
        for frame in frames
    ]
    return clip.frames, [(frame, questions) for frame, questions in asked if questions]


def draw_pictures(split: str, first: int, per_family: int, frames_per_clip: int, cells: int, workers: int) -> Pictures:
    """Pictures and now-questions of clips first … first + per_family - 1 of every family."""
    tasks = [(family, split, index) for index in range(first, first + per_family) for family in FAMILIES]
    clips, entries, questions = [], [], []
    for number, (frames, asked) in enumerate(
        each(partial(draw, frames_per_clip=frames_per_clip, cells=cells), tasks, workers)
    ):
        clips.append(frames)
        for frame, own in asked:
            entries.append((number, frame))
            questions.append(own)
    return Pictures(np.stack(clips), entries, questions)


def words_of(task: tuple[str, str, int]) -> list[str]:
    """All that is asked and answered about one clip's first and last frame."""
    clip = make_clip(*task)
    asked = [*next_questions(clip), *now_questions(clip, 0), *now_questions(clip, len(clip.frames) - 1)]
    words = [piece for question in asked for piece in (question.text, question.answer, question.now_form or "")]
    cells = cell_questions(clip.frames[0], clip.family, 8, np.random.default_rng(task[2]))
    return [*words, *(piece for question in cells for piece in (question.text, question.answer))]


def train_tokenizer(clips_per_family: int, workers: int) -> PreTrainedTokenizerFast:
    """A tokenizer over the words of the questions and answers of training clips."""
    tasks = [(family, "train", index) for family in FAMILIES for index in range(clips_per_family)]
    corpus = [piece for words in each(words_of, tasks, workers) for piece in words]
    return build_tokenizer([*corpus, *["user", "model"] * 200], VOCABULARY)


def as_pixels(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) to float32 (..., 3, H, W) in [-1, 1], for the vision tower and the world model alike."""
    return (frames.float() / 127.5 - 1).movedim(-1, -3)


def clip_latents(model: TheWorldForConditionalGeneration, clips: Tensor) -> Tensor:
    """Latents (n, C, T, h, w) of clips uint8 (n, F, H, W, 3)."""
    assert model.world is not None
    with torch.no_grad():
        return model.world.encode(as_pixels(clips).transpose(1, 2))


def world_of(model: TheWorldForConditionalGeneration, frames: Tensor) -> Tensor:
    """Latents (n, C, 1, h, w) of single frames uint8 (n, H, W, 3)."""
    return clip_latents(model, frames[:, None])


@dataclass(frozen=True)
class Turns:
    """Questions about one picture as turns: where exactly things are, and everything else."""

    fine: list[Turn]
    coarse: list[Turn]

    @classmethod
    def of(cls, questions: Sequence[Asked], writer: ChatWriter) -> Turns:
        parts: tuple[list[Turn], list[Turn]] = ([], [])
        for asked in questions:
            parts[asked.topic not in FINE].append(writer.turn(asked.text, asked.answer))
        return cls(*parts)

    def draw(self, count: int, rng: np.random.Generator) -> list[Turn]:
        """`count` turns at most in random order, half of them fine ones while there are enough."""
        fine = [self.fine[i] for i in rng.permutation(len(self.fine))[: count - count // 2]]
        coarse = [self.coarse[i] for i in rng.permutation(len(self.coarse))[: count - len(fine)]]
        both = fine + coarse
        return [both[i] for i in rng.permutation(len(both))]


class NowChats(IterableDataset[tuple[str, int, ChatBatch, Tensor]]):
    """Batches of chats without end: mode, world steps, chats, and (B, 2) int64 naming each chat's clip and frame.

    Each loader process draws from a seed of its own; the order is the same in every run with as many of them.
    """

    def __init__(
        self,
        turns: list[Turns],
        entries: list[tuple[int, int]],
        writer: ChatWriter,
        settings: LanguageSettings,
    ) -> None:
        self.turns, self.entries, self.writer, self.settings = turns, entries, writer, settings
        self.first_frames = [row for row, (_, frame) in enumerate(entries) if frame == 0]

    def __iter__(self) -> Iterator[tuple[str, int, ChatBatch, Tensor]]:
        settings, worker = self.settings, get_worker_info()
        rng = np.random.default_rng([settings.seed, worker.id if worker is not None else 0])
        while True:
            mode = MODES[rng.choice(len(MODES), p=settings.modes)]
            future = mode != "picture" and rng.random() < settings.future
            steps_ahead = int(rng.choice(settings.world_steps)) if future else 0
            rows = rng.choice(self.first_frames if future else len(self.turns), size=settings.batch_size)
            chats = [self.turns[row].draw(settings.questions, rng) for row in rows]
            places = torch.tensor([self.entries[row] for row in rows])
            yield mode, steps_ahead, self.writer.batch(chats, mode, steps_ahead), places


@torch.no_grad()
def place_positions(model: TheWorldForConditionalGeneration, rms: float = 0.7) -> None:
    """Starts every position embedding as sines and cosines of row and column, as large as what it is added to.

    From zero, what stands where is learned along the order of tokens, that is by rows; columns stay unread for
    thousands of steps.
    """
    # found by its end: where in the tower it stands differs between versions of transformers
    (vision,) = (
        parameter
        for name, parameter in model.vlm.model.vision_tower.named_parameters()
        if name.endswith("embeddings.position_embedding.weight")
    )
    side, width = round(vision.shape[0] ** 0.5), vision.shape[1]
    grid = torch.cat(
        [waves(side, width // 2).repeat_interleave(side, 0), waves(side, width - width // 2).repeat(side, 1)], 1
    )
    vision.copy_(grid * rms)
    projector = model.projector
    rows, columns = waves(len(projector.row), projector.row.shape[1]), waves(
        len(projector.column), projector.column.shape[1]
    )
    projector.row.copy_(rows * rms)
    projector.column.copy_(columns.flip(1) * rms)  # flipped, so that a row is not taken for a column


def waves(places: int, width: int) -> Tensor:
    """(places, width) of unit root mean square: sines and cosines of wavelengths from 2 to 4·places cells."""
    wavelengths = 2.0 * (2.0 * places) ** torch.linspace(0, 1, (width + 1) // 2)
    angles = 2 * torch.pi * torch.arange(places)[:, None] / wavelengths
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width] * 2**0.5


def learning_rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to nothing."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def train_language(
    model: TheWorldForConditionalGeneration,
    processor: TheWorldProcessor,
    settings: LanguageSettings,
    folder: Path,
    device: torch.device,
) -> dict[str, float]:
    """Trains Gemma and the projector together; the world model stays as it is.

    Returns:
        Accuracy on validation now-questions, per mode: the gate of this stage.
    """
    started = time.monotonic()
    pictures = draw_pictures(
        "train", 0, settings.clips_per_family, settings.frames_per_clip, settings.cells, settings.workers
    )
    logger.info("%d pictures drawn in %.0f s", len(pictures.entries), time.monotonic() - started)
    freezing.train_only(model, ("projector", "vision", "language"))
    model.to(device).train()
    writer = ChatWriter(processor)
    turns = [Turns.of(own, writer) for own in pictures.questions]
    chats = NowChats(turns, pictures.entries, writer, settings)
    loader = iter(
        DataLoader(
            chats, batch_size=None, num_workers=settings.loaders, prefetch_factor=4 if settings.loaders else None
        )
    )
    clips = torch.from_numpy(pictures.clips).to(device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    log = CsvLog(folder / "language.csv", ("step", "loss", *KINDS, "seconds"))
    curve = CsvLog(folder / "language_accuracy.csv", ("step", *MODES))
    held_out = draw_pictures("validation", 0, settings.validation_clips, 2, 0, settings.workers)
    accuracy: dict[str, float] = {}
    sums: dict[str, list[Tensor]] = {}
    for step in range(settings.steps):
        mode, steps_ahead, batch, places = next(loader)
        inputs = batch.to(device)
        where = places.to(device)  # (B, 2): clip, frame
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if mode != "picture":
                moments = clips[where[:, 0], where[:, 1]][:, None]
                if steps_ahead:
                    moments = clips[where[:, 0], : 1 + 4 * steps_ahead]
                inputs["world_latents"] = clip_latents(model, moments)
            if mode != "world":
                inputs["pixel_values"] = as_pixels(clips[where[:, 0], where[:, 1]])
            loss = model(**inputs).loss
        rate = learning_rate_at(step, settings.steps, settings.learning_rate, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sums.setdefault("future" if steps_ahead else mode, []).append(loss.detach())
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            means = {kind: float(torch.stack(own).mean()) for kind, own in sums.items()}
            overall = float(torch.stack([value for own in sums.values() for value in own]).mean())
            row = [step + 1, overall, *(means.get(kind, float("nan")) for kind in KINDS), time.monotonic() - started]
            logger.info("now-questions: %s", log.add(row))
            sums = {}
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            accuracy = now_accuracy(model, processor, held_out, device)
            logger.info("now-questions right: %s", curve.add((step + 1, *(accuracy[mode] for mode in MODES))))
            model.train()
    return accuracy


@torch.no_grad()
def now_accuracy(
    model: TheWorldForConditionalGeneration,
    processor: TheWorldProcessor,
    pictures: Pictures,
    device: torch.device,
    batch_size: int = 256,
) -> dict[str, float]:
    """Share of now-questions answered exactly: one question a chat, by mode and by mode and topic."""
    model.eval()
    rng = np.random.default_rng(1)
    asked = [
        (entry, question)
        for entry, own in zip(pictures.entries, pictures.questions, strict=True)
        for question in (own[i] for i in rng.permutation(len(own))[:4])
    ]
    writer = ChatWriter(processor)
    right: dict[str, list[bool]] = {}
    for mode in MODES:
        for start in range(0, len(asked), batch_size):
            part = asked[start : start + batch_size]
            inputs = writer.batch([[writer.turn(question.text, question.answer)] for _, question in part], mode).to(
                device
            )
            frames = torch.from_numpy(np.stack([pictures.clips[clip, frame] for (clip, frame), _ in part])).to(device)
            if mode != "picture":
                inputs["world_latents"] = world_of(model, frames)
            if mode != "world":
                inputs["pixel_values"] = as_pixels(frames)
            labels = inputs.pop("labels")
            good = answered_rightly(model(**inputs).logits, labels).tolist()
            for (_, question), hit in zip(part, good, strict=True):
                right.setdefault(mode, []).append(hit)
                right.setdefault(f"{mode}/{question.family}/{question.topic}", []).append(hit)
    return {key: float(np.mean(hits)) for key, hits in sorted(right.items())}
