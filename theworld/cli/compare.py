"""theworld compare: compares saved runs, and writes JSON, Markdown and one HTML page."""

from __future__ import annotations

from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.console import say
from theworld.cli.eval import show
from theworld.cli.loading import check_output_folder


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…", help="Folders of `theworld eval -o`, or NAME=RUN,RUN,… for training seeds of one model."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Write comparison.json, .md and .html to FOLDER."),
    ] = None,
    reference: Annotated[
        str, typer.Option("--reference", metavar="ARM", help="Arm that all others are compared with. Default: fused.")
    ] = "",
    debug: options.Debug = False,
) -> None:
    """Compare the arms of one or more runs of the same questions, question by question.

    Training seeds of one model (NAME=RUN,RUN) are pooled: a question counts once, with its share of correct seeds.
    Comparisons are corrected for their number (Holm); a difference within noise is reported as not shown.

    Example: theworld compare runs/nano -o report/
    """
    from theworld import evaluation

    if output is not None:
        check_output_folder(output)
    show(evaluation.compare(runs, reference=reference, output=output))
    if output is not None:
        say(f"{output}: comparison.json, comparison.md, comparison.html")
