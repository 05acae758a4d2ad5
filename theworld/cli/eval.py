"""theworld eval: arms against each other on a benchmark."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theworld.cli import options
from theworld.cli.console import counting, say, stdout
from theworld.cli.loading import check_output, check_output_folder, load, resolve_spec

if TYPE_CHECKING:
    from rich.table import Table

    from theworld.evaluation.answering import ModelAnswerer
    from theworld.evaluation.arms import Arm, Imagination
    from theworld.evaluation.items import Item
    from theworld.evaluation.run_folder import RunFolder
    from theworld.evaluation.runner import Answer
    from theworld.model.spec import ModelSpec

SHORT_ANSWER, LONGER_ANSWER = 8, 64  # tokens: of physics, whose answers are a word, and of everything else


def evaluate(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="physics, blink, mcq, sat, …; `list` names them all.")
    ],
    model: options.Model = "nano",
    arms: Annotated[
        str, typer.Option("--arms", help="Comma-separated, or `all`; `--arms list` names them.")
    ] = "fused,fused-0",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="Folder of this run: every answer is kept as soon as it is given, the same command goes on where it "
            "was cut off, and `theworld compare` reads it.",
        ),
    ] = None,
    results: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write results here, and predictions beside it.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PLACE", help="Questions: a .jsonl, .json or .parquet, a folder, or a Hub id."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="physics: train, validation, test or hard. blink: val or test. Default: its own."),
    ] = None,
    tasks: Annotated[
        str, typer.Option("--tasks", "--task", metavar="NAMES", help="Comma-separated sub-tasks or families.")
    ] = "",
    fields: Annotated[
        str | None,
        typer.Option(
            "--fields",
            metavar="NAME=COLUMN,…",
            help="mcq: which column is what (id, question, images, video, choices, answer, task, prompt, "
            "future_frames, …), or a JSON file that says so.",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="NAME", help="mcq: configuration of the Hub dataset.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="K", min=1, help="Questions in all. Default: all; physics 300.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", min=0, help="Of rollouts' noise, and of the scenes of physics.")
    ] = 0,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="N[,N…]",
            help="World steps to imagine, 4 frames each; with several, arms that look ahead run with each. Default: "
            "the model's own.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", metavar="NAME=MODEL", help="Where a trained control is; may be given several times."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions answered at once.")] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens. Default: 64; physics 8."),
    ] = None,
    world_model: options.WorldModel = None,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Ask the questions of a benchmark in several arms, and compare the arms question by question.

    An arm is one way to run the same questions: with the imagined future, without, with another picture's, or on the
    weights of a trained control. Answers are greedy; what cannot be read counts as wrong and is reported. Beside the
    free text stands the likeliest option. Rollouts are made once for all arms.

    Scenes of physics start at index S·36,000 of the split, so two seeds share none. A BLINK test run writes the file
    for its evaluation server (submission.ARM.json in the run's folder) and claims no accuracy.

    Example: theworld eval physics --arms fused,fused-0,direct --limit 300 --steps 4 -o runs/nano
    """
    if benchmark == "list":
        list_benchmarks()
        return
    if arms.strip() == "list":
        list_arms()
        return
    from theworld.datasets.columns import read_fields
    from theworld.evaluation.arms import choose
    from theworld.evaluation.benchmarks import BENCHMARKS, Request, load_benchmark

    started = time.perf_counter()
    # told now, not when everything has been asked
    if results is not None:
        check_output(results)
    if output is not None:
        check_output_folder(output)
    if split is not None and benchmark != "blink" and data is not None and Path(data).is_file():
        raise ValueError(f"--split {split} names files of a folder, and {data} is one file; leave --split out.")
    chosen = choose([name.strip() for name in arms.split(",") if name.strip()])
    places = control_places(model, {arm.weights for arm in chosen.values() if arm.weights}, control or [])
    spec = resolve_spec(model)
    note = spec.shipped_note
    numbers = world_steps(spec, steps)
    readers = [name for name, arm in chosen.items() if arm.reads_tokens and arm.weights is None]
    if readers:
        spec.check_trained(f"leave out the arms that read them ({', '.join(readers)})")
    # before any model: a wrong split is told at once, and scenes are made while the memory is free
    with counting() as step:
        request = Request(
            data=data,
            split=split,
            tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
            limit=limit,
            seed=seed,
            fields=None if fields is None else read_fields(fields),
            config=config,
            progress=lambda done, total: step("Making scenes", done, total),
        )
        items = load_benchmark(benchmark, request)
    longest = max_new_tokens or (SHORT_ANSWER if benchmark == "physics" else LONGER_ANSWER)
    settings = {
        "benchmark": benchmark,
        "split": split or BENCHMARKS[benchmark].split,
        "data": data,
        "tasks": list(request.tasks),
        "limit": limit or len(items),
        "seed": seed,
        "model": model,
        "weights": weights_of(model),
        "world_model": world_model,
        "steps": numbers[0] if len(numbers) == 1 else numbers,
        "max_new_tokens": longest,
    }
    content = run(
        items, chosen, places, settings, numbers, output, batch_size=batch_size, device=device, started=started
    )
    if note:
        content["note"] = note
        say(f"Note: {note}")
    write_results(content, items, output, results)
    show(content)


def run(
    items: Sequence[Item],
    arms: Mapping[str, Arm],
    places: Mapping[str, str],
    settings: Mapping[str, Any],
    steps: Sequence[int],
    output: str | None,
    *,
    batch_size: int,
    device: str | None,
    started: float,
) -> dict[str, Any]:
    """The result of a run: every question asked in every arm, into a folder where one is given."""
    from theworld.evaluation.answering import ModelAnswerer
    from theworld.evaluation.benchmarks import BENCHMARKS
    from theworld.evaluation.disagreements import INDEX, disagreeing, save_pictures
    from theworld.evaluation.report import results
    from theworld.evaluation.run_folder import PICTURES, RunFolder
    from theworld.evaluation.runner import run_arms, with_steps
    from theworld.inspection.provenance import labels, versions
    from theworld.storage.hub import resolve

    model, seed = str(settings["model"]), int(settings["seed"])
    needs_world = any(arm.needs_world for arm in arms.values() if arm.weights is None)

    def load_weights(weights: str | None) -> ModelAnswerer:
        if weights is not None:
            return ModelAnswerer(load(resolve_spec(places[weights]), device=device))
        spec = resolve_spec(model, settings["world_model"], enable_world=needs_world)
        return ModelAnswerer(load(spec, device=device))

    notes: list[str] = []

    def save(imagination: Imagination | None, answers: dict[str, list[Answer]]) -> None:
        rows = disagreeing(items, {name: [own] for name, own in answers.items()})
        folder = Path(str(output)) / PICTURES
        why = save_pictures(folder, items, rows, imagination, steps[-1], seed)
        if why is not None:
            notes.append(f"No strips of imagined futures: {why}")

    folder: RunFolder | None = None if output is None else RunFolder(output, settings, items)
    with folder or nullcontext(), counting() as step:
        wanted = with_steps(arms, steps)
        # a run that is through needs no model in memory
        through = folder is not None and all(len(folder.known(name)) == len(items) for name in wanted)
        pictured = output is not None and (Path(output) / PICTURES / INDEX).is_file()
        answers = run_arms(
            items,
            arms,
            load_weights,
            num_world_steps=steps,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=int(settings["max_new_tokens"]),
            progress=step,
            store=folder,
            finish=None if output is None or (through and pictured) else save,
        )
    found = results(items, {name: [own] for name, own in answers.items()})
    return {
        **found,
        **{name: value for name, value in settings.items() if value is not None},
        "headline": "mean_of_families" if BENCHMARKS[settings["benchmark"]].families_alike else "accuracy",
        "controls": dict(places),
        "command": shlex.join(["theworld", *sys.argv[1:]]),
        "versions": versions(),
        "device": device_name(device),
        "seconds": round(time.perf_counter() - started, 1),
        "labels": {name: labels(resolve(place)) for name, place in {"model": model, **places}.items()},
        "warnings": [*found["warnings"], *notes],
        "answers": answers,
    }


def write_results(content: dict[str, Any], items: Sequence[Item], output: str | None, results: str | None) -> None:
    """The result as JSON, with predictions beside it, where one is wanted; of a hidden truth, what can be handed in."""
    from theworld.datasets.blink import submission
    from theworld.evaluation.report import prediction_lines, predictions_path
    from theworld.evaluation.run_folder import RESULTS
    from theworld.evaluation.scoring import read_answer
    from theworld.storage.files import write_text

    answers = content.pop("answers")
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    if results is not None:
        write_text(predictions_path(results), prediction_lines(items, answers))
        write_text(results, text)
    if output is not None:
        write_text(Path(output) / RESULTS, text)
    if content.get("hidden"):
        if output is None and results is None:
            say("The answers of this split are not published; with -o RUN they are written as its server takes them.")
            return
        folder = Path(output) if output is not None else Path(str(results)).parent
        for name, own in answers.items():
            letters = {item.id: read_answer(item, one.text) for item, one in zip(items, own, strict=True)}
            place = folder / f"submission.{name}.json"
            write_text(place, json.dumps(submission(letters), indent=1) + "\n")
            say(f"{place}: for the evaluation server; the answers of this split are not published.")


def world_steps(spec: ModelSpec, steps: str | None) -> list[int]:
    """`--steps`, or the model's own number, checked against what the model can do."""
    if steps is None:
        numbers = [spec.config.num_world_steps if spec.is_fused else 0]
    else:
        try:
            numbers = sorted({int(number) for number in steps.split(",")})
        except ValueError as error:
            raise ValueError(
                f"--steps {steps}: give a whole number, or several with commas between, as 0,4."
            ) from error
        if numbers[0] < 0:
            raise ValueError(f"--steps {steps}: give 0 or more.")
    spec.check_steps(numbers[-1])
    return numbers


def weights_of(model: str) -> str | None:
    """Names what a local model's own weights are, so that a run does not go on with others; None for a Hub id."""
    import hashlib

    from theworld.storage.hub import ADAPTER_FILE, resolve

    folder = Path(resolve(model))
    files = [folder / name for name in ("config.json", ADAPTER_FILE) if (folder / name).is_file()]
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as content:
            for part in iter(lambda: content.read(2**20), b""):
                digest.update(part)
    return digest.hexdigest()


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
        resolve_spec(places[name])  # told now, not when half the arms have run
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


def list_benchmarks() -> None:
    from rich.table import Table

    from theworld.datasets.published import KNOWN_SETS
    from theworld.evaluation.benchmarks import BENCHMARKS

    table = Table("benchmark", "what is asked", "where", "columns from", box=None, padding=(0, 2, 0, 0))
    for name, benchmark in BENCHMARKS.items():
        known = KNOWN_SETS.get(name)
        where = {"physics": "made here", "blink": "BLINK-Benchmark/BLINK"}.get(name, "--data")
        table.add_row(
            name,
            benchmark.meaning,
            where if known is None else known.hub or "--data",
            "" if known is None else known.source,
        )
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
    """Accuracy by arm and family, and paired differences with what they amount to, as tables on stdout."""
    if content.get("hidden"):
        show_hidden(content)
    else:
        show_scores(content)
    for warning in content["warnings"]:
        say(f"Warning: {warning}")


def show_hidden(content: Mapping[str, Any]) -> None:
    table = figures("arm", "questions", "unparsed")
    for name, score in content["arms"].items():
        table.add_row(name, str(score["n"]), str(score["unparsed"]))
    stdout().print(table)


MOST_COLUMNS = 4  # families that fit beside the rest


def show_scores(content: Mapping[str, Any]) -> None:
    from theworld.evaluation.statistics import p_of

    console = stdout()
    scores = {**content["arms"], "(commonest answer)": content["commonest_answer"]}
    families = list(content["commonest_answer"]["by_family"])
    columns = families if len(families) <= MOST_COLUMNS else []
    alike = content["headline"] == "mean_of_families"
    table = figures("arm", "mean" if alike else "right", "95 %", *columns, "likeliest", "unparsed", "n")
    for name, score in scores.items():
        headline = score["mean_of_families"] if alike else score
        by_family = [f"{100 * score['by_family'][family]['accuracy']:.1f}" for family in columns]
        low, high = headline["interval_95"]
        table.add_row(
            name,
            f"{100 * headline['accuracy']:.1f}",
            f"{100 * low:.1f}–{100 * high:.1f}",
            *by_family,
            "" if name not in content["arms"] else f"{100 * score['likelihood']['accuracy']:.1f}",
            str(score["unparsed"]),
            str(score["n"]),
        )
    console.print(table)
    if len(families) > len(columns):
        table = figures("sub-task", *scores)
        for family in families:
            own = [f"{100 * score['by_family'][family]['accuracy']:.1f}" for score in scores.values()]
            table.add_row(family, *own)
        console.print()
        console.print(table)
    if content["paired"]:
        table = figures("paired", "points", "95 %", "p", "p (Holm)", "finding", *columns)
        console.print()
        for name, pair in content["paired"].items():
            by_family = [f"{100 * pair['by_family'][family]['difference']:+.1f}" for family in columns]
            low, high = pair["interval_95"]
            table.add_row(
                name.replace("-minus-", " − "),
                f"{100 * pair['difference']:+.1f}",
                f"{100 * low:+.1f} … {100 * high:+.1f}",
                f"{p_of(pair):.2g}",
                f"{pair['p_holm']:.2g}",
                pair["finding"],
                *by_family,
            )
        console.print(table)
