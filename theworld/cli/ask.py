"""theworld ask: answers a question about images or a video, and streams the answer."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from theworld.cli import options
from theworld.cli.console import counting, figures, say, stdout
from theworld.cli.loading import PAST_STEPS, check_files, dtype_name, load, read_config, resolve_spec
from theworld.messages import counted
from theworld.model.call_plan import CallPlan, plan_call

if TYPE_CHECKING:
    from theworld.inference.futures import FutureAnswers
    from theworld.media.inputs import LoadedImages
    from theworld.media.video import Video
    from theworld.model.spec import ModelSpec


def ask(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Paths of one or more images (or use --video).", show_default=False),
    ] = None,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="In quotes; - reads it from stdin.", show_default=False)
    ] = "",
    video: options.Video = None,
    video_fps: options.VideoFps = None,
    frames: options.Frames = False,
    world_images: Annotated[
        Literal["first", "all"] | None,
        typer.Option(
            "--world-images",
            help="Which of several images the world model reads. Default: the model's setting, with which it was "
            "trained.",
        ),
    ] = None,
    model: options.Model = "nano",
    world_model: options.WorldModel = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    futures: options.Futures = 1,
    imagine: Annotated[
        Literal["always", "auto"],
        typer.Option(
            "--imagine",
            help="auto: answer without a future first, imagine only if that answer is not confident, and use only "
            "futures that agree with the present.",
        ),
    ] = "always",
    choices: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="TEXT", help="A possible answer, whose probability is shown (repeatable)."),
    ] = None,
    prompt: options.WorldPrompt = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Maximum length of the answer, in tokens.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="Sampling temperature; 0 means greedy decoding.")
    ] = 0.0,
    mode: Annotated[
        Literal["tokens", "frames"] | None,
        typer.Option(
            "--mode",
            help="tokens: the language model reads the future as world tokens. frames: it sees the future as further "
            "images, which needs no training. Default: tokens if the projector is trained.",
        ),
    ] = None,
    world: Annotated[bool, typer.Option("--world/--no-world", help="Enable or disable the world model.")] = True,
    as_json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    fast_path: options.FastPath = "auto",
    quantization: options.Quantization = None,
    offload_world_model: options.OffloadWorldModel = False,
    debug: options.Debug = False,
) -> None:
    """Ask a question about images or a video; the model imagines what comes next before it answers.

    Example: theworld ask scene.png "What colour is the bin the yellow ball will land in?" --steps 4
    """
    images = images or []
    if question == "-":
        question = sys.stdin.read().strip()
    if not question.strip() or not (images or video):  # a single word is parsed as the question
        raise typer.BadParameter("provide an image (or --video FILE) and then the question, in quotes.")
    if mode == "frames" and steps == 0:
        raise ValueError("--mode frames shows imagined frames, and --steps 0 imagines none; use 1 step or more.")
    started = time.perf_counter()
    check_files(*images, *([video] if video else []))
    is_video = frames or video is not None
    spec = resolve_spec(
        model,
        world_model,
        enable_world=world and (steps != 0 or is_video),  # without a future or a past it would have no effect
        max_past_steps=PAST_STEPS if is_video else 0,
    )
    spec.check_steps(steps)
    if world and mode == "tokens":
        spec.check_trained("show it imagined frames (--mode frames)")
    read_config(spec)
    from theworld.inference.clips import describe_clip

    shown, clip = read_images(images, video, frames, video_fps, spec)
    past = spec.config.past_steps_of(clip.num_frames) if world and clip is not None else 0
    plan = plan_call(spec.config, mode, steps, num_past_steps=past, enable_world=world)
    if plan.mode != "off":
        spec.check_prompt(prompt)
    if futures > 1 or imagine == "auto":
        from theworld.inference.futures import check_imagines

        check_imagines(futures, imagine, plan.num_world_steps > 0)
    planned = plan.num_world_steps if plan.mode != "off" else None
    the_model = load(spec, planned, device, dtype, fast_path, quantization, offload_world_model)
    loaded = time.perf_counter()
    precision, step_seconds = dtype_name(the_model), spec.config.world_config.seconds_per_world_step
    notes = spec.notes_on_steps(plan.num_world_steps)
    if not as_json:
        for note in notes:
            say(f"Note: {note}")
        if clip is not None:
            say(describe_clip(clip, spec.config, past))
        say(f"{describe_mode(plan, past)} ({precision} on {the_model.device})")
        if plan.mode != "off":
            say(f"A world step is {step_seconds:g} s.")
    given: dict[str, Any] = {
        "video": clip,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "enable_world": False if plan.mode == "off" else None,  # what was printed is what is done
        "world_images": world_images,
        "world_prompt": prompt,
        "mode": mode,
    }
    is_plain = futures == 1 and imagine == "always" and not choices
    found: FutureAnswers | None = None
    with counting() as step:
        given["progress"] = lambda done, total: step("Imagining (denoising passes)", done, total)
        if is_plain:
            pieces: Iterator[str] = the_model.stream(shown, question, **given)
            first = next(pieces, "")
        else:
            found = the_model.ask(shown, question, futures=futures, imagine=imagine, options=choices or (), **given)
    if found is not None and not as_json:
        show_futures(found)
        return
    if found is None and not as_json:
        sys.stdout.write(first.lstrip())
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    content = {
        "answer": "".join([first, *pieces]).strip() if found is None else found.answer,
        **({} if found is None else {"futures": found.as_json()}),
        "question": question,
        "images": images,
        **({} if video is None else {"video": video}),
        **({} if clip is None else {"num_past_steps": past}),
        "model": model,
        "mode": plan.mode,
        "num_world_steps": None if plan.mode == "off" else plan.num_world_steps,
        "seconds_per_world_step": None if plan.mode == "off" else step_seconds,
        "seed": seed,
        **({} if prompt is None else {"world_prompt": prompt}),
        "device": str(the_model.device),
        "dtype": precision,
        "notes": notes,
        "seconds": {"load": round(loaded - started, 2), "answer": round(time.perf_counter() - loaded, 2)},
    }
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def show_futures(found: FutureAnswers) -> None:
    """Prints the answer, what the gate decided, and the probabilities or shares of all answers."""
    typer.echo(found.answer)
    if (gate := found.gate) is not None:
        sure = "unknown" if gate.confidence is None else f"{100 * gate.confidence:.1f} %"
        done = f"{counted(gate.imagined, 'future')} imagined, {gate.kept} used" if gate.imagined else "nothing imagined"
        say(f"Confidence without a future: {sure} (limit {100 * gate.min_confidence:.1f} %); {done}.")
    if found.num_futures <= 1 and not found.probabilities:
        return
    table = figures("answer", *(("probability", "±") if found.probabilities else ()), "futures")
    for answer in sorted({*found.probabilities, *found.shares}, key=lambda each: -found.probabilities.get(each, 0.0)):
        known = answer in found.probabilities
        numbers = [f"{100 * each[answer]:.1f} %" if known else "" for each in (found.probabilities, found.spread)]
        share = f"{round(found.shares.get(answer, 0.0) * len(found.answers))} of {len(found.answers)}"
        table.add_row(answer, *(numbers if found.probabilities else ()), share if found.num_futures else "")
    stdout().print(table)


def describe_mode(plan: CallPlan, past: int) -> str:
    """The line that says what an answer is based on."""
    why = f" {plan.reason}" if plan.reason else ""
    if plan.mode == "tokens":
        before = f"{counted(past, 'past world step')}, " if past else ""
        return (
            f"Mode tokens: the answer reads world tokens of {before}the present and "
            f"{counted(plan.num_world_steps, 'imagined world step')}."
        )
    if plan.mode == "frames":
        kinds = ((past, "past"), (plan.num_world_steps, "imagined"))
        shown = " and ".join(counted(count, f"{kind} frame") for count, kind in kinds if count)
        return f"Mode frames: the answer sees {shown} as further images.{why}"
    return f"World model not used; the answer is based on the input images only.{why}"


def read_images(
    images: Sequence[str], video: str | None, frames: bool, fps: float | None, spec: ModelSpec
) -> tuple[LoadedImages | None, Video | None]:
    """The images, or the video, of a command, read before a model is loaded so that a wrong path is reported early.

    Raises:
        ValueError: if a file cannot be read, or both images and a video are given, or a rate and no video.
    """
    from theworld.media.animations import num_frames_of_image
    from theworld.media.files import video_format
    from theworld.media.inputs import group_images
    from theworld.media.video import Video

    if video is None and not frames:
        if fps is not None:
            raise ValueError("--video-fps is the rate of a video, and there is none: add --video FILE or --frames.")
        for path in filter(os.path.isfile, map(os.path.expanduser, images)):
            with open(path, "rb") as file:
                if video_format(file) is not None:
                    raise ValueError(
                        f"{path} is a video and was passed as an image: pass it as the video, with --video."
                    )
        loaded = group_images(list(images), "")
        for path in images:
            if (count := num_frames_of_image(path)) > 1:
                say(f"Note: {path} has {count} frames, of which the first is read; --video reads all.")
        return loaded, None
    if video is not None and (images or frames):
        raise ValueError("Images and --video were both given; give one. The last frame of the video is the present.")
    return None, spec.config.read_video(Video(list(images) if video is None else video, fps=fps))
