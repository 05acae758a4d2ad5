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
from theworld.cli.loading import check_prompt, check_trained, load, note_for


def ask(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="One picture or several.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    model: options.Model = "nano",
    steps: options.Steps = None,
    seed: options.Seed = 0,
    prompt: options.WorldPrompt = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy, larger is freer.")] = 0.0,
    world: Annotated[bool, typer.Option("--world/--no-world", help="Off asks without world tokens.")] = True,
    as_json: options.Json = False,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Ask a question about a picture; the model imagines what comes next before it answers.

    Example: theworld ask scene.png "Which bin will the ball land in: left, middle or right?" --steps 4
    """
    started = time.perf_counter()
    note = note_for(model)
    pictures = read_pictures(images)
    if world:
        check_trained(model)
        check_prompt(model, prompt)
    the_model = load(model, steps, device, enable_world=world)
    loaded = time.perf_counter()
    if not as_json and note:
        say(note)
    with counting() as step:
        pieces: Iterator[str] = the_model.stream(
            pictures,
            question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            enable_world=None if world else False,
            world_prompt=prompt,
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
        "num_world_steps": the_model.config.num_world_steps if world and the_model.config.enable_world else None,
        "seed": seed,
        **({} if prompt is None else {"world_prompt": prompt}),
        "seconds": {"load": round(loaded - started, 2), "answer": round(time.perf_counter() - loaded, 2)},
    }
    typer.echo(json.dumps({**content, "note": note} if note else content, ensure_ascii=False, indent=2))


def read_pictures(paths: list[str]) -> list[object]:
    """Pictures of paths, read before any model is loaded, so that a wrong path is told at once."""
    from theworld.images import load_images

    return list(load_images(paths))
