"""theworld nano: the scenes of the shipped model."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from theworld.cli import options

app = typer.Typer(no_args_is_help=True, help="The shipped model nano and its scenes.")


@app.callback()
def nano() -> None:
    """The shipped model nano and its scenes."""


@app.command("scene")
def scene(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="drop, contact or tower.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the first image (.png).")
    ] = None,
    truth: Annotated[
        str | None, typer.Option("--truth", metavar="FILE", help="Write what happens (.gif, .mp4 or .png strip).")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation, test or hard.")] = "test",
    index: Annotated[int, typer.Option("--index", min=0, help="Number of the scene in the split.")] = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Simulate a scene that nano knows: its first image, questions about what happens next, and the correct answers.

    Example: theworld nano scene drop --index 3 -o scene.png --truth truth.gif
    """
    from theworld.cli.loading import check_output
    from theworld.datasets.physics import FRAMES_PER_SECOND, make_clip, next_questions
    from theworld.media.export import save_rollout

    for path in (output, truth):
        if path is not None:
            check_output(path)
    clip = make_clip(family, split, index)
    questions = next_questions(clip)
    if output is not None:
        if not output.lower().endswith(".png"):
            raise ValueError(f"{output} does not end in .png; other formats would change the pixels.")
        save_rollout(clip.frames[:1], output, scale=1)
    if truth is not None:
        save_rollout(clip.frames, truth, FRAMES_PER_SECOND, hold=0)  # in real time, so that it can be read as a video
    if as_json:
        content = {
            "family": family,
            "split": split,
            "index": index,
            "outcome": clip.outcome,
            "image": output,
            "truth": truth,
            "questions": [
                {"question": q.text, "answer": q.answer, "topic": q.topic, "form": q.form} for q in questions
            ],
        }
        typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
        return
    if output is not None:
        typer.echo(output)
    for question in questions:
        typer.echo(f"{question.text}  →  {question.answer}")
