"""Gemma 3 as published, so that the size of a model is known before its licence is accepted."""

from __future__ import annotations

from transformers.models.gemma3 import Gemma3Config

DEFAULT_GEMMA = "google/gemma-3-4b-it"

# Every field of all three sizes, and of the vision tower and the rotary embedding below, was compared with two places
# where Google wrote them out (2026-11-25): the variants in transformers' convert_gemma3_weights.py and the classes in
# gemma/gm/nn/_gemma.py of google-deepmind/gemma. The config.json of 12B and 27B are gated and were not read.
TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "query_pre_attn_scalar",
)
GEMMA_3_TEXT: dict[str, dict[str, int]] = {
    name: dict(zip(TEXT_FIELDS, values, strict=True))
    for name, values in {
        "google/gemma-3-4b": (2560, 10240, 34, 8, 4, 256, 256),
        "google/gemma-3-12b": (3840, 15360, 48, 16, 8, 256, 256),
        "google/gemma-3-27b": (5376, 21504, 62, 32, 16, 128, 168),
    }.items()
}


def published_gemma(name: str) -> Gemma3Config | None:
    """The config of a published Gemma 3, by its Hub id (`-it` or `-pt`), without reading anything; None for others."""
    text = GEMMA_3_TEXT.get(name.removesuffix("-it").removesuffix("-pt"))
    if text is None:
        return None
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    }
    rows = {"vocab_size": 262_208, "sliding_window": 1024, "rope_parameters": rope}
    return Gemma3Config(text_config={**text, **rows}, vision_config=vision, mm_tokens_per_image=256)
