"""theworld gate: chooses when a model imagines, on a run of the validation split."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from theworld.cli import options
from theworld.cli.console import plain_table, say, stdout
from theworld.cli.loading import check_output


def gate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Folder of `theworld eval … --arms fused,fused-0 -o RUN`, on questions for choosing."
        ),
    ],
    save: Annotated[
        str | None, typer.Option("--save", metavar="MODEL", help="Write the gate into config.json of this folder.")
    ] = None,
    keep: Annotated[
        float,
        typer.Option("--keep", min=0.0, max=1.0, help="Smallest accuracy, relative to a future for each question."),
    ] = 0.99,
    max_rollouts: Annotated[
        float, typer.Option("--max-rollouts", min=0.0, max=1.0, help="Largest share of questions that are imagined.")
    ] = 0.5,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the curve of all thresholds: .json, .png or .svg."),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Choose the gate of a model: the confidence below which `--imagine auto` imagines, and which futures it uses.

    Run it on the validation split, and evaluate the arm `gated` on the test split.

    Example: theworld gate runs/validation --save checkpoints/mine
    """
    from theworld.evaluation import gating

    if output is not None:
        gating.check_curve_file(output)
        check_output(output)
    data = gating.read_gate_data(run)
    chosen = gating.choose_gate(data, keep, max_rollouts)
    summary = gating.gate_summary(data, chosen)
    if output is not None:
        gating.write_curve(output, gating.gate_curve(data, chosen.max_jump), summary)
    if save is not None:
        gating.save_gate(save, chosen)
    content: dict[str, Any] = {"min_confidence": chosen.min_confidence, "max_jump": chosen.max_jump, **summary}
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    table = plain_table("", "value", "95 %")
    table.add_row("imagine below a confidence of", f"{chosen.min_confidence:g}")
    table.add_row("use futures with a jump of at most", f"{chosen.max_jump:g}")
    for name, text in (
        ("kept", "accuracy, relative to a future for each question"),
        ("rollouts", "imagined questions"),
    ):
        low, high = summary[f"{name}_interval_95"]
        table.add_row(text, f"{100 * summary[name]:.1f} %", f"{100 * low:.1f}–{100 * high:.1f}")
    stdout().print(table)
    for path in filter(None, (output, save)):
        say(f"{path}: written.")
