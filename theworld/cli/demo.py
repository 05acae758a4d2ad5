"""theworld demo: a page in the browser for one model."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.console import say, waiting
from theworld.cli.loading import PAST_STEPS, chosen_model, load, read_config, resolve_spec

INSTALL = 'The page needs further packages: install them with `pip install "theworld[demo]"`.'


def demo(
    model: options.ModelArgument = None,
    named: options.ModelOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: the system chooses one.")] = 7860,
    force: Annotated[
        bool, typer.Option("--force", help="Listen at an address of the network, without a password.")
    ] = False,
    futures: Annotated[
        int, typer.Option("--futures", min=1, max=8, help="Futures that are imagined unless the visitor changes it.")
    ] = 4,
    world_model: options.WorldModel = None,
    steps: options.Steps = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    fast_path: options.FastPath = "auto",
    quantization: options.Quantization = None,
    offload_world_model: options.OffloadWorldModel = False,
    debug: options.Debug = False,
) -> None:
    """Open a page in the browser: ask about an image or a video, with and without imagining what comes next.

    It listens at this machine's own address, and neither the page nor the command asks another machine for anything
    once the model is loaded. Ctrl-C ends it.

    Example: theworld demo nano
    """
    if any(importlib.util.find_spec(name) is None for name in ("gradio", "fastapi", "uvicorn")):
        raise ValueError(INSTALL)
    from theworld.model.call_plan import NO_WORLD_MODEL
    from theworld.serving.listening import is_loopback, listen, url_of

    if not force and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, and the page has no password: listen at 127.0.0.1, or add "
            "--force if everybody on the network may use it."
        )
    if steps == 0:
        raise ValueError("The page shows imagined futures, and --steps 0 imagines none; use 1 step or more.")
    given = chosen_model(model, named)
    listening = listen(host, port)
    spec = resolve_spec(given, world_model, max_past_steps=PAST_STEPS)
    spec.check_steps(steps)
    read_config(spec)
    if not spec.config.enable_world:
        raise ValueError(NO_WORLD_MODEL)
    spec.check_frames_may_be_shown()
    the_model = load(spec, steps, device, dtype, fast_path, quantization, offload_world_model)
    with waiting("Preparing the page …"):
        the_model.runner.load_parts("encoder", "transformer", "decoder")
        from theworld.demo.page import Page
        from theworld.demo.server import serve

    page = Page(the_model, spec.name, spec.shipped_note, futures=futures)
    serve(page, listening, host, lambda: say(f"{spec.name} answers at {url_of(host, listening)} (Ctrl-C ends it)."))
    say("Stopped.")
