"""The formulas of memory against live bytes, counted on the published models' shapes with a few layers of each.

What `tests/inspection/test_memory.py` counts for one layer, on real numbers, is combined here into complete steps and
calls, at the published widths. With all layers, and with all kernels, `benchmarks/full_size.py` measures it on a GPU.
"""

from __future__ import annotations

import gc

import pytest
import torch

from benchmarks.full_size_run import TRAINING
from benchmarks.live_memory import LiveMemory
from tests.shapes_only import build, inputs, shapes_only
from theworld.inspection import memory
from theworld.model import freezing
from theworld.model.configuration import TheWorldConfig
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.published import published_gemma
from theworld.world_models.configuration import COSMOS_2B_TRANSFORMER, CosmosPredict2Config

TEXT = 40
WITHIN = 0.05
EVERY_PART = ("encoder", "transformer", "decoder")


def shallow(text_layers: int = 6, vision_layers: int = 6, world_layers: int = 2) -> TheWorldConfig:
    """The published pair with fewer layers."""
    gemma = published_gemma("google/gemma-3-4b-it")
    assert gemma is not None
    gemma.text_config.num_hidden_layers = text_layers
    gemma.text_config.layer_types = gemma.text_config.layer_types[:text_layers]
    gemma.vision_config.num_hidden_layers = vision_layers
    transformer = {**COSMOS_2B_TRANSFORMER, "num_layers": world_layers}
    return TheWorldConfig(vlm_config=gemma, world_config=CosmosPredict2Config(transformer=transformer))


def counts_of(model: TheWorldForConditionalGeneration) -> dict[str, int]:
    return {row.part: row.total for row in freezing.count_parameters(model)}


def live_of(model: TheWorldForConditionalGeneration) -> LiveMemory:
    return LiveMemory([*model.parameters(), *model.buffers()])


QUICK = ("projector, B=1, future", "all, B=1, checkpointing *")
SETTINGS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TRAINING]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_step_takes_what_is_predicted(name: str) -> None:
    learns, batch, checkpointing = TRAINING[name].learns, TRAINING[name].batch, TRAINING[name].checkpointing
    steps = 4 if TRAINING[name].imagines else 0
    with shapes_only():
        model = build(shallow(), ("encoder",))
        counts = counts_of(model)
        freezing.train_only(model, learns)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        length = memory.sequence_length(model.config, steps, TEXT)
        batch_of = {**inputs(model.config, length, batch), "labels": torch.zeros(batch, length, dtype=torch.long)}
        if steps:
            batch_of["world_latents"] = torch.empty(batch, 16, 1 + steps, 28, 28)
        else:
            batch_of["world_frames"] = torch.empty(batch, 3, 1, 224, 224)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        with live_of(model) as live:
            for _ in range(2):  # Adam's moments come with the first step
                outputs = model(**batch_of, use_cache=False)
                outputs.loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                del outputs
        predicted = memory.training(
            model.config,
            counts,
            learns,
            num_world_steps=steps,
            batch=batch,
            text_tokens=TEXT,
            checkpointing=checkpointing,
            world_parts=model.world.parts,
        )
    gc.collect()
    assert live.peak == pytest.approx(predicted.peak, rel=WITHIN)


@pytest.mark.parametrize(
    ("steps", "mode", "batch"), [(0, "tokens", 4), (4, "tokens", 1), (4, "tokens", 4), (4, "frames", 1)]
)
@torch.no_grad()
def test_each_moment_of_an_answer_takes_what_is_predicted(steps: int, mode: str, batch: int) -> None:
    counted = {}
    with shapes_only():
        model = build(shallow(), EVERY_PART)
        config, vlm = model.config, model.vlm
        predicted = memory.inference(
            config,
            counts_of(model),
            num_world_steps=steps,
            batch=batch,
            new_tokens=0,
            text_tokens=TEXT,
            mode=mode,
            world_parts=EVERY_PART,
        )
        images = memory.images_shown(steps, mode)
        prompt = inputs(config, memory.sequence_length(config, steps, TEXT, mode), batch, images)
        with live_of(model) as live:
            holds = live.now

            def moment(name: str) -> None:
                counted[name] = live.peak - holds
                live.peak = live.now

            pixels = prompt.pop("pixel_values").to(torch.bfloat16)
            live.peak = live.now
            seen = vlm.model.get_image_features(pixels).pooler_output
            moment("vision")
            del pixels, seen
            latents = model.world.encode(torch.empty(batch, 3, 1, 224, 224))
            moment("world encoder")
            del latents
            if steps:
                frames = 1 + steps
                velocity = model.world.transformer(
                    hidden_states=torch.empty(2 * batch, 16, frames, 28, 28, dtype=torch.bfloat16),
                    timestep=torch.empty(2 * batch, 1, frames, 1, 1, dtype=torch.bfloat16),
                    encoder_hidden_states=torch.empty(2 * batch, 512, 1024, dtype=torch.bfloat16),
                    fps=16,
                    condition_mask=torch.empty(2 * batch, 1, frames, 28, 28, dtype=torch.bfloat16),
                    padding_mask=torch.empty(1, 1, 28, 28, dtype=torch.bfloat16),
                    return_dict=False,
                )[0]
                moment("rollout")
                del velocity
            if mode == "frames":
                shown = model.world.decode(torch.empty(batch, 16, 1 + steps, 28, 28))
                moment("world decoder")
                del shown
            embeds = model.get_input_embeddings()(prompt.pop("input_ids"))
            read = vlm(inputs_embeds=embeds, **prompt, use_cache=True, logits_to_keep=1)
            moment("prefill")
            del embeds, read
    assert holds == pytest.approx(predicted.persistent["weights"], rel=0.001)  # and the default prompts, buffers
    assert counted.keys() == predicted.transient.keys()
    for name, size in counted.items():
        assert size == pytest.approx(predicted.transient[name], rel=0.2), name
    assert holds + max(counted.values()) == pytest.approx(predicted.peak, rel=WITHIN)


def test_activation_checkpointing_leaves_a_frozen_vision_tower_alone() -> None:
    with shapes_only():
        model = build(shallow(1, 1, 1), ("encoder",))
        freezing.train_only(model, ["projector"])
        model.train()
        model.gradient_checkpointing_enable()
        features = model.vlm.model.get_image_features(torch.empty(1, 3, 896, 896, dtype=torch.bfloat16))
        assert not features.pooler_output.requires_grad
