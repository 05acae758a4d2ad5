"""theworld serve: an OpenAI-compatible server for one model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from theworld.cli import options
from theworld.cli.console import say
from theworld.cli.loading import PAST_STEPS, chosen_model, load, read_config, resolve_spec

if TYPE_CHECKING:
    from theworld.inference.pipeline import TheWorld

INSTALL = 'Serving needs further packages: install them with `pip install "theworld[serve]"`.'


def serve(
    model: options.ModelArgument = None,
    named: options.ModelOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: the system chooses one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model in requests. Default: MODEL, of a folder its name.")
    ] = None,
    api_key_file: Annotated[
        str | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="File with the key that requests must carry. Default: the variable THEWORLD_API_KEY, if it is set.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Listen at an address of the network without an API key.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Requests that are answered at once.")] = 16,
    batch_wait: Annotated[
        float,
        typer.Option(
            "--batch-wait",
            metavar="MS",
            min=0,
            help="Milliseconds that a batch waits for requests that are on their way.",
        ),
    ] = 10.0,
    max_requests: Annotated[
        int, typer.Option("--max-requests", min=1, help="Requests that wait or run; more are refused with status 429.")
    ] = 128,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=1, help="Seconds until an answer must be complete.")
    ] = 300.0,
    shutdown_timeout: Annotated[
        float, typer.Option("--shutdown-timeout", metavar="S", min=1, help="Seconds for open requests after SIGTERM.")
    ] = 60.0,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="MIB", min=1, help="Size of a request, and of the files it names.")
    ] = 32,
    max_images: Annotated[int, typer.Option("--max-images", min=1, help="Images and videos of a request.")] = 16,
    max_frames: Annotated[int, typer.Option("--max-frames", min=1, help="Frames of a video.")] = 1024,
    max_pixels: Annotated[
        int,
        typer.Option("--max-pixels", min=1, help="Pixels of an image; all frames of a video have 64 times as many."),
    ] = 2
    ** 24,
    max_prompt_tokens: Annotated[int, typer.Option("--max-prompt-tokens", min=1, help="Length of a prompt.")] = 8192,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of an answer.")] = 1024,
    cache: Annotated[
        int, typer.Option("--cache", metavar="MIB", min=0, help="Memory for the latents of earlier images.")
    ] = 256,
    downloads: Annotated[
        bool,
        typer.Option("--downloads/--no-downloads", help="Fetch images and videos from public http(s) addresses."),
    ] = True,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="URL",
            help="Web page, such as https://example.org, that may ask from a browser; can be repeated.",
        ),
    ] = None,
    world_model: options.WorldModel = None,
    steps: options.Steps = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    fast_path: options.FastPath = "auto",
    quantization: options.Quantization = None,
    offload_world_model: options.OffloadWorldModel = False,
    debug: options.Debug = False,
) -> None:
    """Serve a model to OpenAI clients: chat completions with images and videos, and imagined videos.

    It listens at this machine's own address unless --host names another one, which needs an API key.

    SIGTERM and Ctrl-C end it after the requests that have begun.

    Example: theworld serve nano --port 8000
    """
    from theworld.serving.settings import MIB, ServerSettings, read_key

    given = chosen_model(model, named)
    settings = ServerSettings(
        name=name or (given.rstrip("/").rpartition("/")[2] if given.startswith(("/", ".", "~")) else given),
        host=host,
        port=port,
        api_key=read_key(api_key_file),
        force=force,
        batch_size=batch_size,
        batch_wait=batch_wait / 1000,
        max_requests=max_requests,
        timeout=timeout,
        shutdown_timeout=shutdown_timeout,
        max_body_bytes=max_body * MIB,
        max_images=max_images,
        max_frames=max_frames,
        max_pixels=max_pixels,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        cache_bytes=cache * MIB,
        allow_origins=tuple(allow_origin or ()),
        downloads=downloads,
    )
    spec = resolve_spec(given, world_model, max_past_steps=PAST_STEPS)
    spec.check_steps(steps)
    read_config(spec)
    try:
        from theworld.serving.server import Server
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ValueError(INSTALL) from error

    def loaded() -> TheWorld:
        the_model = load(spec, steps, device, dtype, fast_path, quantization, offload_world_model)
        plan = the_model.plan()
        if plan.mode != "off":
            the_model.runner.load_parts(*plan.parts)
        say(f"{settings.name} is ready on {the_model.device}.")
        return the_model

    logging.getLogger("theworld.serving").setLevel(logging.INFO)
    server = Server(loaded, settings)
    key = "with an API key" if settings.api_key else "without an API key"
    say(f"Listening at {server.url}/v1 {key}; loading {settings.name} …")
    server.run()
    say("Stopped.")
