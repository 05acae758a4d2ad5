"""theworld info: prints what a model consists of, what can be trained and the memory that it takes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from theworld.cli import options
from theworld.cli.console import figures, plain_table, say, stdout, waiting
from theworld.cli.loading import chosen_model, resolve_spec
from theworld.messages import counted


def info(
    model: options.ModelArgument = None,
    named: options.ModelOption = None,
    world_model: options.WorldModel = None,
    batch: Annotated[int, typer.Option("--batch", metavar="B", min=1, help="Images per batch.")] = 1,
    steps: options.Steps = None,
    dtype: Annotated[
        Literal["bfloat16", "float32", "float16"],
        typer.Option("--dtype", help="Type of the weights in the predicted memory."),
    ] = "bfloat16",
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", min=1, help="GPUs that a training run shares, for its memory.")
    ] = 1,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="Show the tensor shapes from an image to the answer instead.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a model's components, trainable parameters per freeze setting, tokens and memory.

    Reads configurations only, so it downloads no weights and works before a licence is accepted.

    Example: theworld info google/gemma-3-4b-it --world-model nvidia/Cosmos-Predict2-2B-Video2World --batch 4 --steps 4
    """
    spec = resolve_spec(chosen_model(model, named), world_model, describe_only=True)
    with waiting(f"Reading {spec.name} …"):
        from theworld import inspection

        content: dict[str, Any] = (
            inspection.describe_shapes(spec, num_world_steps=steps, batch_size=batch)
            if shapes
            else inspection.describe_model(spec, num_world_steps=steps, batch_size=batch, dtype=dtype, num_gpus=gpus)
        )
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
        return
    for note in content["notes"]:
        say(f"Note: {note}")
    if shapes:
        show_shapes(content)
    else:
        show(content)


def show(content: dict[str, Any]) -> None:
    """Prints the result of `describe_model` as tables."""
    from theworld.inspection.memory import LIBRARIES
    from theworld.inspection.readiness import gib

    console = stdout()
    facts = plain_table(show_header=False)
    facts.add_row("vision-language model", str(content["vision_language_model"]))
    facts.add_row("world model", str(content["world_model"] or "none"))
    if content["world_model"]:
        facts.add_row("projector", f"{content['projector']}, spatial merge {content['spatial_merge']}")
        facts.add_row("world steps", f"{content['num_world_steps']} (at most {content['max_world_steps']})")
        facts.add_row("a world step", f"{content['seconds_per_world_step']:g} s")
    facts.add_row("trained parts", ", ".join(content["trained_parts"]) or "none yet")
    tokens = content["tokens"]
    facts.add_row("tokens per image", f"{tokens['per_image']:,}")
    if "per_world_step" in tokens:
        height, width = content["latent_grid"]
        facts.add_row("tokens per world step", f"{tokens['per_world_step']:,} (a {height}×{width} latent grid)")
        facts.add_row("world tokens of the present", f"{tokens['world_now']:,}")
        default = counted(content["num_world_steps"], "world step")
        facts.add_row(f"world tokens at {default}", f"{tokens['world_default']:,}")
    for name, count in content["labels"].items():
        facts.add_row(name.replace("_", " "), f"{count:,}")
    console.print(f"[bold]{content['model']}[/]", facts, sep="\n")

    total = content["total_parameters"]
    table = figures("component", "parameters", "share")
    for row in content["components"]:
        table.add_row(row["component"], f"{row['parameters']:,}", f"{100 * row['parameters'] / total:.4f} %")
    table.add_row("all", f"{total:,}", "", style="bold")
    console.print("", table, sep="\n")

    memory = content["memory"]
    table = figures("trained", "trainable", "share", "GiB to train", "checkpointing")
    for row in content["freeze_settings"]:
        peaks = (gib(row[name]["peak"]) for name in ("training_memory", "training_memory_checkpointing"))
        table.add_row(row["setting"], f"{row['trainable']:,}", f"{row['percent']:.4f} %", *peaks)
    console.print("", table, sep="\n")

    show_runs(content)

    modes = {"GiB": memory["inference"]}
    if "inference_frames" in memory:
        modes = {"tokens, GiB": memory["inference"], "frames, GiB": memory["inference_frames"]}
    table = figures("memory to answer", *modes)
    rows = [{**mode["persistent"], **mode["transient"]} for mode in modes.values()]
    for name in dict.fromkeys(name for row in rows for name in row):
        label = name if name in memory["inference"]["persistent"] else f"{name} (transient)"
        table.add_row(label, *(gib(row[name]) if name in row else "" for row in rows))
    table.add_row("peak", *(gib(mode["peak"]) for mode in modes.values()), style="bold")
    console.print("", table, sep="\n")
    show_small_cards(content["small_cards"])
    console.print()
    console.print(
        f"Memory is predicted for {memory['dtype']}, batch {memory['batch']} and stock eager PyTorch with fused AdamW: "
        f"what torch allocates to train with {counted(memory['training_world_steps'], 'world step')} "
        f"({memory['training_sequence']:,} tokens per sample, {memory['text_tokens']} of them text) and to answer with "
        f"{counted(memory['num_world_steps'], 'world step')} ({memory['sequence']:,} tokens). `theworld train` keeps "
        f"what it trains in float32, computes logits only where a label follows, and shares what a strategy shards "
        f"(without / with checkpointing; docs/deepspeed_zero_analysis.md). A process takes "
        f"{gib(LIBRARIES)} GiB of RAM more for its libraries, which `theworld doctor` includes.",
        soft_wrap=True,
    )


def show_small_cards(rows: list[dict[str, Any]]) -> None:
    """Prints the least intrusive setting in which each use fits on small cards, and its peak."""
    from theworld.inspection.readiness import gib

    table = figures("what fits (GiB)", *(f"{card} GB" for card in rows[0]["fits"]))
    for row in rows:
        cells = ("no" if name is None else f"{name} ({gib(row['peaks'][name])})" for name in row["fits"].values())
        table.add_row(row["use"], *cells)
    stdout().print("", table, sep="\n")


STRATEGY_NAMES = {"ddp": "DDP", "fsdp2": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}


def show_runs(content: dict[str, Any]) -> None:
    """Prints the memory of training runs per GPU: of one GPU, or of each strategy for several."""
    from theworld.inspection.readiness import gib

    several = content["num_gpus"] > 1
    names = STRATEGY_NAMES if several else {"ddp": "GiB / with checkpointing"}
    title = f"theworld train on {counted(content['num_gpus'], 'GPU')}" + (", GiB on each" if several else "")
    table = figures(title, *names.values())
    for row in content["freeze_settings"]:
        cells = (row["run_memory"].get(name) for name in names)
        table.add_row(row["setting"], *("–" if c is None else " / ".join(gib(one["peak"]) for one in c) for c in cells))
    stdout().print("", table, sep="\n")


def show_shapes(content: dict[str, Any]) -> None:
    """Prints the result of `describe_shapes` as two tables."""
    from rich.markup import escape

    console = stdout()
    table = plain_table("from an image to the next token", "", "shape", "made by")
    for column in table.columns[1:3]:  # a shape is never cut; in a narrow terminal the words wrap
        column.no_wrap = True
    table.columns[3].overflow = "fold"
    for row in content["shapes"]:
        shape = ", ".join(str(size) for size in row["shape"])
        table.add_row(row["what"], escape(row["letters"]), f"({shape})", row["made_by"])
    console.print(table)
    table = figures("prompt", "tokens", "positions")
    for row in content["prompt"]:
        first, last = row["first"], None if row["first"] is None else row["first"] + row["tokens"] - 1
        positions = "" if first is None else f"{first:,}" if first == last else f"{first:,}–{last:,}"
        table.add_row(escape(row["what"]), f"{row['tokens']:,}", positions)
    table.add_row("all", f"{content['prompt_tokens']:,}", "", style="bold")
    console.print("", table, sep="\n")
