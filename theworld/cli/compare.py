"""theworld compare: runs side by side, as JSON, Markdown and one page."""

from __future__ import annotations

import json
from pathlib import Path
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
        str | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write comparison.json, .md and .html there.")
    ] = None,
    reference: Annotated[
        str, typer.Option("--reference", metavar="ARM", help="Compare all others with this one. Default: fused.")
    ] = "",
    debug: options.Debug = False,
) -> None:
    """Compare arms and runs that were asked the same questions, question by question.

    Of one run, its arms are compared; of several, the arms of all. Training seeds of one model (NAME=RUN,RUN) are
    pooled, a question counting once with its share of right seeds. Comparisons are corrected for their number (Holm); a
    difference inside noise is reported as none.

    Example: theworld compare runs/nano -o report/
    """
    from theworld.evaluation.comparison import as_markdown, compared, gather
    from theworld.evaluation.page import as_page
    from theworld.storage.files import write_text

    if output is not None:
        check_output_folder(output)
    content = compared(gather(runs), reference)
    show(content)
    for note in content["notes"]:
        say(f"Note: {note}")
    if output is not None:
        folder = Path(output)
        write_text(folder / "comparison.json", json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        write_text(folder / "comparison.md", as_markdown(content))
        write_text(folder / "comparison.html", as_page(content))
        say(f"{folder}: comparison.json, comparison.md, comparison.html")
