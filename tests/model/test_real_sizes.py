"""Claims about the published models' sizes, on the meta device: no weights, every dimension the real one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from theworld import TheWorldConfig
from theworld.model import freezing
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.published import published_gemma
from theworld.world_models.configuration import COSMOS_2B_TRANSFORMER, CosmosPredict2Config

# as the published config.json files have them: what they leave out is the class's default
SHARED_TEXT = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
GEMMA_TEXT: dict[str, dict[str, Any]] = {
    "4b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
    "12b": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
    },
    "27b": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
    },
}
SIGLIP = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
COSMOS: dict[str, dict[str, Any]] = {
    "2B": COSMOS_2B_TRANSFORMER,
    # diffusers' scripts/convert_cosmos_to_diffusers.py, Cosmos-2.0-Diffusion-14B-Video2World
    "14B": {
        **COSMOS_2B_TRANSFORMER,
        "num_attention_heads": 40,
        "num_layers": 36,
        "rope_scale": [20 / 24, 2.0, 2.0],
    },
}


def gemma_config(size: str) -> dict[str, Any]:
    return {
        "text_config": {**SHARED_TEXT, **GEMMA_TEXT[size]},
        "vision_config": {"model_type": "siglip_vision_model", **SIGLIP},
        "mm_tokens_per_image": 256,
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "eos_token_id": [1, 106],
    }


def on_meta(gemma: str, cosmos: str, **values: Any) -> TheWorldForConditionalGeneration:
    world = CosmosPredict2Config(transformer=COSMOS[cosmos])
    config = TheWorldConfig(vlm_config=gemma_config(gemma), world_config=world, **values)
    with torch.device("meta"):
        return TheWorldForConditionalGeneration(config, world_parts=("encoder", "decoder", "transformer"))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_gemma_4b_and_cosmos_2b_have_the_published_counts() -> None:
    model = on_meta("4b", "2B")
    vlm, world = model.vlm.model, model.world
    embeddings = vlm.language_model.embed_tokens.weight
    assert count(vlm.vision_tower) == 416_866_032
    assert count(vlm.multi_modal_projector) == 2_950_272
    assert embeddings.numel() == 671_252_480
    assert count(vlm.language_model) - embeddings.numel() == 3_209_010_688
    assert model.vlm.lm_head.weight is embeddings
    assert count(model.vlm) == 4_300_079_472
    assert count(world.transformer) == 1_956_413_440
    assert count(world.vae) == 126_892_531
    assert count(world.vae.encoder) == 53_595_872
    assert count(model.projector.projection) == 43_520
    layers = vlm.language_model.config.layer_types
    assert (layers.count("full_attention"), layers.count("sliding_attention")) == (5, 29)
    assert model.config.world_token_id == 262_145
    table = {row.part: row.total for row in freezing.count_parameters(model)}
    assert table["language"] == 3_209_010_688 + 671_252_480
    assert sum(table.values()) == count(model)


@pytest.mark.parametrize("size", GEMMA_TEXT)
def test_what_is_known_without_a_network_is_what_the_published_config_says(size: str) -> None:
    for suffix in ("it", "pt"):
        known = published_gemma(f"google/gemma-3-{size}-{suffix}")
        assert known is not None
        text, vision = known.text_config.to_dict(), known.vision_config.to_dict()
        published = Gemma3Config(**gemma_config(size))
        assert (text, vision) == (published.text_config.to_dict(), published.vision_config.to_dict())
        assert known.mm_tokens_per_image == published.mm_tokens_per_image
    assert published_gemma("google/gemma-3-1b-it") is None, "it sees no images"


# the Gemma 3 report's table 1, in millions (https://arxiv.org/abs/2503.19786): vision, embeddings, and the rest
@pytest.mark.parametrize(
    ("size", "millions"), [("4b", (417, 675, 3_209)), ("12b", (417, 1_012, 10_759)), ("27b", (417, 1_416, 25_600))]
)
def test_each_size_counts_as_the_report_says(size: str, millions: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(published_gemma(f"google/gemma-3-{size}-it")).model
    embeddings = model.language_model.embed_tokens.weight.numel()
    counted = (count(model.vision_tower), embeddings, count(model.language_model) - embeddings)
    assert counted == pytest.approx([1e6 * figure for figure in millions], rel=0.008)


@pytest.mark.parametrize(
    ("gemma", "cosmos", "values"),
    [
        ("12b", "14B", {"projector": "resampler", "lora": 16}),
        ("27b", "14B", {"projector": "mlp", "spatial_merge": 4}),
    ],
)
def test_the_larger_models_fit_together(gemma: str, cosmos: str, values: dict[str, Any]) -> None:
    model = on_meta(gemma, cosmos, num_world_steps=4, **values)
    text, transformer = GEMMA_TEXT[gemma], model.world.transformer
    assert 11e9 < count(model.vlm) - count(model.vlm.model.vision_tower) < 28e9
    assert 13e9 < count(transformer) < 15e9
    assert len(transformer.transformer_blocks) == 36
    assert model.projector.temporal.shape == (17, text["hidden_size"])
    with torch.device("meta"):
        tokens = model.projector(torch.zeros(1, 16, 5, 28, 28))
    assert tokens.shape == (1, model.config.world_token_count(4), text["hidden_size"])


def test_a_resampler_and_a_lora_stay_small() -> None:
    table = {
        row.part: row.total for row in freezing.count_parameters(on_meta("4b", "2B", projector="resampler", lora=16))
    }
    assert table["projector"] < 10e6
    assert table["lora"] == 29_802_496, "60 MB in bfloat16"
