"""Stage (c): a small Gemma 3 learns to see, and to read world latents, from questions about *now*.

Each chat holds several questions about one picture, coarse and fine; each batch gives the model the picture, the world
tokens, or both, so that neither way of seeing is neglected. Some batches carry the latents of the following moments as
well, with questions about now all the same, so that tokens of later moments are told from tokens of now.

Shapes: B chats, F pixel frames, n pictures.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from theworld import freezing
from theworld.datasets.physics import FAMILIES
from theworld.modeling import TheWorldForConditionalGeneration
from theworld.nano.chats import MODES, ChatWriter, TurnTable, answered_rightly
from theworld.nano.gemma import build_tokenizer
from theworld.nano.now import Pictures, draw_pictures, each, words_of
from theworld.nano.progress import CsvLog, StageClock
from theworld.processing import TheWorldProcessor
from theworld.projector import waves

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
KINDS = (*MODES, "future")  # losses are logged apart
GATE_QUESTIONS = 4  # of each validation picture


@dataclass(frozen=True)
class LanguageSettings:
    """How stage (c) is trained.

    Args:
        seconds: wall-clock budget that the learning rate follows, as in the world stage; 0 means `steps` steps.
        learning_rate: of AdamW, for embeddings, norms and the vision tower's ends.
        muon_learning_rate: of Muon (https://kellerjordan.github.io/posts/muon), for the matrices inside the layers; 0
            leaves them to AdamW as well, with which sides stay at chance for thousands of steps (docs/LOG.md).
        clips_per_family: training clips whose pictures are asked about.
        frames_per_clip: pictures of each; the first frame is always one of them.
        turns: questions of each kind (see `theworld.nano.now`) packed into one chat.
        room: tokens for the turns of one chat; twelve take 320 on average, and fewer than 384 in 99 chats of 100.
        per_kind: questions of each kind kept of a picture.
        modes: share of batches that see the picture, the world tokens, both.
        future: share of the batches with world tokens that also carry the latents of the moments after now.
        late: share of later pictures whose latents are taken from their clip's, where they stand for four frames,
            rather than from the picture alone; both are the same moment, but they are not the same numbers.
        validation_clips: clips of each family that the gate is measured on.
        tokenizer_clips: training clips of each family whose words make the vocabulary.
        workers: processes that draw clips before training.
        compile: compile the language model's layers; worth it on a GPU.
    """

    steps: int = 3200
    seconds: float = 0.0
    batch_size: int = 128
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    warmup: int = 200
    weight_decay: float = 0.02
    clips_per_family: int = 5000
    frames_per_clip: int = 5
    turns: dict[str, int] = field(default_factory=lambda: {"benchmark": 6, "cell": 3, "scan": 3})
    room: int = 384
    per_kind: int = 12
    modes: tuple[float, float, float] = (0.45, 0.35, 0.2)
    future: float = 0.25
    late: float = 0.5
    world_steps: tuple[int, ...] = (1, 2, 4)
    validation_clips: int = 200
    tokenizer_clips: int = 200
    evaluate_every: int = 1000
    seed: int = 0
    workers: int = 2
    compile: bool = False


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


class NowBatches:
    """Batches of chats about pictures, drawn where the model is: ids, and the picture or latents they are about.

    Everything is held on the accelerator: clips, their latents, and every turn.
    """

    def __init__(
        self,
        model: TheWorldForConditionalGeneration,
        pictures: Pictures,
        writer: ChatWriter,
        settings: LanguageSettings,
        device: torch.device,
    ) -> None:
        self.settings, self.device = settings, device
        pairs = [
            {kind: [(asked.text, asked.answer) for asked in own[kind]] for kind in settings.turns}
            for own in pictures.questions
        ]
        self.turns = TurnTable(writer, pairs, device)
        self.clips = torch.from_numpy(pictures.clips).to(device)
        self.entries = torch.tensor(pictures.entries, device=device)  # (pictures, 2): clip, frame
        self.first_frames = (self.entries[:, 1] == 0).nonzero()[:, 0]
        self.factor = model.config.world_config.temporal_factor
        self.moments = torch.cat(  # (pictures, C, 1, h, w), each frame encoded alone
            [clip_latents(model, self.clips[c, f][:, None]) for c, f in (e.T for e in self.entries.split(512))]
        )
        self.whole = torch.cat([clip_latents(model, part) for part in self.clips.split(128)])  # (clips, C, T, h, w)

    def __iter__(self) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
        """Mode, world steps after now, and the model's inputs, without end; the same in every run."""
        settings = self.settings
        rng = np.random.default_rng(settings.seed)
        generator = torch.Generator(self.device).manual_seed(settings.seed)
        while True:
            mode = MODES[rng.choice(len(MODES), p=settings.modes)]
            future = mode != "picture" and rng.random() < settings.future
            steps_ahead = int(rng.choice(settings.world_steps)) if future else 0
            rows = torch.randint(
                len(self.first_frames if future else self.entries),
                (settings.batch_size,),
                device=self.device,
                generator=generator,
            )
            rows = self.first_frames[rows] if future else rows
            batch = self.turns.draw(rows, settings.turns, mode, steps_ahead, generator, settings.room)
            inputs = vars(batch).copy()
            clip, frame = self.entries[rows].T
            if mode != "picture":
                inputs["world_latents"] = (
                    self.whole[clip, :, : 1 + steps_ahead]
                    if steps_ahead
                    else self.latents_of(rows, torch.rand(len(rows), device=self.device, generator=generator))
                )
            if mode != "world":
                inputs["pixel_values"] = as_pixels(self.clips[clip, frame])
            yield mode, steps_ahead, inputs

    def latents_of(self, rows: Tensor, chance: Tensor) -> Tensor:
        """Latents (B, C, 1, h, w) of single pictures; where `chance` (B,) says so, those of the moment in its clip."""
        clip, frame = self.entries[rows].T
        late = (frame > 0) & (frame % self.factor == 0) & (chance < self.settings.late)
        inside = self.whole[clip, :, frame // self.factor][:, :, None]
        return torch.where(late[:, None, None, None, None], inside, self.moments[rows])


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
    model.projector.start_as_waves(rms)


def learning_rate_at(step: int, share: float, peak: float, warmup: int) -> float:
    """Linear warm-up by steps, times a cosine down to nothing by the share of the training that is done."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * share))


def compile_layers(model: TheWorldForConditionalGeneration) -> None:
    """Compiles each of Gemma's layers in place; batches of many lengths share two or three compilations."""
    torch.compiler.reset()  # an earlier model's compilations count towards the limit of this one's
    for layer in model.language_model.layers:  # type: ignore[union-attr]
        layer.compile()


def build_optimizers(
    model: TheWorldForConditionalGeneration, settings: LanguageSettings, device: torch.device
) -> list[torch.optim.Optimizer]:
    """AdamW for all that learns, or Muon for the matrices inside the layers and AdamW for the rest."""
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = [p for name, p in learning.items() if ".layers." in name and p.ndim == 2]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.muon_learning_rate:
        optimizers.append(
            torch.optim.Muon(matrices, lr=settings.muon_learning_rate, weight_decay=settings.weight_decay)
        )
    inside = {id(parameter) for parameter in matrices} if settings.muon_learning_rate else set()
    optimizers.append(
        torch.optim.AdamW(
            [parameter for parameter in learning.values() if id(parameter) not in inside],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda",
        )
    )
    return optimizers


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
        "train", 0, settings.clips_per_family, settings.frames_per_clip, settings.per_kind, settings.workers
    )
    held_out = draw_pictures("validation", 0, settings.validation_clips, 2, GATE_QUESTIONS, settings.workers)
    logger.info("%d pictures drawn in %.0f s", len(pictures.entries), time.monotonic() - started)
    freezing.train_only(model, ("projector", "vision", "language"))
    model.to(device).train()
    batches = iter(NowBatches(model, pictures, ChatWriter(processor), settings, device))
    optimizers = build_optimizers(model, settings, device)
    if settings.compile:
        compile_layers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    log = CsvLog(folder / "language.csv", ("step", "loss", *KINDS, "seconds"))
    curve = CsvLog(folder / "language_accuracy.csv", ("step", *MODES))
    topics = CsvLog(folder / "language_topics.csv", ("step", "mode", "family", "topic", "right"))
    accuracy: dict[str, float] = {}
    sums: dict[str, list[Tensor]] = {}
    clock = StageClock(settings.seconds or math.inf)
    step, share = 0, 0.0
    while share < 1.0:
        mode, steps_ahead, inputs = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, share, peak, settings.warmup)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sums.setdefault("future" if steps_ahead else mode, []).append(loss.detach())
        step += 1
        share = clock.share() if settings.seconds else step / settings.steps
        if step % 100 == 0 or share == 1.0:
            means = {kind: float(torch.stack(own).mean()) for kind, own in sums.items()}
            overall = float(torch.stack([value for own in sums.values() for value in own]).mean())
            row = [step, overall, *(means.get(kind, float("nan")) for kind in KINDS), time.monotonic() - started]
            logger.info("now-questions: %s", log.add(row))
            sums = {}
        if step % settings.evaluate_every == 0 or share == 1.0:
            with torch.compiler.set_stance("force_eager"):  # its batches come in other sizes
                accuracy = now_accuracy(model, processor, held_out, device)
            logger.info("now-questions right: %s", curve.add((step, *(accuracy[mode] for mode in MODES))))
            for key, right in accuracy.items():
                if "/" in key:
                    topics.add((step, *key.split("/"), right))
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
    asked = [
        (entry, question)
        for entry, own in zip(pictures.entries, pictures.questions, strict=True)
        for question in own["benchmark"]
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
            good = answered_rightly(model(**inputs, use_cache=False).logits, labels).tolist()
            for (_, question), hit in zip(part, good, strict=True):
                right.setdefault(mode, []).append(hit)
                right.setdefault(f"{mode}/{question.family}/{question.topic}", []).append(hit)
    return {key: float(np.mean(hits)) for key, hits in sorted(right.items())}
