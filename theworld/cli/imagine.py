"""theworld imagine: writes what the world model expects to happen as an animation."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.ask import read_images
from theworld.cli.console import counting, say, waiting
from theworld.cli.loading import PAST_STEPS, check_files, check_output, dtype_name, load, read_config, resolve_spec
from theworld.messages import counted
from theworld.model.call_plan import steps_to_imagine


def imagine(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="FILE.gif, FILE.mp4 or FILE.png (a strip).")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="The input image; or --video, or several images and --frames."),
    ] = None,
    video: options.Video = None,
    video_fps: options.VideoFps = None,
    frames: options.Frames = False,
    model: options.Model = "nano",
    world_model: options.WorldModel = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    futures: options.Futures = 1,
    prompt: options.WorldPrompt = None,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            min=0.1,
            help="Frames per second of the animation. Default: the world model's rate, so that it plays in real time.",
        ),
    ] = None,
    as_json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    fast_path: options.FastPath = "auto",
    quantization: options.Quantization = None,
    offload_world_model: options.OffloadWorldModel = False,
    debug: options.Debug = False,
) -> None:
    """Imagine what happens after an image or a video and write it as GIF, MP4 or a strip of frames.

    For a video, the output starts with its own frames, and each frame is labelled as past, present or imagined. With
    --futures, the animation is a grid in the order of the seeds, and in a PNG each future is a row.

    Example: theworld imagine scene.png -o future.gif --steps 4
    """
    images = images or []
    if not (images or video):
        raise typer.BadParameter("provide an input image, or --video FILE.")
    if len(images) > 1 and not frames:
        raise ValueError(f"Got {counted(len(images), 'image')} for one future; give one image, or use --frames.")
    from theworld.media.export import check_fps, rollout_extension

    started = time.perf_counter()
    extension = rollout_extension(output)  # a wrong file name or rate is reported first
    if fps is not None:
        check_fps(fps)
    check_files(*images, *([video] if video else []))
    check_output(output)
    is_video = frames or video is not None
    spec = resolve_spec(model, world_model, max_past_steps=PAST_STEPS if is_video else 0)
    spec.check_steps(steps)
    read_config(spec)

    from theworld.inference.clips import describe_clip
    from theworld.media.export import futures_grid, grid_scale, moment_labels, save_rollout

    shown_images, clip = read_images(images, video, frames, video_fps, spec)
    world = spec.config.world_config
    spec.check_prompt(prompt)
    spec.check_frames_may_be_shown()
    the_model = load(spec, steps, device, dtype, fast_path, quantization, offload_world_model)
    chosen, precision = steps_to_imagine(the_model.config, steps), dtype_name(the_model)
    with counting() as step:
        latents = the_model.imagine(
            shown_images,
            chosen,
            video=clip,
            seed=seed,
            futures=futures,
            world_prompt=prompt,
            progress=lambda done, total: step("Imagining (denoising passes)", done, total),
        )
    with waiting("Decoding …"):
        decoded, labels, seen = the_model.decode(latents), None, 1  # (K, F, H, W, 3)
        if clip is not None:
            past = the_model.seen(clip)
            seen = len(past)
            decoded[:, :seen] = past
            labels = moment_labels(seen - 1, decoded.shape[1], world.fps)
        shown, scale = decoded[0], None  # (F, H, W, 3)
        if futures > 1:
            shown = futures_grid(decoded, extension)
            scale = None if extension == ".png" else grid_scale(decoded)
        path = save_rollout(shown, output, world.fps if fps is None else fps, scale=scale, labels=labels)
    notes = spec.notes_on_steps(chosen)
    if not as_json:
        for note in notes:
            say(f"Note: {note}")
        if clip is not None:
            say(describe_clip(clip, spec.config, (seen - 1) // world.temporal_factor))
        each = f"{world.seconds_per_world_step:g} s each"
        times = "" if futures == 1 else f", in {futures} futures with the seeds {seed} to {seed + futures - 1}"
        say(f"Imagined {counted(chosen, 'world step')}, {each}{times} ({precision} on {the_model.device}).")
        typer.echo(path)
        return
    content = {
        "file": str(path),
        "frames": len(shown),
        **({} if video is None else {"video": video}),
        **({} if clip is None else {"past_frames": seen - 1}),
        "num_world_steps": chosen,
        "seconds_per_world_step": world.seconds_per_world_step,
        "seed": seed,
        "futures": futures,
        **({} if prompt is None else {"world_prompt": prompt}),
        "model": model,
        "device": str(the_model.device),
        "dtype": precision,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 2),
    }
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
