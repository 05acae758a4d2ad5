"""theworld ask: a question about pictures, answered as it is written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from theworld.cli import options
from theworld.cli.console import counting, say
from theworld.cli.loading import FRAMES_STEPS, check_prompt, check_trained, has_trained_projector, load, note_for

if TYPE_CHECKING:
    from theworld.media.inputs import LoadedImages
    from theworld.media.video import Video


def ask(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="One picture or several; or --video.", show_default=False),
    ] = None,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="In quotes; - reads it from stdin.", show_default=False)
    ] = "",
    video: options.Video = None,
    frames: options.Frames = False,
    world_images: Annotated[
        str | None,
        typer.Option(
            "--world-images",
            help="first: looks ahead from the first of several pictures. all: from each. Default: the model's own, "
            "which is what it was trained on.",
        ),
    ] = None,
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
    """Ask a question about pictures or a video; the model imagines what comes next before it answers.

    Example: theworld ask scene.png "Which bin will the ball land in: left, middle or right?" --steps 4
    """
    images = images or []
    if question == "-":
        question = sys.stdin.read().strip()
    if not question.strip() or not (images or video):  # one word alone is taken for the question
        raise typer.BadParameter("name a picture (or --video FILE) and then the question, in quotes.")
    started = time.perf_counter()
    note = note_for(model)
    check_world_images(world_images)
    check_way(mode, steps)
    pictures, clip = read_seen(images, video, frames)
    if world and mode == "tokens":
        check_trained(model, "let it see imagined frames (--mode frames)")
    trained = has_trained_projector(model)
    if world and not trained:
        steps = FRAMES_STEPS if steps is None else steps
        world = steps > 0 or clip is not None  # of now alone the world model would tell it nothing
    if world:
        check_prompt(model, prompt, world_model)
    the_model = load(model, steps, device, enable_world=world, world_model=world_model, video=clip)
    loaded = time.perf_counter()
    past = 0 if clip is None or not world else the_model.config.past_steps_of(clip.num_frames)
    how = the_model.mode_of(mode, num_past_steps=past) if world else "picture"
    if not as_json:
        if note:
            say(f"Note: {note}")
        if clip is not None:
            say(part_of(clip, the_model.config.num_pixel_frames(0, past)))
        say(way_of(how, past, the_model.config.num_world_steps, trained))
    with counting() as step:
        pieces: Iterator[str] = the_model.stream(
            pictures,
            question,
            video=clip,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            enable_world=None if world else False,
            world_images=world_images,
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
        **({} if video is None else {"video": video}),
        **({} if clip is None else {"num_past_steps": past}),
        "model": model,
        "mode": how,
        "num_world_steps": the_model.config.num_world_steps if world and the_model.config.enable_world else None,
        "seed": seed,
        **({} if prompt is None else {"world_prompt": prompt}),
        "seconds": {"load": round(loaded - started, 2), "answer": round(time.perf_counter() - loaded, 2)},
    }
    typer.echo(json.dumps({**content, "note": note} if note else content, ensure_ascii=False, indent=2))


def check_world_images(world_images: str | None) -> None:
    """Stops before anything is loaded when `--world-images` is neither of its values."""
    from theworld.model.configuration import WORLD_IMAGES

    if world_images is not None and world_images not in WORLD_IMAGES:
        raise ValueError(f"--world-images is {world_images!r}; choose one of {', '.join(WORLD_IMAGES)}.")


def check_way(mode: str | None, steps: int | None) -> None:
    """Stops before anything is loaded when options contradict each other, or `--mode` is none."""
    from theworld.inference.pipeline import MODES

    if mode is not None and mode not in MODES:
        raise ValueError(f"--mode is {mode!r}; choose one of {', '.join(MODES)}.")
    if mode == "frames" and steps == 0:
        raise ValueError("--mode frames shows imagined frames, and --steps 0 imagines none; take 1 step or more.")


def part_of(clip: Video, read: int) -> str:
    """The line that says which frames of a video are read."""
    if clip.num_frames == 1:
        return "Video: it has one frame, which is now."
    if read == 1:
        return f"Video: of its {clip.num_frames:,} frames the last one is read."
    return f"Video: the last {read} of its {clip.num_frames:,} frames are read; the last one is now."


def way_of(how: str, past: int, steps: int, trained: bool) -> str:
    """The line that says how an answer came about."""
    if how == "tokens":
        before = f"{past} past world step{'s' * (past != 1)}, " if past else ""
        return f"Mode tokens: the answer reads world tokens of {before}now and {steps} world step{'s' * (steps != 1)}."
    why = "" if trained else " This model has no trained projector, so it cannot read world tokens."
    if how == "frames":
        kinds = ((past, "past"), (steps, "imagined"))
        shown = " and ".join(f"{count} {kind} frame{'s' * (count != 1)}" for count, kind in kinds if count)
        return f"Mode frames: the answer sees {shown} as further pictures.{why}"
    return f"No world: the answer comes from the pictures alone.{why}"


def read_seen(images: Sequence[str], video: str | None, frames: bool) -> tuple[LoadedImages | None, Video | None]:
    """What a command was shown, the pictures or the video, read before a model is loaded: a wrong path is told at once.

    Raises:
        ValueError: unreadable, or pictures and a video.
    """
    from theworld.media.inputs import group_images
    from theworld.media.video import load_video, num_frames_of_image

    if video is None and not frames:
        loaded = group_images(list(images), "")
        for path in images:
            if (count := num_frames_of_image(path)) > 1:
                say(f"Note: {path} has {count} frames, of which the first is read; --video reads all.")
        return loaded, None
    if video is not None and (images or frames):
        raise ValueError("pictures and --video were both given; give one: the last frame of the video is now.")
    return None, load_video(list(images) if video is None else video)
