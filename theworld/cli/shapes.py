"""theworld info --shapes: from a picture to the next token, in the shapes that the code itself gives.

The model is built on the meta device, where tensors have shapes and no numbers, and its own methods are called there:
nothing is read, and a model of any size takes seconds. Only the layout of a prompt needs a tokenizer; where the base
model's lies in no folder here, text counts as many tokens as in the predictions of memory.

Letters: B questions of one picture each, n = B pictures; H, W and S pixels a side, F pixel frames; C latent channels,
T = 1 + N latent frames, h×w latent cells, m spatial merge, K world tokens of a picture; L tokens of a prompt, D width
and V vocabulary rows of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from theworld.model.configuration import TheWorldConfig
    from theworld.model.modeling import TheWorldForConditionalGeneration

QUESTION = "What happens next?"


@dataclass(frozen=True)
class Stage:
    """A tensor on the way: what it is, its letters and sizes, and the code that makes it."""

    what: str
    letters: str
    shape: tuple[int, ...]
    made_by: str


@dataclass(frozen=True)
class Block:
    """Neighbouring tokens of one kind in a prompt; `first` is the position of the first, None where it depends."""

    what: str
    tokens: int
    first: int | None = None


def stages(
    model: TheWorldForConditionalGeneration, num_world_steps: int, batch: int, prompt_tokens: int
) -> Iterator[Stage]:
    """What a batch of questions passes through, in order, out of the methods of a model on the meta device."""
    import torch

    from theworld.model.projector import merge_neighbours

    def nothing(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    config = model.config
    with torch.no_grad():
        side = config.vlm_config.vision_config.image_size
        pixels = nothing(batch, 3, side, side)
        yield Stage("picture, as Gemma sees it", "(B, 3, H, W)", tuple(pixels.shape), "TheWorldProcessor")
        patches = model.vlm.model.vision_tower(pixel_values=pixels).last_hidden_state
        yield Stage("its patches", "(B, patches, width)", tuple(patches.shape), "vision_tower")
        soft = model.vlm.model.get_image_features(pixels, return_dict=True).pooler_output
        yield Stage("its soft tokens", "(B, soft tokens, D)", tuple(soft.shape), "multi_modal_projector")
        if model.world is not None:
            side = config.world_image_size
            frames = nothing(batch, 3, 1, side, side)
            yield Stage("picture, as the world model sees it", "(n, 3, F, S, S)", tuple(frames.shape), "to_frames")
            latents = model.world.encode(frames)
            yield Stage("latents of now", "(n, C, 1, h, w)", tuple(latents.shape), "world.encode")
            if num_world_steps:
                # two points of the schedule are one pass: the shapes of all are alike
                latents = model.world_latents_of(frames, num_world_steps, [0] * batch, num_inference_steps=2)
                yield Stage(
                    "latents of now and of what comes", "(n, C, T, h, w)", tuple(latents.shape), "world.rollout"
                )
            cells = merge_neighbours(latents, config.spatial_merge)
            yield Stage("its cells, m×m to a token", "(n, T·h·w/m², C·m²)", tuple(cells.shape), "merge_neighbours")
            tokens = model.projector(latents)
            yield Stage("its world tokens", "(n, K, D)", tuple(tokens.shape), "projector")
        ids = nothing(batch, prompt_tokens, dtype=torch.int64)
        yield Stage("prompt, with a placeholder a token", "(B, L)", tuple(ids.shape), "TheWorldProcessor")
        embeds = model.get_input_embeddings()(ids)
        yield Stage("prompt, its placeholders filled", "(B, L, D)", tuple(embeds.shape), "scatter")
        logits = model.vlm(inputs_embeds=embeds, attention_mask=ids, token_type_ids=ids).logits
        yield Stage("logits, the last row for the next token", "(B, L, V)", tuple(logits.shape), "vlm")
        if model.world is not None and num_world_steps:
            decoded = model.world.decode(latents)
            yield Stage("what was imagined, for people", "(n, 3, 1 + 4·N, S, S)", tuple(decoded.shape), "world.decode")


def layout(config: TheWorldConfig, num_world_steps: int, inside: str | None = None) -> list[Block]:
    """The blocks of a prompt of one picture and QUESTION, as `TheWorldProcessor` writes it.

    Args:
        inside: folder that base names starting with `./` are relative to.
    """
    from theworld.inspection import memory
    from theworld.storage.hub import resolve

    if Path(resolve(config.vlm_name_or_path, inside)).is_dir():
        return read_layout(config, num_world_steps, inside)
    soft = config.vlm_config.mm_tokens_per_image
    blocks = [Block("<start_of_image>", 1), Block("soft tokens of the picture", soft), Block("<end_of_image>", 1)]
    if config.enable_world:
        blocks.append(Block("world tokens", config.world_token_count(num_world_steps)))
    return [*blocks, Block("text around them and behind them, assumed", memory.TEXT_TOKENS)]


def read_layout(config: TheWorldConfig, num_world_steps: int, inside: str | None) -> list[Block]:
    """As `layout`, from the ids of a real prompt."""
    from PIL import Image

    from theworld.inference.prompting import user_turn
    from theworld.model.processing import TheWorldProcessor

    processor = TheWorldProcessor.from_config(config, inside)
    prompt = processor.apply_chat_template(user_turn(1, QUESTION), add_generation_prompt=True)
    inputs = processor(
        images=[Image.new("RGB", (1, 1))],
        text=prompt,
        num_world_steps=num_world_steps,
        add_special_tokens=False,
        return_tensors="pt",
    )
    kinds = {
        config.vlm_config.image_token_id: "soft tokens of the picture",
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


def way_through(
    model: TheWorldForConditionalGeneration, num_world_steps: int, batch: int, inside: str | None = None
) -> dict[str, Any]:
    """Everything `info --shapes` says of a model on the meta device."""
    blocks = layout(model.config, num_world_steps, inside)
    length = sum(block.tokens for block in blocks)
    return {
        "num_world_steps": num_world_steps,
        "batch": batch,
        "shapes": [
            {"what": stage.what, "letters": stage.letters, "shape": list(stage.shape), "made_by": stage.made_by}
            for stage in stages(model.eval(), num_world_steps, batch, length)
        ],
        "prompt": [{"what": block.what, "first": block.first, "tokens": block.tokens} for block in blocks],
        "prompt_tokens": length,
    }


def show(content: dict[str, Any]) -> None:
    """The same as two tables, on stdout."""
    from rich.markup import escape
    from rich.table import Table

    from theworld.cli.console import stdout

    console = stdout()
    table = Table("from a picture to the next token", "", "shape", "made by", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:3]:  # a shape is never cut; in a narrow terminal words go to another line
        column.no_wrap = True
    table.columns[3].overflow = "fold"
    for row in content["shapes"]:
        shape = ", ".join(str(size) for size in row["shape"])
        table.add_row(row["what"], escape(row["letters"]), f"({shape})", row["made_by"])
    console.print(table)
    console.print()
    table = Table("prompt", box=None, padding=(0, 2, 0, 0))
    for name in ("tokens", "positions"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in content["prompt"]:
        first, last = row["first"], None if row["first"] is None else row["first"] + row["tokens"] - 1
        positions = "" if first is None else f"{first:,}" if first == last else f"{first:,}–{last:,}"
        table.add_row(escape(row["what"]), f"{row['tokens']:,}", positions)
    table.add_row("all", f"{content['prompt_tokens']:,}", "", style="bold")
    console.print(table)
