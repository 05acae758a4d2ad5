"""theworld info: what a model is made of, from its configuration; no weights are read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theworld.cli import options
from theworld.cli.console import stdout, waiting

if TYPE_CHECKING:
    from theworld.configuration import TheWorldConfig

DEFAULT_WORLD = "nvidia/Cosmos-Predict2-2B-Video2World"


def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="nano, a model folder, or a Hub id.")],
    world_model: Annotated[
        str, typer.Option("--world-model", help="World model to fuse with, when MODEL is a plain Gemma 3.")
    ] = DEFAULT_WORLD,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a model's components, parameters, what of them is trained, and tokens per image and per world step."""
    with waiting(f"Reading {model} …"):
        content = describe(model, world_model)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
        return
    show(content)


def describe(model: str, world_model: str) -> dict[str, Any]:
    """Components, parameter counts and token counts of a model, built on the meta device."""
    import torch

    from theworld import checkpoints, freezing
    from theworld.evaluation.report import labels
    from theworld.modeling import TheWorldForConditionalGeneration
    from theworld.world_models.base import PARTS

    config = read_config(model, world_model)
    with torch.device("meta"):
        built = TheWorldForConditionalGeneration(config, world_parts=PARTS if config.enable_world else None)
    learns = config.trained_parts or (["projector"] if config.enable_world else [])
    freezing.train_only(built, [part for part in learns if part in freezing.TRAINABLE_PARTS])
    rows = freezing.count_parameters(built)
    total, trainable = sum(row.total for row in rows), sum(row.trainable for row in rows)
    grid = config.world_grid()
    tokens: dict[str, Any] = {"per_image": config.vlm_config.mm_tokens_per_image + 2}  # and its begin and end
    if config.enable_world:
        tokens.update(
            per_world_step=config.world_tokens_per_frame(),
            world_now=config.world_token_count(0),
            world_default=config.world_token_count(config.num_world_steps),
        )
    return {
        "model": model,
        "vision_language_model": config.vlm_name_or_path,
        "world_model": config.world_name_or_path if config.enable_world else None,
        "projector": config.projector if config.enable_world else None,
        "spatial_merge": config.spatial_merge,
        "latent_grid": list(grid),
        "num_world_steps": config.num_world_steps,
        "max_world_steps": config.max_world_steps,
        "trained_parts": list(config.trained_parts),
        "lora": config.lora,
        "parameters": [{"part": row.part, "total": row.total, "trainable": row.trainable} for row in rows],
        "total_parameters": total,
        "trainable_parameters": trainable,
        "tokens": tokens,
        "labels": labels(checkpoints.resolve(model)),
    }


def read_config(model: str, world_model: str) -> TheWorldConfig:
    """The configuration of a TheWorld model, or of the fusion that a plain Gemma 3 would become."""
    from transformers import AutoConfig

    from theworld import checkpoints
    from theworld.configuration import CosmosPredict2Config, TheWorldConfig
    from theworld.world_models import world_model_class

    place = checkpoints.resolve(model)
    values = checkpoints.read_json(place)
    if values.get("model_type") == TheWorldConfig.model_type:
        return TheWorldConfig.from_dict(values)
    if values.get("model_type") != "gemma3":
        raise ValueError(f"{model} is a {values.get('model_type')!r} model; info reads TheWorld and Gemma 3 models.")
    world_class = world_model_class(CosmosPredict2Config.model_type)
    return TheWorldConfig(
        vlm_config=AutoConfig.from_pretrained(place),
        world_config=world_class.read_config(checkpoints.resolve(world_model)),
        vlm_name_or_path=model,
        world_name_or_path=world_model,
    )


def show(content: dict[str, Any]) -> None:
    """The same as tables, on stdout."""
    from rich.table import Table

    console = stdout()
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("vision-language model", str(content["vision_language_model"]))
    facts.add_row("world model", str(content["world_model"] or "none"))
    if content["world_model"]:
        facts.add_row("projector", f"{content['projector']}, spatial merge {content['spatial_merge']}")
        facts.add_row("world steps", f"{content['num_world_steps']} (at most {content['max_world_steps']})")
    facts.add_row("trained parts", ", ".join(content["trained_parts"]) or "none yet")
    tokens = content["tokens"]
    facts.add_row("tokens per image", f"{tokens['per_image']:,}")
    if "per_world_step" in tokens:
        height, width = content["latent_grid"]
        facts.add_row("tokens per world step", f"{tokens['per_world_step']:,} (a {height}×{width} latent grid)")
        facts.add_row("world tokens of now", f"{tokens['world_now']:,}")
        facts.add_row(f"world tokens at {content['num_world_steps']} steps", f"{tokens['world_default']:,}")
    for name, count in content["labels"].items():
        facts.add_row(name.replace("_", " "), f"{count:,}")
    console.print(f"[bold]{content['model']}[/]")
    console.print(facts)
    table = Table("part", "parameters", "trainable", "share", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    total = content["total_parameters"]
    for row in content["parameters"]:
        table.add_row(row["part"], f"{row['total']:,}", f"{row['trainable']:,}", f"{100 * row['total'] / total:.2f} %")
    trainable = content["trainable_parameters"]
    table.add_row("all", f"{total:,}", f"{trainable:,}", f"{100 * trainable / total:.4f} % trainable", style="bold")
    console.print()
    console.print(table)
