"""theworld eval: arms against each other on a benchmark."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theworld.cli import options
from theworld.cli.console import counting, say, stdout
from theworld.cli.loading import check_place, check_steps, check_trained, load, note_for, read_values

if TYPE_CHECKING:
    from rich.table import Table

    from theworld.api import TheWorld

app = typer.Typer(no_args_is_help=True, help="Measure a model against its controls.")


@app.callback()
def evaluate() -> None:
    """Keeps `physics` a name of its own while it is the only benchmark."""


@app.command("physics")
def physics(
    model: options.Model = "nano",
    arms: Annotated[
        str, typer.Option("--arms", help="Comma-separated; `--arms list` names them all.")
    ] = "fused,fused-0",
    split: Annotated[str, typer.Option("--split", help="train, validation, test or hard.")] = "test",
    limit: Annotated[int, typer.Option("--limit", metavar="K", min=1, help="Questions in all.")] = 300,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", min=0, help="Picks the scenes and the rollouts' noise.")
    ] = 0,
    steps: options.Steps = None,
    output: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write results here, and predictions beside it.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", metavar="NAME=MODEL", help="Where a trained control is; may be given several times."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions answered at once.")] = 32,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Ask what happens next in physics scenes, in several arms, and compare the arms question by question.

    Scenes start at index S·36,000 of the split, so two seeds share none. The K questions are spread evenly over the
    families, one a scene; which of its questions a scene is asked keeps topics, forms and answers as even as possible.
    Answers are greedy, at most 8 tokens, and right when they match exactly after case, spaces, a final full stop and
    brackets are dropped; what is no answer counts as wrong.

    Example: theworld eval physics --arms fused,fused-0,direct --limit 300 --steps 4 --json results.json
    """
    if arms.strip() == "list":
        list_arms()
        return
    from theworld import checkpoints
    from theworld.evaluation.arms import choose

    started = time.perf_counter()
    if output is not None:
        check_place(output)  # told now, not when everything has been asked
    chosen = choose([name.strip() for name in arms.split(",") if name.strip()])
    places = control_places(model, {arm.weights for arm in chosen.values() if arm.weights}, control or [])
    note = note_for(model)
    number = world_steps(model, steps)
    readers = [name for name, arm in chosen.items() if arm.reads_tokens]
    if readers:
        check_trained(model, f"leave out the arms that read them ({', '.join(readers)})")
    # before any model: a wrong split is told at once, and scenes are made while the memory is free
    from theworld.evaluation.physics import pick

    with counting() as step:
        items = pick(split, limit, seed, progress=lambda done, total: step("Making scenes", done, total))
    from theworld.evaluation.report import labels, prediction_lines, predictions_path, results, versions, write_text
    from theworld.evaluation.runner import run_arms

    def load_weights(weights: str | None) -> TheWorld:
        return load(model if weights is None else places[weights], device=device)

    with counting() as step:
        predictions = run_arms(
            items, chosen, load_weights, num_world_steps=number, seed=seed, batch_size=batch_size, progress=step
        )
    content = {
        **results(items, predictions),
        "model": model,
        "controls": places,
        "benchmark": "physics",
        "split": split,
        "limit": limit,
        "seed": seed,
        "steps": number,
        "command": shlex.join(["theworld", *sys.argv[1:]]),
        "versions": versions(),
        "device": device_name(device),
        "seconds": round(time.perf_counter() - started, 1),
        "labels": {name: labels(checkpoints.resolve(place)) for name, place in {"model": model, **places}.items()},
    }
    if note:
        content["note"] = note
        say(note)
    if output is not None:
        write_text(predictions_path(output), prediction_lines(items, predictions))
        write_text(output, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    show(content)


def world_steps(model: str, steps: int | None) -> int:
    """`--steps`, or the model's own number, checked against what the model can do."""
    config = read_values(model)
    own = config.get("num_world_steps", 0)
    assert isinstance(own, int)
    check_steps(model, steps)
    return own if steps is None else steps


def control_places(model: str, wanted: set[str], given: list[str]) -> dict[str, str]:
    """Where each trained control is: as given, or beside the model (`nano/NAME`, a sibling folder NAME).

    Raises:
        ValueError: one that is not there, a Hub id whose control nobody named, or a `--control` that is not NAME=MODEL.
    """
    places: dict[str, str] = {}
    for pair in given:
        name, _, place = pair.partition("=")
        if not name or not place:
            raise ValueError(f"--control {pair}: write NAME=MODEL, such as --control direct=runs/direct.")
        places[name] = place
    for name in wanted - set(places):
        if model == "nano":
            places[name] = f"nano/{name}"
        elif Path(model).is_dir():
            places[name] = str(Path(model).resolve().parent / name)
        else:
            raise ValueError(f"the arm {name!r} needs its trained weights; give --control {name}=FOLDER.")
    for name in wanted:
        read_values(places[name])  # told now, not when half the arms have run
    return {name: places[name] for name in sorted(wanted)}


def device_name(device: str | None) -> str:
    """The accelerator the answers came from, or cpu."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name(device)


def list_arms() -> None:
    from rich.table import Table

    from theworld.evaluation.arms import ARMS

    table = Table("arm", "what is asked", box=None, padding=(0, 2, 0, 0))
    for name, arm in ARMS.items():
        table.add_row(name, arm.meaning)
    stdout().print(table)


def figures(name: str, *columns: str) -> Table:
    """A table of a name and figures that are never cut."""
    from rich.table import Table

    table = Table(name, box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def show(content: Mapping[str, Any]) -> None:
    """Accuracy by arm and family, and paired differences with exact McNemar p, as tables on stdout."""
    console = stdout()
    scores = {**content["arms"], "(commonest answer)": content["commonest_answer"]}
    families = list(content["commonest_answer"]["by_family"])
    table = figures("arm", "right", "95 %", *families, "unparsed", "n")
    for name, score in scores.items():
        by_family = [f"{100 * score['by_family'][family]['accuracy']:.1f}" for family in families]
        low, high = score["interval_95"]
        table.add_row(
            name,
            f"{100 * score['accuracy']:.1f}",
            f"{100 * low:.1f}–{100 * high:.1f}",
            *by_family,
            str(score["unparsed"]),
            str(score["n"]),
        )
    console.print(table)
    if content["paired"]:
        table = figures("paired", "points", "95 %", "p", *families)
        console.print()
        for name, pair in content["paired"].items():
            by_family = [f"{100 * pair['by_family'][family]['difference']:+.1f}" for family in families]
            low, high = pair["interval_95"]
            table.add_row(
                name.replace("-minus-", " − "),
                f"{100 * pair['difference']:+.1f}",
                f"{100 * low:+.1f} … {100 * high:+.1f}",
                f"{pair['p_mcnemar']:.2g}",
                *by_family,
            )
        console.print(table)
    for warning in content["warnings"]:
        say(f"Warning: {warning}")
