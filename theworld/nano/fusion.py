"""Stage (d): what happens next, from few labels; and the two controls that show what imagining was worth.

`fused` learns its projector and a LoRA from imagined futures of labelled scenes. `matched-control` learns the same
LoRA and `direct` the whole of Gemma, from the same questions, without any world tokens. All three see the same scenes,
in the same order, for the same number of steps.

Shapes: n pictures, C latent channels, T latent frames, h×w latent grid.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from theworld import freezing
from theworld.datasets.physics import FAMILIES, make_clip, next_questions, now_questions
from theworld.datasets.physics.practice import Asked
from theworld.modeling import TheWorldForConditionalGeneration
from theworld.nano.chats import ChatWriter, TurnTable, answered_rightly
from theworld.nano.language import as_pixels, clip_latents, compile_layers, learning_rate_at
from theworld.nano.now import each
from theworld.nano.progress import CsvLog
from theworld.processing import TheWorldProcessor

logger = logging.getLogger(__name__)

LABELLED_FROM = 1_000_000  # labelled scenes are training scenes that no earlier stage has drawn
LORA = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
# which parts learn, and whether there are world tokens
KINDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "fused": (("projector", "lora"), True),
    "matched-control": (("lora",), False),
    "direct": (("vision", "language"), False),
}


@dataclass(frozen=True)
class FusionSettings:
    """How stage (d) is trained.

    Args:
        scenes_per_family: labelled scenes; 300 is the most the shipped model may see.
        futures: imagined futures of each scene and number of world steps, from different seeds.
        true_futures: share of batches that read the scene's true future in place of an imagined one.
        world_steps: numbers of world steps to draw from, and how often.
        dropped: share of batches with the world off.
        next_questions, now_questions: questions of each kind packed into one chat.
        room: tokens for the turns of one chat.
        kinds: which of KINDS to train.
        compile: compile the language model's layers; worth it on a GPU.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 1e-3
    direct_learning_rate: float = 3e-4
    warmup: int = 100
    weight_decay: float = 0.05
    scenes_per_family: int = 300
    validation_scenes: int = 150
    futures: int = 4
    true_futures: float = 0.25
    world_steps: tuple[int, ...] = (0, 1, 2, 4)
    world_steps_share: tuple[float, ...] = (0.15, 0.15, 0.15, 0.55)
    dropped: float = 0.15
    next_questions: int = 3
    now_questions: int = 2
    room: int = 192
    kinds: tuple[str, ...] = tuple(KINDS)
    evaluate_every: int = 250
    seed: int = 0
    workers: int = 2
    compile: bool = False


@dataclass
class Scenes:
    """Labelled scenes: clips uint8 (n, F, H, W, 3) and the questions about each, of both kinds."""

    clips: Tensor
    families: list[str]
    what_happens: list[list[Asked]]
    now: list[list[Asked]]


def draw_scene(task: tuple[str, str, int]) -> tuple[np.ndarray, list[Asked], list[Asked]]:
    """One clip, its questions about what happens, and those about its first frame."""
    clip = make_clip(*task)
    asked = [
        [Asked(q.text, q.answer, q.family, q.topic) for q in own]
        for own in (next_questions(clip), now_questions(clip, 0))
    ]
    return clip.frames, asked[0], asked[1]


def draw_scenes(split: str, first: int, per_family: int, workers: int) -> Scenes:
    """Scenes first … first + per_family - 1 of every family, with their questions."""
    tasks = [(family, split, index) for index in range(first, first + per_family) for family in FAMILIES]
    frames, what_happens, now = zip(*each(draw_scene, tasks, workers), strict=True)
    return Scenes(torch.from_numpy(np.stack(frames)), [task[0] for task in tasks], list(what_happens), list(now))


@torch.no_grad()
def imagine(
    model: TheWorldForConditionalGeneration, clips: Tensor, num_world_steps: int, first_seed: int, batch_size: int = 256
) -> Tensor:
    """Latents (n, C, T, h, w) of the first frames and their imagined futures, one seed a scene."""
    assert model.world is not None
    imagined = []
    for start in range(0, len(clips), batch_size):
        latents = clip_latents(model, clips[start : start + batch_size, :1])
        seeds = [first_seed + start + row for row in range(len(latents))]
        if num_world_steps:
            latents = model.world.rollout(latents, num_world_steps, seeds=seeds)
        imagined.append(latents)
    return torch.cat(imagined)


def imagined_futures(
    model: TheWorldForConditionalGeneration, scenes: Scenes, settings: FusionSettings, first_seed: int = 0
) -> dict[int, list[Tensor]]:
    """For each number of world steps: latents of several imagined futures of every scene, and last its true one."""
    futures = {}
    for steps in settings.world_steps:
        drawn = [
            imagine(model, scenes.clips, steps, first_seed + 1_000_000 * draw)
            for draw in range(settings.futures if steps else 1)
        ]
        true = [clip_latents(model, part[:, : 1 + 4 * steps]) for part in scenes.clips.split(256)]
        futures[steps] = [*drawn, torch.cat(true)]
    return futures


def train_fusion(
    kind: str,
    model: TheWorldForConditionalGeneration,
    processor: TheWorldProcessor,
    scenes: Scenes,
    futures: dict[int, list[Tensor]],
    validation: Scenes,
    validation_futures: dict[int, list[Tensor]],
    settings: FusionSettings,
    folder: Path,
    device: torch.device,
) -> dict[str, float]:
    """Trains one of KINDS; the same seed draws the same scenes and questions for each of them.

    Returns:
        Accuracy on validation what-happens questions at the end, overall and by family.
    """
    parts, world_on = KINDS[kind]
    freezing.train_only(model, parts)
    model.to(device)
    writer = ChatWriter(processor)
    pairs = [
        {"next": [(q.text, q.answer) for q in what_happens], "now": [(q.text, q.answer) for q in now]}
        for what_happens, now in zip(scenes.what_happens, scenes.now, strict=True)
    ]
    turns = TurnTable(writer, pairs, device)
    counts = {"next": settings.next_questions, "now": settings.now_questions}
    if settings.compile:
        compile_layers(model)
    peak = settings.direct_learning_rate if "language" in parts else settings.learning_rate
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=peak,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    # drawn alike for all kinds, so that they see the same scenes and questions
    rng = np.random.default_rng(settings.seed)
    generator = torch.Generator(device).manual_seed(settings.seed)
    log = CsvLog(folder / f"{kind}.csv", ("step", "loss", "validation", *FAMILIES, "seconds"))
    started, losses = time.monotonic(), []
    accuracy: dict[str, float] = {}
    for step in range(settings.steps):
        rows = torch.randint(len(scenes.clips), (settings.batch_size,), device=device, generator=generator)
        steps_ahead = int(rng.choice(settings.world_steps, p=settings.world_steps_share))
        dropped, true = rng.random() < settings.dropped, rng.random() < settings.true_futures
        which = rng.integers(settings.futures if steps_ahead else 1)
        mode = "both" if world_on and not dropped else "picture"
        inputs = vars(turns.draw(rows, counts, mode, steps_ahead, generator, settings.room)).copy()
        inputs["pixel_values"] = as_pixels(scenes.clips[rows, 0].to(device))
        if mode == "both":
            inputs["world_latents"] = futures[steps_ahead][-1 if true else which][rows].to(device)
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**inputs, use_cache=False).loss
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, step / settings.steps, peak, settings.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            steps_seen = max(settings.world_steps) if world_on else None
            read = None if steps_seen is None else validation_futures[steps_seen][0]
            with torch.compiler.set_stance("force_eager"):
                accuracy = next_accuracy(model, writer, validation, read, device)
            row = [step + 1, float(torch.stack(losses).mean()), accuracy["all"]]
            row += [accuracy[family] for family in FAMILIES]
            logger.info("%s: %s", kind, log.add([*row, time.monotonic() - started]))
            losses = []
    return accuracy


@torch.no_grad()
def next_accuracy(
    model: TheWorldForConditionalGeneration,
    writer: ChatWriter,
    scenes: Scenes,
    latents: Tensor | None,
    device: torch.device,
    batch_size: int = 256,
) -> dict[str, float]:
    """Share of what-happens questions answered exactly, one a chat: `all`, and by family.

    Args:
        latents: (n, C, T, h, w) world latents of the scenes; None asks with the world off.
    """
    model.eval()
    asked = [(row, question) for row, own in enumerate(scenes.what_happens) for question in own]
    mode, steps = ("picture", 0) if latents is None else ("both", latents.shape[2] - 1)
    hits: dict[str, list[bool]] = {}
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        rows = torch.tensor([row for row, _ in part])
        inputs = writer.batch([[writer.turn(q.text, q.answer)] for _, q in part], mode, steps).to(device)
        inputs["pixel_values"] = as_pixels(scenes.clips[rows, 0].to(device))
        if latents is not None:
            inputs["world_latents"] = latents[rows.to(latents.device)].to(device)
        labels = inputs.pop("labels")
        for (row, _), hit in zip(
            part, answered_rightly(model(**inputs, use_cache=False).logits, labels).tolist(), strict=True
        ):
            hits.setdefault("all", []).append(hit)
            hits.setdefault(scenes.families[row], []).append(hit)
    return {key: float(np.mean(own)) for key, own in hits.items()}
