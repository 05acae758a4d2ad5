"""The formulas of memory are what torch keeps: counted with hooks on tiny models, and the published pair's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_bases, tiny_model
from theworld.inspection import memory
from theworld.model import freezing
from theworld.model.configuration import TheWorldConfig
from theworld.model.published import GEMMA_3_TEXT, published_gemma

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
COUNTS_4B = {"vision": 419_816_304, "language": 3_880_263_168, "projector": 235_520}
COUNTS_2B = {"vae_encoder": 53_596_928, "vae_decoder": 73_295_603, "world_transformer": 1_956_413_440}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def kept_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of `run`, each storage once, without the parameters."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor  # the tensor itself, so that no storage is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("learns", [("projector",), ("language",), ("lora",)])
def test_a_decoder_layer_keeps_what_the_table_says(
    bases: dict[str, str], learns: tuple[str, ...], dtype: torch.dtype
) -> None:
    model, _ = tiny_model(bases, lora=LORA if "lora" in learns else None)
    model = model.to(dtype)
    freezing.train_only(model, learns)
    layers = model.vlm.model.language_model.layers
    batch, tokens, width = 2, 48, model.config.get_text_config().hidden_size
    hidden = torch.randn(batch, tokens, width, dtype=dtype, requires_grad=True)
    mask = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool).tril()
    head = model.config.get_text_config().head_dim
    rotary = (torch.ones(1, tokens, head, dtype=dtype), torch.zeros(1, tokens, head, dtype=dtype))
    counted = kept_bytes(model, lambda: layers[0](hidden, attention_mask=mask, position_embeddings=rotary))
    predicted = batch * tokens * memory.layer_bytes(model.config, tokens, learns, dtype.itemsize)
    assert counted == pytest.approx(predicted, rel=0.04)  # one number a token and norm is left out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_vision_tower_keeps_what_its_formula_says(bases: dict[str, str], dtype: torch.dtype) -> None:
    model, _ = tiny_model(bases)
    model = model.to(dtype)
    freezing.train_only(model, ["vision"])
    side = model.config.vlm_config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, dtype=dtype)
    counted = kept_bytes(model, lambda: model.vlm.model.vision_tower(pixels).last_hidden_state)
    assert counted == pytest.approx(2 * memory.vision_kept_bytes(model.config, dtype.itemsize), rel=0.04)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_vae_encoder_keeps_what_its_formula_says(bases: dict[str, str], dtype: torch.dtype) -> None:
    model, _ = tiny_model(bases)
    model.world.to(dtype)
    freezing.train_only(model, ["vae_encoder"])
    size = model.config.world_image_size
    frames = torch.rand(2, 3, 1, size, size)
    counted = kept_bytes(model, lambda: model.world.encode(frames))
    # the attention in the middle is left out: in a real one its 28 × 28 cells are 1/64 of the first stage's
    assert counted == pytest.approx(2 * memory.encoder_kept_bytes(model.config, dtype.itemsize), rel=0.1)


def test_the_published_pair_is_predicted_as_it_was_measured() -> None:
    config = TheWorldConfig(vlm_config=published_gemma("google/gemma-3-4b-it"))
    counts = {**COUNTS_4B, **COUNTS_2B}
    assert memory.sequence_length(config, 0) == 1104
    assert memory.sequence_length(config, 4) == 4240
    step = memory.training(config, counts, ["projector"], num_world_steps=0, batch=4)
    assert step.peak / memory.GIB == pytest.approx(41.8, rel=0.01)  # one H100, 2026-11-22
    assert step.largest_transient == "backward starts"
    # what did not fit on that card of 79 GiB does not fit here: by far, and by the holes that large tensors leave
    for batch, steps, least in ((4, 4, 79), (8, 0, 75)):
        step = memory.training(config, counts, ["projector"], num_world_steps=steps, batch=batch)
        assert step.peak > least * memory.GIB
    answer = memory.inference(config, counts, num_world_steps=0)
    assert 8 * memory.GIB < answer.peak < 9 * memory.GIB
    assert memory.inference(config, counts, num_world_steps=4).peak - answer.peak > 2 * COUNTS_2B["world_transformer"]


def test_nothing_that_learns_keeps_nothing(bases: dict[str, str]) -> None:
    model, _ = tiny_model(bases)
    counts = {row.part: row.total for row in freezing.count_parameters(model)}
    config = model.config
    step = memory.training(config, counts, ["projector", "language"], num_world_steps=1)
    assert step.persistent["Adam states"] == 2 * 2 * (counts["projector"] + counts["language"])
    assert step.peak == sum(step.persistent.values()) + step.transient[step.largest_transient]
    more = memory.training(config, counts, ["projector", "language", "vision"], num_world_steps=1)
    assert more.peak > step.peak


def test_published_gemmas_are_known_and_no_others(tmp_path: Path) -> None:
    for name in GEMMA_3_TEXT:
        config = published_gemma(f"{name}-it")
        assert config is not None
        assert config.text_config.hidden_size == GEMMA_3_TEXT[name]["hidden_size"]
        assert config.image_token_id == 262_144
    assert published_gemma("owner/gemma-3-4b-it") is None
    assert published_gemma(str(tmp_path)) is None
