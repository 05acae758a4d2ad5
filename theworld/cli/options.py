"""Options that several subcommands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def _remember(ctx: typer.Context, wanted: bool) -> bool:
    if wanted:
        ctx.meta["theworld.debug"] = True
    return wanted


def _check_rate(rate: float | None) -> float | None:
    if rate is not None:
        from theworld.media.selection import check_rate

        try:
            check_rate(rate)
        except ValueError as error:
            raise ValueError(f"--video-fps: {error}") from error
    return rate


Model = Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="nano, a model folder, or a Hub id.")]
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="nano, a model folder, or a Hub id.  [default: nano]", show_default=False),
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="The same as MODEL.")]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        "--num-world-steps",
        metavar="N",
        min=0,
        help="World steps to imagine, 4 frames each. Default: the model's own number; 4 for an untrained model.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Random seed of the rollout.")]
Futures = Annotated[
    int,
    typer.Option(
        "--futures", metavar="K", min=1, max=64, help="Number of futures, with the seeds S, S+1, …, in one batch."
    ),
]
WorldPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="Text that steers the imagined future, such as 'the cup is pushed to the left'; for world models with a "
        "text encoder (nano has none).",
    ),
]
Video = Annotated[
    str | None,
    typer.Option(
        "--video",
        metavar="FILE",
        help="Video of the past, instead of images: an MP4, MOV, WebM, MKV, AVI, GIF, APNG or animated WebP. Its last "
        "frame is the present.",
    ),
]
VideoFps = Annotated[
    float | None,
    typer.Option(
        "--video-fps",
        metavar="R",
        callback=_check_rate,
        help="Frames per second of --video or --frames, for frames without times. Default: from the file, else the "
        "world model's rate. The video is read at the world model's rate.",
    ),
]
Frames = Annotated[bool, typer.Option("--frames", help="The images are the frames of one video in temporal order.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, … Default: a GPU if there is one.")]
FastPath = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(
        "--fast-path",
        help="Compiled layers and CUDA graphs. auto: on a GPU, from the second call of a kind; on: from the first one.",
    ),
]
Quantization = Annotated[
    Literal["4bit", "8bit"] | None,
    typer.Option(
        "--quantization",
        help="Bits per weight of the base models' linear layers, for GPUs with little memory. Default: as stored.",
    ),
]
OffloadWorldModel = Annotated[
    bool,
    typer.Option(
        "--offload-world-model",
        help="Keep the world transformer in CPU memory, from which each block is copied to the GPU when it runs.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", callback=_remember, help="Show the traceback of an error.")]
WorldModel = Annotated[
    str | None,
    typer.Option(
        "--world-model",
        metavar="NAME",
        help="World model that a Gemma 3 is fused with: a folder or a Hub id. Default: the published Cosmos-Predict2 "
        "2B.",
    ),
]
Dtype = Annotated[
    Literal["bfloat16", "float32", "float16"] | None,
    typer.Option(
        "--dtype",
        help="Type of the weights. Default: bfloat16 on a GPU and on a CPU with bfloat16 instructions, else float32.",
    ),
]
