"""theworld info: what a model is made of, what of it can learn, and what that takes, without loading it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theworld.cli import options
from theworld.cli.console import say, stdout, waiting
from theworld.cli.loading import resolve_spec
from theworld.cli.shapes import show as show_shapes
from theworld.cli.shapes import way_through
from theworld.model.call_plan import plan_call

if TYPE_CHECKING:
    from theworld.inspection.memory import Prediction
    from theworld.model.configuration import TheWorldConfig
    from theworld.model.modeling import TheWorldForConditionalGeneration

# what a model is made of, by where the parameters live; the first match wins
COMPONENTS = {
    "projection": ("projector.projection.",),
    "projector's embeddings": ("projector.",),  # where, when, and the two boundaries
    "LoRA": (".lora_A.", ".lora_B."),
    "vision tower": ("vlm.model.vision_tower.",),
    "vision projector": ("vlm.model.multi_modal_projector.",),
    "text embeddings": ("vlm.model.language_model.embed_tokens.", "vlm.lm_head."),
    "language model": ("vlm.model.language_model.",),
    "VAE encoder": ("world.vae.encoder.",),
    "VAE decoder": ("world.vae.decoder.",),
    "VAE latent convolutions": ("world.vae.quant_conv.", "world.vae.post_quant_conv."),
    "world transformer": ("world.transformer.",),
}
GIB = 2**30


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="nano, a model folder, or a Hub id; or a plain Gemma 3.")
    ],
    world_model: options.WorldModel = None,
    batch: Annotated[int, typer.Option("--batch", metavar="B", min=1, help="Pictures at once.")] = 1,
    steps: options.Steps = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of the weights: bfloat16, float16 or float32.")
    ] = "bfloat16",
    shapes: Annotated[
        bool, typer.Option("--shapes", help="Show instead the shapes that a picture passes through to an answer.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is made of, what learns under each freeze setting, its tokens, and the memory it will take.

    From configurations alone: no weights are read, and none downloaded.

    Example: theworld info google/gemma-3-4b-it --world-model nvidia/Cosmos-Predict2-2B-Video2World --batch 4 --steps 4
    """
    with waiting(f"Reading {model} …"):
        content = (
            describe_shapes(model, world_model, batch, steps)
            if shapes
            else describe(model, world_model, batch, steps, dtype)
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


def describe_shapes(model: str, world_model: str | None, batch: int, steps: int | None) -> dict[str, Any]:
    """Everything `info --shapes` says, from configs alone."""
    from theworld.storage.hub import resolve

    spec = resolve_spec(model, world_model, describe_only=True)
    config, notes = spec.config, list(spec.notes)
    steps = config.check_world_steps(config.num_world_steps if steps is None else steps)
    content = way_through(on_meta(config), steps, batch, resolve(model))
    return {"model": model, **content, "notes": notes}


def describe(model: str, world: str | None, batch: int, steps: int | None, dtype: str) -> dict[str, Any]:
    """Everything `info` says, from configs alone; parameters are counted on the meta device."""
    from theworld.evaluation.report import labels
    from theworld.inspection import memory
    from theworld.model import freezing
    from theworld.storage.hub import resolve

    if dtype not in memory.DTYPES:
        raise ValueError(f"--dtype {dtype} is not known; choose one of {', '.join(memory.DTYPES)}.")
    spec = resolve_spec(model, world, describe_only=True)
    config, notes = spec.config, list(spec.notes)
    plan = plan_call(config)
    if steps is None and plan.mode == "frames":
        notes.append(
            f"{plan.reason} `theworld ask` shows it {plan.num_world_steps} imagined frames instead; add --steps "
            f"{plan.num_world_steps} for the memory which that takes."
        )
    steps = config.check_world_steps(config.num_world_steps if steps is None else steps)
    built = on_meta(config)
    learns = config.trained_parts or (["projector"] if config.enable_world else [])
    freezing.train_only(built, [part for part in learns if part in freezing.TRAINABLE_PARTS])
    rows = freezing.count_parameters(built)
    counts = {row.part: row.total for row in rows}
    total = sum(counts.values())
    grid = config.world_grid()
    tokens: dict[str, Any] = {"per_image": config.vlm_config.mm_tokens_per_image + 2}  # and its begin and end
    if config.enable_world:
        tokens.update(
            per_world_step=config.world_tokens_per_frame(),
            world_now=config.world_token_count(0),
            world_default=config.world_token_count(config.num_world_steps),
        )
    size: dict[str, Any] = {"num_world_steps": steps, "batch": batch, "b": memory.DTYPES[dtype]}
    settings = []
    for name, parts in freeze_settings(config).items():
        trainable = sum(counts[part] for part in parts)
        settings.append(
            {
                "setting": name,
                "trains": list(parts),
                "trainable": trainable,
                "percent": 100 * trainable / total,
                "training_memory": as_bytes(memory.training(config, counts, parts, **size)),
                "training_memory_checkpointing": as_bytes(
                    memory.training(config, counts, parts, checkpointing=True, **size)
                ),
            }
        )
    answering = {"inference": as_bytes(memory.inference(config, counts, **size))}
    if config.enable_world and steps:
        answering["inference_frames"] = as_bytes(memory.inference(config, counts, mode="frames", **size))
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
        "components": components(built),
        "parameters": [{"part": row.part, "total": row.total, "trainable": row.trainable} for row in rows],
        "total_parameters": total,
        "trainable_parameters": sum(row.trainable for row in rows),
        "freeze_settings": settings,
        "tokens": tokens,
        "memory": {
            "batch": batch,
            "num_world_steps": steps,
            "dtype": dtype,
            "sequence": memory.sequence_length(config, steps),
            "text_tokens": memory.TEXT_TOKENS,
            **answering,
        },
        "labels": labels(resolve(model)),
        "notes": notes,
    }


def on_meta(config: TheWorldConfig) -> TheWorldForConditionalGeneration:
    """The whole model without storage: every part of it, nothing read and nothing drawn."""
    import torch

    from theworld.model.modeling import TheWorldForConditionalGeneration
    from theworld.world_models.base import PARTS

    with torch.device("meta"):
        return TheWorldForConditionalGeneration(config, world_parts=PARTS if config.enable_world else None)


def freeze_settings(config: TheWorldConfig) -> dict[str, tuple[str, ...]]:
    """What can be made to learn: the projector, a LoRA where there is one, and one further part at a time, or all."""
    always: tuple[str, ...] = ("projector",) if config.enable_world else ()
    settings = {"projector only": always} if always else {}
    if config.lora is not None:
        always = (*always, "lora")
        settings["+ LoRA" if config.enable_world else "LoRA only"] = always
    further = {"+ VAE encoder": "vae_encoder"} if config.enable_world else {}
    further |= {"+ vision": "vision", "+ language": "language"}
    if not always:
        further = {name.removeprefix("+ ") + " only": part for name, part in further.items()}
    settings |= {name: (*always, part) for name, part in further.items()}
    return {**settings, "all of these": (*always, *further.values())}


def components(model: TheWorldForConditionalGeneration) -> list[dict[str, Any]]:
    """Parameters of each component, in the order of COMPONENTS; tied ones once."""
    totals: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        component = next(
            component
            for component, places in COMPONENTS.items()
            if any(name.startswith(place) or (place.startswith(".") and place in name) for place in places)
        )
        totals[component] = totals.get(component, 0) + parameter.numel()
    return [{"component": name, "parameters": totals[name]} for name in COMPONENTS if name in totals]


def as_bytes(prediction: Prediction) -> dict[str, Any]:
    return {"peak": prediction.peak, "holds": dict(prediction.holds), "moments": dict(prediction.moments)}


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

    total = content["total_parameters"]
    table = figures("component", "parameters", "share")
    for row in content["components"]:
        table.add_row(row["component"], f"{row['parameters']:,}", f"{100 * row['parameters'] / total:.4f} %")
    table.add_row("all", f"{total:,}", "", style="bold")
    console.print()
    console.print(table)

    memory = content["memory"]
    table = figures("learns", "trainable", "share", "GiB to train", "checkpointing")
    for row in content["freeze_settings"]:
        peaks = (gib(row[name]["peak"]) for name in ("training_memory", "training_memory_checkpointing"))
        table.add_row(row["setting"], f"{row['trainable']:,}", f"{row['percent']:.4f} %", *peaks)
    console.print()
    console.print(table)

    modes = {"GiB": memory["inference"]}
    if "inference_frames" in memory:
        modes = {"tokens, GiB": memory["inference"], "frames, GiB": memory["inference_frames"]}
    table = figures("memory to answer", *modes)
    rows = [{**mode["holds"], **mode["moments"]} for mode in modes.values()]
    for name in dict.fromkeys(name for row in rows for name in row):
        label = name if name in memory["inference"]["holds"] else f"{name} (for a moment)"
        table.add_row(label, *(gib(row[name]) if name in row else "" for row in rows))
    table.add_row("peak", *(gib(mode["peak"]) for mode in modes.values()), style="bold")
    console.print()
    console.print(table)
    console.print()
    console.print(
        f"Memory is predicted: batch {memory['batch']}, {memory['num_world_steps']} world steps, {memory['dtype']}, "
        f"{memory['sequence']:,} tokens a sample ({memory['text_tokens']} of them text); stock eager PyTorch, "
        "fused AdamW."
    )


def figures(name: str, *columns: str) -> Any:
    """A table of a name and figures."""
    from rich.table import Table

    table = Table(name, box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def gib(size: int) -> str:
    """Bytes as GiB, with two digits that count."""
    return f"{size / GIB:.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}" if size >= GIB / 100 else "< 0.01"
