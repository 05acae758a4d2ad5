"""theworld ask: a question about pictures, answered as it is written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.console import counting, say
from theworld.cli.loading import check_prompt, check_trained, has_trained_projector, load, note_for

FRAMES_STEPS = 4  # world steps that a model imagines which has no number of its own, since it was never trained


def ask(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="One picture or several.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    model: options.Model = "nano",
    world_model: options.WorldModel = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    prompt: options.WorldPrompt = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy, larger is freer.")] = 0.0,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            help="tokens: reads the future as world tokens. frames: sees it as further pictures, which needs no "
            "training. Default: tokens where the model has a trained projector.",
        ),
    ] = None,
    world: Annotated[bool, typer.Option("--world/--no-world", help="Off asks without world tokens.")] = True,
    as_json: options.Json = False,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Ask a question about a picture; the model imagines what comes next before it answers.

    Example: theworld ask scene.png "Which bin will the ball land in: left, middle or right?" --steps 4
    """
    started = time.perf_counter()
    if not question.strip():
        raise ValueError("The question is empty; write one, in quotes, behind the pictures.")
    note = note_for(model)
    pictures = read_pictures(images)
    if world and mode == "tokens":
        check_trained(model, "let it see imagined frames (--mode frames)")
    if world and steps is None and not has_trained_projector(model):
        steps = FRAMES_STEPS
    if world:
        check_prompt(model, prompt, world_model)
    the_model = load(model, steps, device, enable_world=world, world_model=world_model)
    loaded = time.perf_counter()
    how = the_model.mode_of(mode) if world else "picture"
    if not as_json:
        if note:
            say(note)
        say(way_of(how, the_model.config.num_world_steps, the_model.projector_is_trained))
    with counting() as step:
        pieces: Iterator[str] = the_model.stream(
            pictures,
            question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            enable_world=None if world else False,
            world_prompt=prompt,
            mode=mode,
            progress=lambda done, total: step("Imagining", done, total),
        )
        first = next(pieces, "")
    written = [first]
    if not as_json:
        sys.stdout.write(first.lstrip())
    for piece in pieces:
        written.append(piece)
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not as_json:
        sys.stdout.write("\n")
        return
    content = {
        "answer": "".join(written).strip(),
        "question": question,
        "images": images,
        "model": model,
        "mode": how,
        "num_world_steps": the_model.config.num_world_steps if world and the_model.config.enable_world else None,
        "seed": seed,
        **({} if prompt is None else {"world_prompt": prompt}),
        "seconds": {"load": round(loaded - started, 2), "answer": round(time.perf_counter() - loaded, 2)},
    }
    typer.echo(json.dumps({**content, "note": note} if note else content, ensure_ascii=False, indent=2))


def way_of(how: str, steps: int, trained: bool) -> str:
    """The line that says how an answer came about."""
    if how == "tokens":
        return f"Mode tokens: the answer reads world tokens of now and {steps} world step{'s' * (steps != 1)}."
    why = "" if trained else " This model has no trained projector, so it cannot read world tokens."
    if how == "frames":
        return f"Mode frames: the answer sees {steps} imagined frame{'s' * (steps != 1)} as further pictures.{why}"
    return f"No world: the answer comes from the pictures alone.{why}"


def read_pictures(paths: list[str]) -> list[object]:
    """Pictures of paths, read before any model is loaded, so that a wrong path is told at once."""
    from theworld.images import load_images

    return list(load_images(paths))
