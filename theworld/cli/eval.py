"""theworld eval: compares arms on a benchmark."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from theworld.cli import options
from theworld.cli.console import counting, plain_table, say, stdout
from theworld.cli.loading import check_output, check_output_folder, go_offline_if_unreachable, load

if TYPE_CHECKING:
    from theworld.evaluation.results import Results


def evaluate(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="physics, blink, mcq, jsonl, sat, …; `list` names them all.")
    ],
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Questions, such as the .jsonl of `eval jsonl`; as --data.")
    ] = None,
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
            help="Folder of this run. Every answer is saved as soon as it is generated, the same command resumes an "
            "interrupted run, and `theworld compare` reads it.",
        ),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write results to FILE, and predictions to NAME.predictions.jsonl."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PATH", help="Questions: a .jsonl, .json or .parquet, a folder, or a Hub id."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="physics: train, validation, test or hard. blink: val or test. Default: the benchmark's own.",
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option("--tasks", "--task", metavar="NAMES", help="Comma-separated sub-tasks or families.")
    ] = "",
    fields: Annotated[
        str | None,
        typer.Option(
            "--fields",
            metavar="NAME=COLUMN,…",
            help="mcq: column names (id, question, images, video, choices, answer, task, prompt, future_frames, fps, "
            "…), or a JSON file with them.",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="NAME", help="mcq: configuration of the Hub dataset.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="K", min=1, help="Maximum number of questions. Default: all; physics 300."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="S", min=0, help="Random seed of the rollouts, and of the scenes of physics."),
    ] = 0,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="N[,N…]",
            help="World steps to imagine, 4 frames each; with several, arms that look ahead run with each. Default: "
            "the model's own number.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", metavar="NAME=MODEL", help="Weights of a trained control (repeatable)."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions per batch.")] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Maximum length of an answer, in tokens. Default: 64; physics 8."),
    ] = None,
    world_model: options.WorldModel = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    fast_path: options.FastPath = "auto",
    quantization: options.Quantization = None,
    offload_world_model: options.OffloadWorldModel = False,
    debug: options.Debug = False,
) -> None:
    """Ask a model the questions of a benchmark in several arms, and compare the arms question by question.

    An arm is one way to run the same questions: with the imagined future, without it, with another image's, or on the
    weights of a trained control. Answers are generated greedily; unparsed answers count as wrong and are reported. The
    most likely option is scored separately. Rollouts are computed once for all arms.

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
    if file is not None and data is not None:
        raise ValueError(f"The questions are named twice, as {file} and with --data {data}; name them once.")
    # output paths are checked before any work
    if results is not None:
        check_output(results)
    if output is not None:
        check_output_folder(output)
    num_world_steps = read_steps(steps)
    controls = read_controls(control or [])
    from theworld import evaluation

    for name in (model, *controls.values()):
        go_offline_if_unreachable(name)
    with counting() as step:
        found = evaluation.evaluate(
            model,
            benchmark,
            arms=arms,
            num_world_steps=num_world_steps,
            limit=limit,
            split=split,
            tasks=[name.strip() for name in tasks.split(",") if name.strip()],
            seed=seed,
            output=output,
            data=file if data is None else data,
            fields=fields,
            config=config,
            controls=controls,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            world_model=world_model,
            device=device,
            dtype=dtype,
            progress=step,
            load=lambda spec: load(spec, None, device, dtype, fast_path, quantization, offload_world_model),
            quantization=quantization,
            command=shlex.join(["theworld", *sys.argv[1:]]),
        )
    if "note" in found.content:
        say(f"Note: {found.content['note']}")
    if results is not None:
        found.to_json(results)
    if found.hidden:
        report_submissions(found, output, results)
    show(found)


def read_steps(text: str | None) -> list[int] | None:
    """`--steps` as numbers."""
    if text is None:
        return None
    try:
        steps = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--steps {text}: write one integer, or several separated by commas, such as 0,4.") from error
    if min(steps) < 0:
        raise ValueError(f"--steps {text}: the number must be 0 or more.")
    return steps


def read_controls(pairs: list[str]) -> dict[str, str]:
    """`--control NAME=MODEL` as name -> model."""
    controls = {}
    for pair in pairs:
        name, _, model = pair.partition("=")
        if not name or not model:
            raise ValueError(f"--control {pair}: write NAME=MODEL, such as --control direct=runs/direct.")
        controls[name] = model
    return controls


def report_submissions(found: Results, output: str | None, results: str | None) -> None:
    """Names the submission files, and writes them where `evaluate` had no folder for them."""
    if output is None and results is None:
        say("The answers of this split are not published; with -o RUN a submission file is written.")
        return
    folder = Path(output) if output is not None else Path(str(results)).parent
    for path in found.write_submissions(folder):
        say(f"{path}: for the evaluation server; the answers of this split are not published.")


def show(found: Results) -> None:
    """Prints accuracies and paired differences as tables on stdout; the verdict, notes and warnings on stderr."""
    from theworld.evaluation.render import to_terminal

    to_terminal(found.content, stdout())
    say(found.verdict)
    if "seconds_per_world_step" in found.content:
        say(f"A world step is {found.content['seconds_per_world_step']:g} s.")
    for note in found.content.get("notes", ()):
        say(f"Note: {note}")
    for warning in found.content["warnings"]:
        say(f"Warning: {warning}")


def list_arms() -> None:
    """Prints the arms."""
    from theworld.evaluation.arms import ARMS

    table = plain_table("arm", "meaning")
    for name, arm in ARMS.items():
        table.add_row(name, arm.meaning)
    stdout().print(table)


def list_benchmarks() -> None:
    """Prints the benchmarks."""
    from theworld.datasets.published import KNOWN_SETS
    from theworld.evaluation.tasks import BENCHMARKS

    table = plain_table("benchmark", "meaning", "data", "column names from")
    for name, benchmark in BENCHMARKS.items():
        known = KNOWN_SETS.get(name)
        source = {"physics": "generated", "blink": "BLINK-Benchmark/BLINK"}.get(name) or (known and known.hub)
        table.add_row(name, benchmark.meaning, source or "--data", known.source if known else "")
    stdout().print(table)
