"""Predicts from configs alone how much memory a call takes: the formulas, term by term.

Predicted is the peak of what torch allocates on one device, in stock eager PyTorch with SDPA attention. Some memory is
*persistent* during a call (weights, optimiser state), other is *transient* (the rollout, the prefill, the turn from
forward to backward). The peak is the persistent memory plus the largest transient. In addition, a process needs
`DRIVER` on a GPU and `LIBRARIES` in RAM.

Letters: B samples of one image each, N world steps, T = 1 + N latent frames, L tokens of one sample, D width, F width
of the MLP, Q = heads · head_dim, K = key-value heads · head_dim, V vocabulary rows, b bytes of one number.

Bytes that one decoder layer of Gemma 3 keeps for backward, per token (`layer_bytes`):

| kept for backward | bytes | why |
|---|---|---|
| the four norms' inputs | 4 · 4D | Gemma's RMSNorm computes in float32 and keeps that copy of its input |
| the norms of query and key | 4 · (Q + K) | the same |
| attention: query, key, value, output | b · 4Q | with a mask, keys and values are repeated for every head |
| attention: the mask as numbers | b · L | one row per token, created in each layer and shared by the heads |
| MLP: gate, gate after GELU, up | b · 3F | GELU keeps its input, the product keeps both factors |

A frozen linear layer keeps nothing per token: the gradient of its input needs only its weight. If the language model is
trained, each linear layer keeps its input (b · (2D + F): query, key and value share one, gate and up share one, the
output projection's is the attention's output) and each norm its normalised float32 value (4 · (4D + Q + K)). A LoRA
keeps the inputs of the layers that it is added to, and b · r for each of its outputs.

With activation checkpointing a layer keeps its input (b · D), and backward recomputes the rest, one layer at a time; so
do SigLIP's layers. The VAE does not support it.

The logits are V wide, and the loss converts all of them to float32: the logits (b · V), the log-softmax (4V), and in
backward the gradients of the negative log-likelihood (4V) and of the log-softmax (4V) are in memory together.

For Gemma 3 4B in bfloat16 a frozen layer keeps 128 KiB per token and the mask. A projector-only step at N = 0 and B = 4
(1,104 tokens) is predicted to take 41.9 GiB; 41.8 GiB were measured on one H100 (2026-11-22, random weights of full
size). `tests/inspection/test_memory.py` counts every formula on shapes of the published widths, and
`benchmarks/full_size.py` measures them on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from theworld.model.call_plan import world_parts_for
from theworld.model.configuration import TheWorldConfig

GIB = 2**30

TEXT_TOKENS = 60  # chat template, question and short answer
NEW_TOKENS = 128  # of an answer
DRIVER = GIB // 2  # CUDA context and the workspaces of its libraries, which torch does not count
LIBRARIES = 11 * GIB // 10  # resident size of a process that has used torch, transformers and diffusers
TOKENIZER_ROW = 1200  # bytes of RAM per vocabulary row: 0.3 GiB for Gemma's tokenizer

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a decoder layer

# feature maps of the VAE's first stage that exist at once while it encodes a frame: seven around a convolution, whose
# input is padded to three frames, and five in the caches of the causal convolutions
ENCODER_LIVE_MAPS = 12
# the same of its last stage per pixel frame, while it decodes one latent frame (temporal_factor pixel frames);
# 46 to 56 were counted for four frames, at all widths, sizes and lengths
DECODER_LIVE_MAPS = 13


@dataclass(frozen=True)
class Prediction:
    """Bytes of one call: `persistent` ones, and `transient` ones, of which the largest counts."""

    persistent: Mapping[str, int]
    transient: Mapping[str, int]

    @property
    def peak(self) -> int:
        return sum(self.persistent.values()) + max(self.transient.values())

    @property
    def largest_transient(self) -> str:
        return max(self.transient, key=lambda name: self.transient[name])


def sequence_length(
    config: TheWorldConfig, num_world_steps: int, text_tokens: int = TEXT_TOKENS, mode: str = "tokens"
) -> int:
    """L: the soft tokens of images with their begin and end, world tokens, and text.

    In mode `frames` there is one more image per world step, and no world token.
    """
    image = config.vlm_config.mm_tokens_per_image + 2
    if mode == "frames":
        return images_shown(num_world_steps, mode) * image + text_tokens
    world = config.world_token_count(num_world_steps) if config.enable_world else 0
    return image + world + text_tokens


def images_shown(num_world_steps: int, mode: str) -> int:
    """Images that the language model sees of one sample: the given one, and in mode `frames` the imagined ones."""
    return 1 + num_world_steps if mode == "frames" else 1


def weight_bytes(counts: Mapping[str, int], world_parts: Iterable[str], b: int) -> int:
    """Bytes of the weights in memory: all except parts of the world model that are not loaded.

    Args:
        counts: parameters of each part of the whole model, by the names of `theworld.model.freezing`.
        world_parts: of `encoder`, `decoder`, `transformer`.
    """
    names = {"encoder": "vae_encoder", "decoder": "vae_decoder", "transformer": "world_transformer"}
    unused = {name for part, name in names.items() if part not in set(world_parts)}
    return b * sum(count for part, count in counts.items() if part not in unused)


def inference(
    config: TheWorldConfig,
    counts: Mapping[str, int],
    *,
    num_world_steps: int,
    batch: int = 1,
    b: int = 2,
    new_tokens: int = NEW_TOKENS,
    text_tokens: int = TEXT_TOKENS,
    mode: str = "tokens",
    world_parts: Iterable[str] | None = None,
    text_encoder_bytes: int = 0,
) -> Prediction:
    """Memory of answering `batch` questions about one image each, without gradients.

    Args:
        mode: `tokens`, or `frames`, in which imagined frames are decoded and shown as further images.
        world_parts: those in memory; None means those that the call loads.
        text_encoder_bytes: size of the world model's text encoder, if a prompt is embedded that is not stored.
    """
    tokens = sequence_length(config, num_world_steps, text_tokens, mode)
    text = config.get_text_config()
    reading = (
        cache_bytes(config, batch, tokens + new_tokens, b)
        + batch * tokens * b * (2 * text.hidden_size + 3 * text.intermediate_size)  # one layer's residual, input, MLP
        + mask_bytes(batch, tokens, b)
        + batch * text.vocab_size * (b + 4)  # logits of the last position, and their float32 copy
    )
    images = batch * images_shown(num_world_steps, mode)
    transient = {"vision": vision_live_bytes(config, images, b), "prefill": reading}
    parts = world_parts_for(num_world_steps, mode) if world_parts is None else world_parts
    if config.enable_world:
        transient |= imagining_transient(config, num_world_steps, batch, b, decodes=mode == "frames")
    if text_encoder_bytes:
        transient["text encoder"] = text_encoder_bytes
    return Prediction({"weights": weight_bytes(counts, parts, b)}, transient)


def imagining(
    config: TheWorldConfig, counts: Mapping[str, int], *, num_world_steps: int, batch: int = 1, b: int = 2
) -> Prediction:
    """Memory of imagining a future and decoding it for a person; the language model is in memory and idle."""
    weights = weight_bytes(counts, ("encoder", "decoder", "transformer"), b)
    return Prediction({"weights": weights}, imagining_transient(config, num_world_steps, batch, b, decodes=True))


def imagining_transient(
    config: TheWorldConfig, num_world_steps: int, batch: int, b: int, *, decodes: bool
) -> dict[str, int]:
    """Transient memory of the world model, from an image to latents, or to frames if it `decodes`."""
    transient = {"world encoder": encoder_live_bytes(config, batch, b)}
    if num_world_steps:
        transient["rollout"] = rollout_bytes(config, num_world_steps, batch, b)
        if decodes:
            transient["world decoder"] = decoder_live_bytes(config, num_world_steps, batch, b)
    return transient


def training(
    config: TheWorldConfig,
    counts: Mapping[str, int],
    trained: Iterable[str],
    *,
    num_world_steps: int,
    batch: int = 1,
    b: int = 2,
    text_tokens: int = TEXT_TOKENS,
    checkpointing: bool = False,
    world_parts: Iterable[str] | None = None,
) -> Prediction:
    """Memory of one step of AdamW over `batch` samples, in which the `trained` parts have gradients.

    Adam's two moments and the gradient have the weights' dtype, as torch creates them. When backward starts, everything
    that forward kept exists and no gradient does; when it ends, it is the opposite. The optimiser is the fused one, HF
    Trainer's default, which needs no further memory; torch's own default briefly takes another copy of the trainable
    parameters.

    Args:
        checkpointing: activation checkpointing (`use_gradient_checkpointing`).
        world_parts: those in memory; None means those that the step loads.
    """
    trained = set(trained)
    tokens = sequence_length(config, num_world_steps, text_tokens)
    text = config.get_text_config()
    trainable = sum(count for part, count in counts.items() if part in trained)
    layer = batch * tokens * layer_bytes(config, tokens, trained, b)
    layers = text.num_hidden_layers * (batch * tokens * b * text.hidden_size if checkpointing else layer)
    final_norm = batch * tokens * 4 * text.hidden_size * (2 if "language" in trained else 1)
    logits = batch * tokens * text.vocab_size * b
    in_loss = batch * tokens * text.vocab_size * 12
    if not trained & {"projector", "lora", "language", "vision", "vae_encoder"}:
        layers = final_norm = 0  # nothing is trained, so nothing is kept
    vision = batch * vision_kept_bytes(config, b, checkpointing) if "vision" in trained else 0
    vision_layer = batch * vision_layer_bytes(config, b) if "vision" in trained else 0
    encoder = batch * encoder_kept_bytes(config, b) if "vae_encoder" in trained and config.enable_world else 0
    below = vision + encoder  # kept by forward before the language model, and reached last by backward
    gradients = b * trainable
    head = b * text.vocab_size * text.hidden_size if "language" in trained else 0
    masks = mask_bytes(batch, tokens, b)
    transient = {
        "backward starts": layers + final_norm + logits + in_loss + below + masks,
        # the head's gradient is kept until that of the embeddings, which are the same weights, is added to it
        "backward ends": gradients + 2 * head + logits + max(layer + below, vision_layer + below),
        "vision": vision_live_bytes(config, batch, b),
    }
    if config.enable_world and num_world_steps:
        transient["rollout"] = rollout_bytes(config, num_world_steps, batch, b)
    parts = world_parts_for(num_world_steps) if world_parts is None else world_parts
    return Prediction({"weights": weight_bytes(counts, parts, b), "Adam states": 2 * b * trainable}, transient)


# --------------------------------------------------------------------------------------------------- language model


def layer_bytes(config: TheWorldConfig, tokens: int, trained: Iterable[str] = (), b: int = 2) -> int:
    """Bytes per token that one decoder layer keeps for backward; see the table at the top of this file."""
    trained = set(trained)
    text = config.get_text_config()
    D, F = text.hidden_size, text.intermediate_size
    Q, K = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    norms = 4 * (4 * D + Q + K)
    kept = norms + b * (4 * Q + tokens + 3 * F)
    if "language" in trained:
        return kept + norms + b * (2 * D + F)
    if "lora" in trained and config.lora is not None:
        targets = config.lora.get("target_modules") or ()
        targets = set(LINEAR_LAYERS if isinstance(targets, str) else targets)  # "all-linear"
        inputs = (({"q_proj", "k_proj", "v_proj"}, D), ({"gate_proj", "up_proj"}, D), ({"down_proj"}, F))
        kept += b * sum(width for modules, width in inputs if modules & targets)
        kept += b * len(targets) * int(config.lora.get("r", 8))
    return kept


def cache_bytes(config: TheWorldConfig, batch: int, tokens: int, b: int) -> int:
    """Keys and values of every layer; sliding layers count in full, because a prefill first creates all of them."""
    text = config.get_text_config()
    return batch * tokens * text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * b


def mask_bytes(batch: int, tokens: int, b: int) -> int:
    """The two boolean masks (full and sliding), and one of them as numbers."""
    return batch * tokens**2 * (2 + b)


# ----------------------------------------------------------------------------------------------------- vision tower


def vision_patches(config: TheWorldConfig) -> int:
    vision = config.vlm_config.vision_config
    return int(vision.image_size // vision.patch_size) ** 2


def vision_live_bytes(config: TheWorldConfig, batch: int, b: int) -> int:
    """Live bytes of one SigLIP layer: input, two residuals, normalised value, the MLP's two wide values; the pixels."""
    vision = config.vlm_config.vision_config
    per_patch = 4 * vision.hidden_size + 2 * vision.intermediate_size
    return int(batch * b * (vision_patches(config) * per_patch + vision.num_channels * vision.image_size**2))


def vision_layer_bytes(config: TheWorldConfig, b: int) -> int:
    """Bytes that one SigLIP layer keeps per image if it is trained.

    Two LayerNorms' inputs, the input of query, key and value, those three and the attention's output, the MLP's input
    (8 · width), and the MLP before and after its GELU.
    """
    vision = config.vlm_config.vision_config
    return int(vision_patches(config) * b * (8 * vision.hidden_size + 2 * vision.intermediate_size))


def vision_kept_bytes(config: TheWorldConfig, b: int, checkpointing: bool = False) -> int:
    """Bytes that SigLIP keeps per image if it is trained: those of each layer, the pixels and the input of a norm."""
    vision = config.vlm_config.vision_config
    width = vision_patches(config) * vision.hidden_size * b
    layer = width if checkpointing else vision_layer_bytes(config, b)
    return int(vision.num_hidden_layers * layer + b * vision.num_channels * vision.image_size**2 + width)


# ------------------------------------------------------------------------------------------------------ world model


def rollout_bytes(config: TheWorldConfig, num_world_steps: int, batch: int, b: int) -> int:
    """Live bytes of one block of the world transformer on all T frames; guidance doubles the batch.

    For each of its tokens, in widths: residual 1, the time embedding 1 and its modulation 3, this block's modulation 3
    and the normalised input 1; and the MLP before and after its GELU (twice its ratio), or, where that is more, query,
    key and value and the float32 copies that the rotary embedding makes of one of them (11).
    """
    transformer = config.world_config.transformer
    width = transformer.get("num_attention_heads", 32) * transformer.get("attention_head_dim", 128)
    patch_t, patch_h, patch_w = transformer.get("patch_size", (1, 2, 2))
    rows, columns = config.world_grid()
    tokens = (1 + num_world_steps) // patch_t * (rows // patch_h) * (columns // patch_w)
    passes = 2 if config.world_config.guidance_scale > 1 else 1
    return int(passes * batch * tokens * b * width * (9 + max(2 * transformer.get("mlp_ratio", 4.0), 11)))


def vae_stages(config: TheWorldConfig) -> list[tuple[int, int, int]]:
    """The encoder's stages: (channels in, channels out, side in pixels)."""
    vae = config.world_config.vae
    base, multipliers = vae.get("base_dim", 96), vae.get("dim_mult", [1, 2, 4, 4])
    widths = [base, *(base * factor for factor in multipliers)]
    return [
        (before, after, config.world_image_size // 2**level) for level, (before, after) in enumerate(pairwise(widths))
    ]


def encoder_live_bytes(config: TheWorldConfig, batch: int, b: int) -> int:
    """Live bytes of the VAE encoder on one frame of each image."""
    return batch * ENCODER_LIVE_MAPS * b * max(after * side**2 for _, after, side in vae_stages(config))


def decoder_live_bytes(config: TheWorldConfig, num_world_steps: int, batch: int, b: int) -> int:
    """Live bytes of the VAE decoder on one latent frame of each clip, and the frames that it has written."""
    area = config.world_image_size**2
    maps = DECODER_LIVE_MAPS * config.world_config.temporal_factor * config.world_config.vae.get("base_dim", 96)
    return batch * area * b * (maps + 3 * config.num_pixel_frames(num_world_steps))


def encoder_kept_bytes(config: TheWorldConfig, b: int) -> int:
    """Bytes that the VAE encoder keeps per image if it is trained.

    Before each convolution: a norm's float32 input, its length in each cell (twice), its normalised value, SiLU's input
    and the convolution's own input padded by a cell on every side and to three frames. A change of width adds a 1×1×1
    convolution's input, and a step down its padded input.
    """
    stages = vae_stages(config)
    blocks = int(config.world_config.vae.get("num_res_blocks", 2))

    def convolution(width: int, side: int) -> int:
        return side**2 * (width * (4 + 2 * b) + 8) + 3 * (side + 2) ** 2 * width * b

    total = 3 * (config.world_image_size + 2) ** 2 * 3 * b  # of the three colours
    for level, (before, after, side) in enumerate(stages):
        for block in range(blocks):
            width = before if block == 0 else after
            total += convolution(width, side) + convolution(after, side)
            total += width * side**2 * b if width != after else 0
        total += after * (side + 1) ** 2 * b if level + 1 < len(stages) else 0
    _, width, side = stages[-1]
    return total + 4 * convolution(width, side)  # the two blocks in the middle
