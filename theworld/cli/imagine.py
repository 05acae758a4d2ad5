"""theworld imagine: what the world model expects to happen, as an animation to look at."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.ask import read_pictures
from theworld.cli.console import counting, say, waiting
from theworld.cli.loading import check_place, check_prompt, check_shown, load, note_for

DEFAULT_STEPS = 4  # for a model whose own number is 0: an animation of nothing is of no use


def imagine(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The picture of now.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="FILE.gif, FILE.mp4 or FILE.png (a strip).")
    ],
    model: options.Model = "nano",
    world_model: options.WorldModel = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    prompt: options.WorldPrompt = None,
    fps: Annotated[float, typer.Option("--fps", help="Frames a second of the animation.")] = 8.0,
    as_json: options.Json = False,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Imagine what happens after a picture and write it as GIF, MP4 or a strip of frames.

    Example: theworld imagine scene.png -o future.gif --steps 4
    """
    from theworld.pictures import rollout_extension, save_rollout

    started = time.perf_counter()
    rollout_extension(output)  # a wrong name is told before a model is loaded
    check_place(output)
    note = note_for(model)
    pictures = read_pictures([image])
    check_prompt(model, prompt, world_model)
    check_shown(model, world_model)
    the_model = load(model, steps, device, world_model=world_model)
    chosen = steps if steps is not None else the_model.config.num_world_steps or DEFAULT_STEPS
    with counting() as step:
        latents = the_model.imagine(
            pictures,
            chosen,
            seed=seed,
            world_prompt=prompt,
            progress=lambda done, total: step("Imagining", done, total),
        )
    with waiting("Decoding …"):
        frames = the_model.decode(latents)[0]  # (F, H, W, 3)
        path = save_rollout(frames, output, fps)
    if not as_json:
        if note:
            say(note)
        typer.echo(path)
        return
    content = {
        "file": str(path),
        "frames": len(frames),
        "num_world_steps": chosen,
        "seed": seed,
        **({} if prompt is None else {"world_prompt": prompt}),
        "model": model,
        "seconds": round(time.perf_counter() - started, 2),
    }
    typer.echo(json.dumps({**content, "note": note} if note else content, ensure_ascii=False, indent=2))
