"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer


def _remember(ctx: typer.Context, wanted: bool) -> bool:
    if wanted:
        ctx.meta["theworld.debug"] = True
    return wanted


Model = Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="nano, a model folder, or a Hub id.")]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        "--num-world-steps",
        metavar="N",
        min=0,
        help="World steps to imagine, 4 frames each. Default: the model's own.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Another number imagines another future.")]
WorldPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="What the imagined future shows, such as 'the cup is pushed to the left'; for world models with a text "
        "encoder (nano has none).",
    ),
]
Video = Annotated[
    str | None,
    typer.Option(
        "--video",
        metavar="FILE",
        help="What has been seen so far, instead of pictures: an MP4, MOV, WebM, MKV, AVI, GIF, APNG or animated WebP "
        "that ends now.",
    ),
]
Frames = Annotated[
    bool, typer.Option("--frames", help="The pictures are the frames of one video, in order of time; the last is now.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, … Default: a GPU if there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", callback=_remember, help="Show the traceback of an error.")]
WorldModel = Annotated[
    str | None,
    typer.Option(
        "--world-model",
        metavar="NAME",
        help="World model to fuse with, where the model is a plain Gemma 3: a folder or a Hub id. Default: the "
        "published Cosmos-Predict2 of 2B.",
    ),
]
World = Annotated[str | None, typer.Option("--world", hidden=True)]  # what info and doctor once called --world-model
DEFAULT_WORLD = "nvidia/Cosmos-Predict2-2B-Video2World"
