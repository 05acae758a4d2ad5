"""Stage (c): a small Gemma 3 learns to read images and world latents, from questions about the present.

Each chat contains several questions about one image, coarse and fine. Each batch gives the model the image, the world
tokens, or both, so that it learns to read either. Some batches also contain later latent frames, with questions about
the present, so that the model learns to distinguish the two.

The training is the general recipe (`theworld.training`); this module has its data, its settings, and the accuracy that
the result must reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from recipes.nano.gemma import build_config, build_model, build_processor, build_tokenizer
from recipes.nano.now import NowSamples, draw_images, encode_images, pool_map, words_of
from theworld.datasets.collator import BatchSampling, ChatCollator, IndexedSample
from theworld.datasets.physics import FAMILIES, IMAGE_SIZE
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.packing import shift
from theworld.model.placeholders import IGNORE_INDEX
from theworld.model.processing import TheWorldProcessor
from theworld.model.projector import sinusoidal_embedding
from theworld.training.config import TrainingConfig
from theworld.training.dataset_loading import Datasets
from theworld.training.loss import answer_sums
from theworld.world_models.base import WorldModel

# Sizes of the two towers: together 3.9 M parameters, small enough that two copies ship.
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
# inputs of a validation batch
MODES = {
    "image": BatchSampling(world_dropout=1.0),
    "world": BatchSampling(image_dropout=1.0),
    "both": BatchSampling(),
}
GATE_QUESTIONS = 4  # of each validation image
POSITIONS_RMS = 0.7  # of position embeddings, close to that of the embeddings to which they are added

# keys of TrainingConfig
TRAINING: dict[str, Any] = {
    "max_steps": 4500,
    "batch_size": 128,
    "gradient_accumulation_steps": 1,
    # with AdamW only, sides stay at chance for thousands of steps (docs/LOG.md)
    "optimizer": "muon",
    "muon_learning_rate": 0.02,
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "warmup_steps": 200,
    "weight_decay": 0.02,
    "adam_beta2": 0.98,
    # 45 % of batches have only the image, 35 % only world tokens, 20 % both
    "world_dropout": 0.45,
    "image_dropout": 0.35,
    # number of world steps for chats about a first frame; the others always use 0
    "world_steps_mix": {"0": 0.25, "1": 0.25, "2": 0.25, "4": 0.25},
    "freeze_gemma_vision": False,
    "freeze_gemma_language": False,
    "projector_positions": "sinusoidal",
    "max_seq_length": None,
    "eval_steps": 1000,
    "eval_batch_size": 256,
    "save_steps": 1000,
    "save_total_limit": 1,
    "shown_samples": 0,
    "logging_steps": 100,
    "num_workers": 2,
}


@dataclass(frozen=True)
class LanguageSettings:
    """Data and settings of stage (c).

    Args:
        clips_per_family: training clips with questions.
        frames_per_clip: frames with questions per clip; the first frame is always one of them.
        turns: questions of each kind (see `recipes.nano.now`) per chat; twelve questions take 320 tokens.
        per_kind: questions of each kind per image.
        chats_of_first, chats_of_later, late: as in `NowSamples`.
        validation_clips: clips per family for the final accuracy.
        tokenizer_clips: training clips per family whose words form the vocabulary.
        workers: processes that render clips before training.
        training: keys of `TrainingConfig`, see TRAINING.
    """

    clips_per_family: int = 5000
    frames_per_clip: int = 5
    turns: dict[str, int] = field(default_factory=lambda: {"benchmark": 6, "cell": 3, "scan": 3})
    per_kind: int = 12
    chats_of_first: int = 10
    chats_of_later: int = 5
    late: float = 0.5
    validation_clips: int = 200
    tokenizer_clips: int = 200
    seed: int = 0
    workers: int = 2
    training: dict[str, Any] = field(default_factory=lambda: dict(TRAINING))


def train_tokenizer(clips_per_family: int, workers: int) -> PreTrainedTokenizerFast:
    """A tokenizer over the words of the questions and answers of training clips."""
    tasks = [(family, "train", index) for family in FAMILIES for index in range(clips_per_family)]
    corpus = [piece for words in pool_map(words_of, tasks, workers) for piece in words]
    return build_tokenizer([*corpus, *["user", "model"] * 200], VOCABULARY)


def write_untrained_gemma(
    folder: Path, settings: LanguageSettings, text: dict[str, Any], vision: dict[str, Any]
) -> None:
    """Writes an untrained Gemma 3 with a tokenizer and a processor for nano's scenes."""
    tokenizer = train_tokenizer(settings.tokenizer_clips, settings.workers)
    config = build_config(tokenizer, text, {"image_size": IMAGE_SIZE, **vision}, TOKENS_PER_IMAGE)
    gemma = build_model(config, tokenizer, settings.seed)
    init_positions(gemma)
    gemma.save_pretrained(folder)
    build_processor(tokenizer, IMAGE_SIZE, TOKENS_PER_IMAGE).save_pretrained(folder)


@torch.no_grad()
def init_positions(gemma: Gemma3ForConditionalGeneration, rms: float = POSITIONS_RMS) -> None:
    """Initialises the position embeddings of the vision tower with sinusoids of row and column.

    With zeros, the model learns positions from the order of tokens, which gives rows; columns are not learned for
    thousands of steps.
    """
    # the prefix of this name differs between versions of transformers
    (vision,) = (
        parameter
        for name, parameter in gemma.model.vision_tower.named_parameters()
        if name.endswith("embeddings.position_embedding.weight")
    )
    side, width = round(vision.shape[0] ** 0.5), vision.shape[1]
    grid = torch.cat(
        [
            sinusoidal_embedding(side, width // 2).repeat_interleave(side, 0),
            sinusoidal_embedding(side, width - width // 2).repeat(side, 1),
        ],
        1,
    )
    vision.copy_(grid * rms)


def load_now(settings: LanguageSettings, world: WorldModel, temporal_factor: int) -> Datasets:
    """Training and validation samples; each validation sample has one question, and half of them hide their image."""
    images = draw_images(
        "train", 0, settings.clips_per_family, settings.frames_per_clip, settings.per_kind, settings.workers
    )
    train = NowSamples(
        images,
        encode_images(images, world),
        settings.turns,
        settings.chats_of_first,
        settings.chats_of_later,
        settings.late,
        ahead=True,
        temporal_factor=temporal_factor,
        seed=settings.seed,
    )
    return train, validation_samples(settings, world, hidden=0.5)


def validation_samples(settings: LanguageSettings, world: WorldModel, hidden: float = 0.0) -> NowSamples:
    """Two frames per validation clip, encoded separately, with GATE_QUESTIONS chats of one question each.

    Args:
        hidden: share of chats whose image only the world model sees.
    """
    images = draw_images("validation", 0, settings.validation_clips, 2, GATE_QUESTIONS, settings.workers)
    return NowSamples(
        images,
        encode_images(images, world),
        {"benchmark": 1},
        GATE_QUESTIONS,
        GATE_QUESTIONS,
        late=0.0,
        hidden=hidden,
    )


@torch.no_grad()
def now_accuracy(
    model: TheWorldForConditionalGeneration,
    processor: TheWorldProcessor,
    samples: NowSamples,
    batch_size: int = 256,
) -> dict[str, float]:
    """Share of exactly correct answers, by mode and by mode, family and topic; one question per chat."""
    model.eval()
    device = model.device
    right: dict[str, list[bool]] = {}
    for mode, draws in MODES.items():
        collator = ChatCollator(processor, draws)
        for start in range(0, len(samples), batch_size):
            indices = range(start, min(start + batch_size, len(samples)))
            batch = collator([IndexedSample(index, samples[index]) for index in indices])
            inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            labels = inputs.pop("labels")
            before_labels = shift(labels) != IGNORE_INDEX
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(**inputs, use_cache=False, logits_to_keep=before_labels).logits
            hits = answer_sums(logits, labels)[:, 2] == 1
            for index, hit in zip(indices, hits.tolist(), strict=True):
                (asked,) = samples.asked(index)
                right.setdefault(mode, []).append(hit)
                right.setdefault(f"{mode}/{asked.family}/{asked.topic}", []).append(hit)
    return {key: float(np.mean(hits)) for key, hits in sorted(right.items())}


def training_config(values: Mapping[str, Any], device: torch.device, **more: Any) -> TrainingConfig:
    """A training config with bf16 on a GPU and float32 elsewhere."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    return TrainingConfig.from_dict({"mixed_precision": precision, **values, **more}, "the settings of nano")


def topics_of(accuracy: Mapping[str, float]) -> Sequence[tuple[str, str, str, float]]:
    """Rows (mode, family, topic, accuracy) of the result of `now_accuracy`."""
    return [(*key.split("/"), right) for key, right in accuracy.items() if "/" in key]
