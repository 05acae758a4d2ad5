"""How nano is made, from nothing, in four stages; each writes a folder that the next one reads.

    (a) vae          clips without labels          -> world/vae
    (b) transformer  clips without labels          -> world/transformer
    (c) language     questions about now           -> gemma/, reader/ (its projector)
    (d) fusion       questions about what happens  -> fused/, matched-control/, direct/

`theworld nano train` runs it. The shipped weights under `weights/` are the work folder of one run, in bfloat16; their
`provenance.json` says which.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from theworld import freezing
from theworld.checkpoints import SHIPPED_WEIGHTS
from theworld.datasets.physics import IMAGE_SIZE
from theworld.modeling import TheWorldForConditionalGeneration
from theworld.nano.fusion import KINDS, LABELLED_FROM, LORA, FusionSettings, draw_scenes, imagined_futures, train_fusion
from theworld.nano.gemma import build_config, build_model, build_processor
from theworld.nano.language import (
    TEXT,
    TOKENS_PER_IMAGE,
    VISION,
    LanguageSettings,
    train_language,
    train_tokenizer,
)
from theworld.processing import TheWorldProcessor

logger = logging.getLogger(__name__)

STAGES = ("world", "language", "fusion")
MAX_SHARD = "15MB"
# of every fusion of nano's bases
FUSION_CONFIG: dict[str, Any] = {
    "world_image_size": IMAGE_SIZE,
    "num_world_steps": 4,
    "max_world_steps": 4,
    "projector": "linear",
}
GATE = 0.97  # of now-questions, from the picture alone and from world tokens alone


@dataclass(frozen=True)
class NanoSettings:
    """All settings of a run; the defaults made the shipped model."""

    language: LanguageSettings = field(default_factory=LanguageSettings)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    text: dict[str, Any] = field(default_factory=lambda: dict(TEXT))
    vision: dict[str, Any] = field(default_factory=lambda: dict(VISION))


def new_fusion(
    work: Path, world_parts: Sequence[str], world: Path | None = None, **config: Any
) -> tuple[TheWorldForConditionalGeneration, TheWorldProcessor]:
    """A fresh fusion of the work folder's bases, fp32, and its processor."""
    model = TheWorldForConditionalGeneration.from_base_models(
        str(work / "gemma"),
        str(world or work / "world"),
        dtype=torch.float32,
        world_parts=world_parts,
        **{**FUSION_CONFIG, **config},
    )
    return model, TheWorldProcessor.from_config(model.config)


def run_language(
    work: Path, settings: NanoSettings, device: torch.device, world: Path | None = None
) -> dict[str, float]:
    """Stage (c): writes `gemma/` and `reader/`, and returns the gate's accuracies.

    Args:
        world: world folder whose VAE encoder gives the latents; `work/world` unless (b) is still writing that.
    """
    tokenizer = train_tokenizer(settings.language.tokenizer_clips, settings.language.workers)
    config = build_config(tokenizer, settings.text, {"image_size": IMAGE_SIZE, **settings.vision}, TOKENS_PER_IMAGE)
    gemma = build_model(config, tokenizer, settings.language.seed)
    gemma.save_pretrained(work / "gemma")
    build_processor(tokenizer, IMAGE_SIZE, TOKENS_PER_IMAGE).save_pretrained(work / "gemma")
    model, processor = new_fusion(work, ("encoder",), world)
    gate = train_language(model, processor, settings.language, work, device)
    model.to("cpu")
    model.vlm.to(torch.bfloat16).save_pretrained(work / "gemma")
    freezing.train_only(model, ("projector",))
    model.config.vlm_name_or_path, model.config.world_name_or_path = str(work / "gemma"), str(work / "world")
    model.save_pretrained(work / "reader")
    write_json(work / "language.json", {"settings": asdict(settings.language), "gate": GATE, "accuracy": gate})
    for mode in ("picture", "world"):
        level = logging.INFO if gate[mode] >= GATE else logging.WARNING
        logger.log(level, "now-questions from the %s alone: %.1f %% (gate %.0f %%)", mode, 100 * gate[mode], 100 * GATE)
    return gate


def run_fusion(
    work: Path, settings: NanoSettings, device: torch.device, kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, dict[str, float]]:
    """Stage (d): writes a folder a kind, and returns their accuracies on validation questions."""
    reader = TheWorldForConditionalGeneration.from_pretrained(
        work / "reader", dtype=torch.float32, world_parts=("encoder", "transformer")
    ).to(device)
    fusion = settings.fusion
    scenes = draw_scenes("train", LABELLED_FROM, fusion.scenes_per_family, fusion.workers)
    validation = draw_scenes("validation", 0, fusion.validation_scenes, fusion.workers)
    scenes.clips, validation.clips = scenes.clips.to(device), validation.clips.to(device)
    futures = imagined_futures(reader, scenes, fusion)
    validation_futures = imagined_futures(reader, validation, fusion, first_seed=500_000)
    results = {}
    for kind in kinds:
        parts, world_on = KINDS[kind]
        torch.manual_seed(fusion.seed)
        model, processor = new_fusion(work, ("encoder",), enable_world=world_on, lora=LORA if "lora" in parts else None)
        if "projector" in parts:
            model.projector.load_state_dict(reader.projector.state_dict())
        # the controls are asked without world tokens, but their questions are written by the same processor
        results[kind] = train_fusion(
            kind, model, processor, scenes, futures, validation, validation_futures, fusion, work, device
        )
        model.to("cpu", torch.bfloat16)
        model.config.vlm_name_or_path, model.config.world_name_or_path = "nano/gemma", "nano/cosmos"
        model.save_pretrained(work / kind)
    write_json(work / "fusion.json", {"settings": asdict(fusion), "validation": results})
    return results


def publish(work: Path, provenance: dict[str, Any], weights: Path = SHIPPED_WEIGHTS) -> None:
    """Copies a run's models over the shipped ones."""
    for name, made in {"cosmos": "world", "gemma": "gemma", **{kind: kind for kind in KINDS}}.items():
        if (weights / name).exists():
            shutil.rmtree(weights / name)
        shutil.copytree(work / made, weights / name)
    write_json(weights / "provenance.json", provenance)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
