"""How much memory a call will take, from configs alone: the formulas, term by term.

What is predicted is the peak of what torch allocates on one device, in stock eager PyTorch with SDPA attention. A call
*holds* some things all the time (weights, optimiser state) and passes through *moments* (the rollout, a prefill, the
turn from forward to backward); its peak is what it holds plus the largest moment. A process needs `DRIVER` beside it on
a GPU and `LIBRARIES` in RAM.

Letters: B samples of one picture each, N world steps, T = 1 + N latent frames, L tokens of one sample, D width, F width
of the MLP, Q = heads · head_dim, K = key-value heads · head_dim, V vocabulary rows, b bytes of one number.

One decoder layer of Gemma 3, bytes that backward needs, for each token (`layer_bytes`):

| kept for backward | bytes | why |
|---|---|---|
| the four norms' inputs | 4 · 4D | Gemma's RMSNorm computes in float32 and keeps that copy of its input |
| the norms of query and key | 4 · (Q + K) | the same |
| attention: query, key, value, output | b · 4Q | with a mask SDPA gets the keys and values repeated for every head |
| attention: the mask as numbers | b · L | one row of it a token, made anew in each layer and shared by the heads |
| MLP: gate, gate after GELU, up | b · 3F | GELU keeps its input, the product keeps both factors |

A frozen linear layer keeps nothing of a token: the gradient of its input needs its weight alone. Where the language
model learns, each linear layer keeps its input (b · (2D + F): query, key and value share one, gate and up share one,
the output projection's is the attention's output) and each norm its normalised float32 value (4 · (4D + Q + K)); a LoRA
keeps the inputs of the layers it sits on, and b · r behind each.

The logits are V wide, and the loss turns the whole of them to float32: the logits (b · V), the log-softmax (4V), and in
backward the gradients of the negative log-likelihood (4V) and of the log-softmax (4V) are in memory together.

For Gemma 3 4B in bfloat16 a frozen layer keeps 128 KiB a token and the mask. A projector-only step at N = 0 and B = 4
(1,104 tokens) is predicted to take 41.9 GiB; 41.8 GiB were measured on one H100 (2026-11-22, random weights of full
size).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from theworld.configuration import TheWorldConfig

GIB = 2**30
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of one number

TEXT_TOKENS = 60  # chat template, question and short answer
NEW_TOKENS = 128  # of an answer
DRIVER = GIB // 2  # CUDA context and the workspaces of its libraries, which torch does not count
LIBRARIES = GIB  # resident size of Python with torch, transformers and diffusers loaded

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a decoder layer

# feature maps of the VAE's widest stage that live at once while it encodes: seven around a convolution, whose input is
# padded to three frames, and five in the causal convolutions' caches
VAE_LIVE_MAPS = 12


@dataclass(frozen=True)
class Prediction:
    """Bytes of one call: `holds` all the time, and `moments`, of which the largest counts."""

    holds: Mapping[str, int]
    moments: Mapping[str, int]

    @property
    def peak(self) -> int:
        return sum(self.holds.values()) + max(self.moments.values())

    @property
    def largest_moment(self) -> str:
        return max(self.moments, key=lambda name: self.moments[name])


def sequence_length(config: TheWorldConfig, num_world_steps: int, text_tokens: int = TEXT_TOKENS) -> int:
    """L: a picture's soft tokens between begin and end, its world tokens, and text."""
    world = config.world_token_count(num_world_steps) if config.enable_world else 0
    return config.vlm_config.mm_tokens_per_image + 2 + world + text_tokens


def weight_bytes(counts: Mapping[str, int], world_parts: Iterable[str], b: int) -> int:
    """Weights in memory: all but the world model's parts that are not loaded.

    Args:
        counts: parameters of each part of the whole model, by the names of `theworld.freezing`.
        world_parts: of `encoder`, `decoder`, `transformer`.
    """
    names = {"encoder": "vae_encoder", "decoder": "vae_decoder", "transformer": "world_transformer"}
    unused = {name for part, name in names.items() if part not in set(world_parts)}
    return b * sum(count for part, count in counts.items() if part not in unused)


def world_parts_for(num_world_steps: int, mode: str = "tokens") -> tuple[str, ...]:
    """The world model's parts that a call loads; imagined frames are decoded."""
    if num_world_steps == 0:
        return ("encoder",)
    return ("encoder", "transformer") if mode == "tokens" else ("encoder", "transformer", "decoder")


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
) -> Prediction:
    """Answering `batch` questions of one picture each: look, imagine, read, write; no gradients anywhere."""
    tokens = sequence_length(config, num_world_steps, text_tokens)
    text = config.get_text_config()
    reading = (
        cache_bytes(config, batch, tokens + new_tokens, b)
        + batch * tokens * b * (2 * text.hidden_size + 3 * text.intermediate_size)  # one layer's residual, input, MLP
        + mask_bytes(batch, tokens, b)
        + batch * text.vocab_size * (b + 4)  # logits of the last position, and their float32 copy
    )
    moments = {"vision": vision_live_bytes(config, batch, b), "prefill": reading}
    if config.enable_world:
        moments["world encoder"] = encoder_live_bytes(config, batch, b)
        if num_world_steps:
            moments["rollout"] = rollout_bytes(config, num_world_steps, batch, b)
    parts = world_parts_for(num_world_steps, mode) if world_parts is None else world_parts
    return Prediction({"weights": weight_bytes(counts, parts, b)}, moments)


def training(
    config: TheWorldConfig,
    counts: Mapping[str, int],
    learns: Iterable[str],
    *,
    num_world_steps: int,
    batch: int = 1,
    b: int = 2,
    text_tokens: int = TEXT_TOKENS,
    checkpointing: bool = False,
    world_parts: Iterable[str] | None = None,
) -> Prediction:
    """One step of AdamW over `batch` samples, in which the parts of `learns` have gradients.

    Adam's two moments and the gradient have the weights' type, as torch makes them. When backward starts, everything
    forward kept is there and no gradient is; when it ends, it is the other way round.
    """
    learns = set(learns)
    tokens = sequence_length(config, num_world_steps, text_tokens)
    text = config.get_text_config()
    trainable = sum(count for part, count in counts.items() if part in learns)
    layer = batch * tokens * layer_bytes(config, tokens, learns, b)
    layers = text.num_hidden_layers * layer
    final_norm = batch * tokens * 4 * text.hidden_size * (2 if "language" in learns else 1)
    logits = batch * tokens * text.vocab_size * (b + 12)
    if not learns & {"projector", "lora", "language", "vision", "vae_encoder"}:
        layers = final_norm = 0  # nothing learns: nothing is kept
    vision = batch * vision_kept_bytes(config, b) if "vision" in learns else 0
    encoder = batch * encoder_kept_bytes(config, b) if "vae_encoder" in learns and config.enable_world else 0
    gradients = b * trainable
    moments = {
        "backward starts": layers + final_norm + logits + vision + encoder + mask_bytes(batch, tokens, b),
        "backward ends": gradients + max(layer, vision, encoder),
        "vision": vision_live_bytes(config, batch, b),
    }
    if config.enable_world and num_world_steps:
        moments["rollout"] = rollout_bytes(config, num_world_steps, batch, b)
    parts = world_parts_for(num_world_steps) if world_parts is None else world_parts
    weights = weight_bytes(counts, parts, b)
    return Prediction({"weights": weights, "Adam states": 2 * b * trainable}, moments)


# --------------------------------------------------------------------------------------------------- language model


def layer_bytes(config: TheWorldConfig, tokens: int, learns: Iterable[str] = (), b: int = 2) -> int:
    """Bytes of one token that one decoder layer keeps for backward; the table at the top of this file."""
    learns = set(learns)
    text = config.get_text_config()
    D, F = text.hidden_size, text.intermediate_size
    Q, K = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    norms = 4 * (4 * D + Q + K)
    kept = norms + b * (4 * Q + tokens + 3 * F)
    if "language" in learns:
        return kept + norms + b * (2 * D + F)
    if "lora" in learns and config.lora is not None:
        targets = config.lora.get("target_modules") or ()
        targets = set(LINEAR_LAYERS if isinstance(targets, str) else targets)  # "all-linear"
        inputs = (({"q_proj", "k_proj", "v_proj"}, D), ({"gate_proj", "up_proj"}, D), ({"down_proj"}, F))
        kept += b * sum(width for modules, width in inputs if modules & targets)
        kept += b * len(targets) * int(config.lora.get("r", 8))
    return kept


def cache_bytes(config: TheWorldConfig, batch: int, tokens: int, b: int) -> int:
    """Keys and values of every layer; sliding layers count whole, since a prefill holds all of theirs at first."""
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
    """One SigLIP layer at work: residual, input, and the MLP's two wide values."""
    vision = config.vlm_config.vision_config
    return batch * vision_patches(config) * b * 2 * (vision.hidden_size + vision.intermediate_size)


def vision_kept_bytes(config: TheWorldConfig, b: int) -> int:
    """What SigLIP keeps of one picture where it learns.

    A layer: two LayerNorms' inputs, the input of query, key and value, those three and the attention's output, the
    MLP's input (8 · width), and the MLP before and after its GELU. Around the layers: the pixels and the last norm's
    input.
    """
    vision = config.vlm_config.vision_config
    per_patch = b * (8 * vision.hidden_size + 2 * vision.intermediate_size)
    around = b * (vision.num_channels * vision.image_size**2 + vision_patches(config) * vision.hidden_size)
    return int(vision_patches(config) * vision.num_hidden_layers * per_patch + around)


# ------------------------------------------------------------------------------------------------------ world model


def rollout_bytes(config: TheWorldConfig, num_world_steps: int, batch: int, b: int) -> int:
    """One block of the world transformer at work on all T frames; guidance doubles the batch.

    For each of its tokens, in widths: residual 1, the time embedding 1 and its modulation 3, this block's modulation 3,
    the normalised input 1, and the MLP before and after its GELU (twice its ratio).
    """
    transformer = config.world_config.transformer
    width = transformer.get("num_attention_heads", 32) * transformer.get("attention_head_dim", 128)
    patch_t, patch_h, patch_w = transformer.get("patch_size", (1, 2, 2))
    rows, columns = config.world_grid()
    tokens = (1 + num_world_steps) // patch_t * (rows // patch_h) * (columns // patch_w)
    passes = 2 if config.world_config.guidance_scale > 1 else 1
    return int(passes * batch * tokens * b * width * (9 + 2 * transformer.get("mlp_ratio", 4.0)))


def vae_stages(config: TheWorldConfig) -> list[tuple[int, int, int]]:
    """The encoder's stages: (channels in, channels out, side in pixels)."""
    vae = config.world_config.vae
    base, multipliers = vae.get("base_dim", 96), vae.get("dim_mult", [1, 2, 4, 4])
    widths = [base, *(base * factor for factor in multipliers)]
    return [
        (before, after, config.world_image_size // 2**level) for level, (before, after) in enumerate(pairwise(widths))
    ]


def encoder_live_bytes(config: TheWorldConfig, batch: int, b: int) -> int:
    """The VAE encoder at work on one frame of each picture."""
    return batch * VAE_LIVE_MAPS * b * max(after * side**2 for _, after, side in vae_stages(config))


def encoder_kept_bytes(config: TheWorldConfig, b: int) -> int:
    """What the VAE encoder keeps of one picture where it learns.

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
