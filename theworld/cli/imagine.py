"""theworld imagine: what the world model expects to happen, as an animation to look at."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.ask import part_of, read_seen
from theworld.cli.console import counting, say, waiting
from theworld.cli.loading import check_place, check_prompt, check_shown, load, note_for

DEFAULT_STEPS = 4  # for a model whose own number is 0: an animation of nothing is of no use


def imagine(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="FILE.gif, FILE.mp4 or FILE.png (a strip).")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="The picture of now; or --video, or several and --frames."),
    ] = None,
    video: options.Video = None,
    frames: options.Frames = False,
    model: options.Model = "nano",
    world_model: options.WorldModel = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    prompt: options.WorldPrompt = None,
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="Frames a second of the animation.")] = 8.0,
    as_json: options.Json = False,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Imagine what happens after a picture or a video and write it as GIF, MP4 or a strip of frames.

    Of a video the frames seen stand before the imagined ones, and each says which it is.

    Example: theworld imagine scene.png -o future.gif --steps 4
    """
    import numpy as np

    from theworld.media.export import moment_labels, rollout_extension, save_rollout

    images = images or []
    if not (images or video):
        raise typer.BadParameter("name the picture of now, or --video FILE.")
    started = time.perf_counter()
    rollout_extension(output)  # a wrong name is told before a model is loaded
    check_place(output)
    note = note_for(model)
    if len(images) > 1 and not frames:
        raise ValueError(f"{len(images)} pictures were given, and one future is shown; give one, or --frames.")
    pictures, clip = read_seen(images, video, frames)
    check_prompt(model, prompt, world_model)
    check_shown(model, world_model)
    the_model = load(model, steps, device, world_model=world_model, video=clip)
    chosen = steps if steps is not None else the_model.config.num_world_steps or DEFAULT_STEPS
    with counting() as step:
        latents = the_model.imagine(
            pictures,
            chosen,
            video=clip,
            seed=seed,
            world_prompt=prompt,
            progress=lambda done, total: step("Imagining", done, total),
        )
    with waiting("Decoding …"):
        shown, labels, seen = the_model.decode(latents)[0], None, 1  # (F, H, W, 3)
        if clip is not None:
            own = the_model.seen(clip)
            shown, seen = np.concatenate([own, shown[len(own) :]]), len(own)
            labels = moment_labels(seen - 1, len(shown))
        path = save_rollout(shown, output, fps, labels=labels)
    if not as_json:
        if note:
            say(f"Note: {note}")
        if clip is not None:
            say(part_of(clip, seen))
        typer.echo(path)
        return
    content = {
        "file": str(path),
        "frames": len(shown),
        **({} if video is None else {"video": video}),
        **({} if clip is None else {"past_frames": seen - 1}),
        "num_world_steps": chosen,
        "seed": seed,
        **({} if prompt is None else {"world_prompt": prompt}),
        "model": model,
        "seconds": round(time.perf_counter() - started, 2),
    }
    typer.echo(json.dumps({**content, "note": note} if note else content, ensure_ascii=False, indent=2))
