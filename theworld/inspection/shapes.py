"""From an image to the next token, in the shapes that the code itself computes: `describe_shapes`.

The model is built on the meta device, where tensors have shapes and no values, and its own methods are called there:
nothing is read, and a model of any size takes seconds. Only the layout of a prompt needs a tokenizer; if the base
model's tokenizer is not in a local folder, text counts as many tokens as in the predictions of memory.

Letters: B questions of one image each, n = B images; H, W and S pixels per side, F pixel frames; C latent channels,
T = 1 + N latent frames, h×w latent cells, m spatial merge, K world tokens of an image; L tokens of a prompt, D width
and V vocabulary rows of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from theworld.inspection import memory
from theworld.inspection.parameters import build_on_meta
from theworld.model.call_plan import plan_call
from theworld.model.configuration import TheWorldConfig
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor
from theworld.model.projector import merge_neighbours
from theworld.model.spec import ModelSpec, resolve_model
from theworld.storage.hub import resolve

QUESTION = "What happens next?"


@dataclass(frozen=True)
class Stage:
    """A tensor on the way: its meaning, its letters and sizes, and the code that computes it."""

    what: str
    letters: str
    shape: tuple[int, ...]
    made_by: str


@dataclass(frozen=True)
class Block:
    """Neighbouring tokens of one kind in a prompt; `first` is the position of the first one, None if it varies."""

    what: str
    tokens: int
    first: int | None = None


def stages(
    model: TheWorldForConditionalGeneration, num_world_steps: int, batch: int, prompt_tokens: int
) -> Iterator[Stage]:
    """The tensors of a batch of questions, in order, from the methods of a model on the meta device."""

    def nothing(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    config = model.config
    with torch.no_grad():
        side = config.vlm_config.vision_config.image_size
        pixels = nothing(batch, 3, side, side)
        yield Stage("image, as Gemma sees it", "(B, 3, H, W)", tuple(pixels.shape), "TheWorldProcessor")
        patches = model.vlm.model.vision_tower(pixel_values=pixels).last_hidden_state
        yield Stage("its patches", "(B, patches, width)", tuple(patches.shape), "vision_tower")
        soft = model.vlm.model.get_image_features(pixels, return_dict=True).pooler_output
        yield Stage("its soft tokens", "(B, soft tokens, D)", tuple(soft.shape), "multi_modal_projector")
        if model.world is not None:
            side = config.world_image_size
            frames = nothing(batch, 3, 1, side, side)
            yield Stage("image, as the world model sees it", "(n, 3, F, S, S)", tuple(frames.shape), "to_frames")
            latents = model.world.encode(frames)
            yield Stage("latents of now", "(n, C, 1, h, w)", tuple(latents.shape), "world.encode")
            if num_world_steps:
                # two points of the schedule are one pass, and all passes have the same shapes
                latents = model.world_latents_of(frames, num_world_steps, [0] * batch, num_inference_steps=2)
                yield Stage("latents of now and the future", "(n, C, T, h, w)", tuple(latents.shape), "world.rollout")
            cells = merge_neighbours(latents, config.spatial_merge)
            yield Stage("its cells, m×m per token", "(n, T·h·w/m², C·m²)", tuple(cells.shape), "merge_neighbours")
            tokens = model.projector(latents)
            yield Stage("its world tokens", "(n, K, D)", tuple(tokens.shape), "projector")
        ids = nothing(batch, prompt_tokens, dtype=torch.int64)
        yield Stage("prompt, one placeholder per token", "(B, L)", tuple(ids.shape), "TheWorldProcessor")
        embeds = model.get_input_embeddings()(ids)
        yield Stage("prompt, its placeholders filled", "(B, L, D)", tuple(embeds.shape), "scatter")
        logits = model.vlm(inputs_embeds=embeds, attention_mask=ids, token_type_ids=ids).logits
        yield Stage("logits, the last row for the next token", "(B, L, V)", tuple(logits.shape), "vlm")
        if model.world is not None and num_world_steps:
            decoded = model.world.decode(latents)
            yield Stage("decoded frames, for people", "(n, 3, 1 + 4·N, S, S)", tuple(decoded.shape), "world.decode")


def layout(config: TheWorldConfig, num_world_steps: int, base_dir: str | None = None) -> list[Block]:
    """The blocks of a prompt with one image and QUESTION, as `TheWorldProcessor` writes it."""
    if Path(resolve(config.vlm_name_or_path, base_dir)).is_dir():
        return read_layout(config, num_world_steps, base_dir)
    soft = config.vlm_config.mm_tokens_per_image
    blocks = [Block("<start_of_image>", 1), Block("soft tokens of the image", soft), Block("<end_of_image>", 1)]
    if config.enable_world:
        blocks.append(Block("world tokens", config.world_token_count(num_world_steps)))
    return [*blocks, Block("text around and after them, assumed", memory.TEXT_TOKENS)]


def read_layout(config: TheWorldConfig, num_world_steps: int, base_dir: str | None) -> list[Block]:
    """The same as `layout`, from the ids of a real prompt."""
    processor = TheWorldProcessor.from_config(config, base_dir)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    image = Image.new("RGB", (1, 1))
    inputs = processor(
        images=[image], text=prompt, num_world_steps=num_world_steps, add_special_tokens=False, return_tensors="pt"
    )
    kinds = {
        config.vlm_config.image_token_id: "soft tokens of the image",
        config.world_token_id: "world tokens",
        config.vlm_config.boi_token_id: "<start_of_image>",
        config.vlm_config.eoi_token_id: "<end_of_image>",
    }
    blocks: list[Block] = []
    first = 0
    for kind, run in groupby(inputs["input_ids"][0].tolist(), kinds.get):
        ids = list(run)
        blocks.append(Block(kind or repr(processor.tokenizer.decode(ids)), len(ids), first))
        first += len(ids)
    return blocks


def describe_shapes(
    model: str | ModelSpec, world_model: str | None = None, *, num_world_steps: int | None = None, batch_size: int = 1
) -> dict[str, Any]:
    """Describes the shapes from an image to the next token, without reading weights.

    Args:
        model: `nano`, a folder or a Hub id, or what `resolve_model` returned for one. For a Gemma 3, the fusion with
            `world_model` is described.
        world_model: None means the published Cosmos-Predict2 of 2B.
        num_world_steps: None means what `plan_call` chooses.
        batch_size: questions, of one image each.

    Returns:
        A dict that can be written as JSON: `shapes` (what, letters, shape, made_by), `prompt` (blocks of tokens), and
        `notes` (sentences for the user).

    Raises:
        ValueError: if the model cannot be read, or it cannot imagine as many world steps.
    """
    spec = resolve_model(model, world_model=world_model, describe_only=True) if isinstance(model, str) else model
    spec.check_world_model(world_model)
    config = spec.config
    steps = plan_call(config, num_world_steps=num_world_steps).num_world_steps
    blocks = layout(config, steps, spec.path)
    length = sum(block.tokens for block in blocks)
    return {
        "model": spec.name,
        "num_world_steps": steps,
        "batch": batch_size,
        "shapes": [
            {"what": stage.what, "letters": stage.letters, "shape": list(stage.shape), "made_by": stage.made_by}
            for stage in stages(build_on_meta(config).eval(), steps, batch_size, length)
        ],
        "prompt": [{"what": block.what, "first": block.first, "tokens": block.tokens} for block in blocks],
        "prompt_tokens": length,
        "notes": list(spec.notes),
    }
