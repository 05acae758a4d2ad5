"""Predicts the memory per GPU of a training run: the recipe of `theworld train` on one GPU or several.

`theworld.inspection.memory` describes stock PyTorch in one dtype. A run differs from it: trained weights, their
gradients and Adam's moments are float32 (4 bytes), frozen weights have b bytes, logits exist only where a label
follows, and several GPUs share what a strategy shards.

P trained parameters, n GPUs, b bytes of a frozen weight and of what is computed with; per GPU, what exists between two
steps (`persistent`):

| | frozen Gemma | trained weights | Adam | more |
|---|---|---|---|---|
| one GPU | b | 4P | 8P | |
| DDP | b | 4P | 8P | 4P: the gradients, in the buckets that are sent |
| FSDP2 | b / n | 4P / n | 8P / n | |
| ZeRO-2 | b | bP and 4P / n | 8P / n | |
| ZeRO-3 | b / n | (b + 4)P / n | 8P / n | bP / n of gradients, and a bucket of `BUCKET` of them |

The world model is complete on each GPU. On top comes the largest of what exists for a moment: at the end of forward the
activations, the logits and the loss; at the end of backward the gradients; with ZeRO the step of the optimizer, which
makes float32 copies of the gradients.

On one and two H200s with Gemma 3 4B, batch 4 per GPU, the predictions are within 10 % of what was measured
(`benchmarks/training_throughput.py`, `benchmarks/results/training_strategies.jsonl`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from theworld.inspection import memory
from theworld.inspection.memory import TEXT_TOKENS, Prediction
from theworld.model.call_plan import world_parts_for
from theworld.model.configuration import TheWorldConfig

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
SHARDS_WEIGHTS = ("fsdp2", "zero3")
GEMMA = ("projector", "lora", "vision", "language")
BUCKET = 500_000_000  # values that DeepSpeed sends at once (reduce_bucket_size)
SUB_GROUP = 1_000_000_000  # parameters that ZeRO-3 updates at once (sub_group_size)
LIVE = 2 * SUB_GROUP  # that it keeps gathered (stage3_max_live_parameters and stage3_max_reuse_distance)


def training_run(
    config: TheWorldConfig,
    counts: Mapping[str, int],
    trained: Iterable[str],
    *,
    num_world_steps: int,
    batch: int = 1,
    strategy: str = "ddp",
    num_gpus: int = 1,
    b: int = 2,
    text_tokens: int = TEXT_TOKENS,
    label_tokens: int = TEXT_TOKENS,
    checkpointing: bool = False,
    world_parts: Iterable[str] | None = None,
) -> Prediction:
    """Memory per GPU of one step of a run.

    Args:
        counts: parameters of each part of the whole model, by the names of `theworld.model.freezing`.
        trained: names of the parts that are trained.
        batch: samples per GPU.
        strategy: one of `STRATEGIES`; without effect on one GPU.
        b: bytes of a frozen weight: 2 in mixed precision, 4 with `mixed_precision` fp32.
        label_tokens: positions of a batch at which at least one sample has a label.
        checkpointing: activation checkpointing (`use_gradient_checkpointing`).
        world_parts: parts of the world model in memory; None means those that the step needs.
    """
    trained = set(trained)
    kind = strategy if num_gpus > 1 else "one"
    shards = num_gpus if kind in SHARDS_WEIGHTS else 1
    P = sum(count for part, count in counts.items() if part in trained)
    parts = world_parts_for(num_world_steps) if world_parts is None else world_parts
    frozen = {part: count for part, count in counts.items() if part not in trained}
    gemma = b * sum(count for part, count in frozen.items() if part in GEMMA)
    world = memory.weight_bytes({part: count for part, count in frozen.items() if part not in GEMMA}, parts, b)
    persistent = {"frozen weights": gemma // shards + world, **trained_bytes(kind, P, b, num_gpus)}

    # What the language model computes with is float32 where its embeddings are, which autocast leaves as they are.
    stream = 4 if "language" in trained and kind in ("one", "ddp") else b
    tokens = batch * memory.sequence_length(config, num_world_steps, text_tokens)
    text = config.get_text_config()
    layer = tokens * memory.layer_bytes(config, tokens // batch, trained, b)
    layer += tokens * (stream - b) * 2 * text.hidden_size  # the two residual sums
    layers = text.num_hidden_layers * (tokens * stream * text.hidden_size if checkpointing else layer)
    final_norm = tokens * 4 * text.hidden_size * (2 if "language" in trained else 1)
    vision = batch * memory.vision_kept_bytes(config, b, checkpointing) if "vision" in trained else 0
    vision_layer = batch * memory.vision_layer_bytes(config, b) if "vision" in trained else 0
    encoder = batch * memory.encoder_kept_bytes(config, b) if "vae_encoder" in trained else 0
    labels = batch * label_tokens * text.vocab_size * (b + 12)  # logits, and what the loss makes of them
    masks = memory.mask_bytes(batch, tokens // batch, b)
    head = text.vocab_size * text.hidden_size if "language" in trained else 0
    gathered = b * (counts["language"] // text.num_hidden_layers + text.vocab_size * text.hidden_size)
    # FSDP2 and ZeRO-3 gather what a layer and the embeddings need; autocast keeps a copy of each trained weight
    whole = gathered if kind in SHARDS_WEIGHTS else b * P * (b < 4 and kind in ("one", "ddp"))
    gradients = {"one": 4 * P, "ddp": 0, "fsdp2": 4 * P // num_gpus, "zero2": b * P // num_gpus, "zero3": 0}[kind]
    embedding_gradients = {"one": 4, "ddp": 4, "fsdp2": 2 * b + 4}.get(kind, 2 * b) * head
    live = b * min(LIVE, sum(counts.get(part, 0) for part in GEMMA)) if kind == "zero3" else 0
    transient = {
        "backward starts": layers + final_norm + vision + encoder + labels + masks + whole + live,
        "backward ends": gradients + embedding_gradients + live + max(layer, vision_layer) + vision + encoder,
        "vision": memory.vision_live_bytes(config, batch, b) + live,
    }
    if kind == "zero2":  # the gradients, the same in one piece, and in float32
        transient["optimizer step"] = (2 * b + 4) * P // num_gpus
    if kind == "zero3":
        transient["optimizer step"] = 4 * min(SUB_GROUP, P // num_gpus)
    if config.enable_world and num_world_steps and "transformer" in set(parts):
        transient["rollout"] = memory.rollout_bytes(config, num_world_steps, batch, b)
    return Prediction(persistent, transient)


def trained_bytes(kind: str, P: int, b: int, num_gpus: int) -> dict[str, int]:
    """Bytes per GPU of P trained parameters and their optimizer states between two steps."""
    n = num_gpus
    if kind in ("one", "ddp"):
        found = {"trained weights": 4 * P, "Adam states": 8 * P}
        return {**found, "gradients": 4 * P} if kind == "ddp" else found
    if kind == "fsdp2":
        return {"trained weights": 4 * P // n, "Adam states": 8 * P // n}
    found = {"trained weights": (b * P if kind == "zero2" else b * P // n) + 4 * P // n, "Adam states": 8 * P // n}
    return found if kind == "zero2" else {**found, "gradients": b * P // n + b * BUCKET}
