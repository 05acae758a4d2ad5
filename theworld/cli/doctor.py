"""theworld doctor: prints whether a call can run on this machine, before anything is downloaded."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from theworld.cli import options
from theworld.cli.console import figures, plain_table, stdout, waiting
from theworld.cli.loading import chosen_model
from theworld.messages import counted

SERVER: dict[str, Any] = {"batch_size": 16, "extra": "serve"}  # the defaults of `theworld serve`


def doctor(
    model: options.ModelArgument = None,
    named: options.ModelOption = None,
    steps: options.Steps = None,
    world_model: options.WorldModel = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Check what `theworld serve` needs: its packages, its port, a batch's memory."),
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a preflight check for one call: Hub access and licences, download size, disk, memory and libraries.

    It downloads no weights. The exit code is 1 if the call would fail; the last lines name the cause and the fix.

    Example: theworld doctor google/gemma-3-4b-it --world-model nvidia/Cosmos-Predict2-2B-Video2World --steps 4
    """
    with waiting("Checking …"):
        from theworld.inspection import preflight

        content = preflight(chosen_model(model, named), world_model, steps, **(SERVER if serve else {}))
    if serve:
        content["findings"] += server_findings()
        content["works"] = not any(finding["fails"] for finding in content["findings"])
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
    else:
        show(content)
    if not content["works"]:
        raise typer.Exit(1)


def server_findings() -> list[dict[str, Any]]:
    """Whether a server with default settings could listen here, and who could ask it."""
    from theworld.serving.listening import listen
    from theworld.serving.settings import KEY_VARIABLE, ServerSettings, read_key

    try:
        settings = ServerSettings(api_key=read_key())
        listen(settings.host, settings.port).close()
    except ValueError as error:
        return [{"fails": True, "text": str(error)}]
    if settings.api_key is not None:
        return []
    text = f"{KEY_VARIABLE} is not set, so a server can listen at this machine's own address only, unless forced."
    return [{"fails": False, "text": text}]


def show(content: dict[str, Any]) -> None:
    """Prints the result of `preflight`: the machine, what the call needs, and the findings."""
    from rich.markup import escape

    from theworld.inspection.readiness import gib, gigabytes

    console = stdout()
    machine = content["machine"]
    facts = plain_table(show_header=False)
    facts.add_row("libraries", ", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    cards = [f"{card['name']}, {gib(card['free_bytes'])} GiB free" for card in machine["gpus"]]
    facts.add_row("GPU", "; ".join(cards) or "none")
    facts.add_row("guardrail", machine["guardrail"] or "not installed")
    token = "a token" if machine["token"] else "no token"
    facts.add_row("Hub", f"{machine['hub']}, {token}{', offline (HF_HUB_OFFLINE)' if machine['offline'] else ''}")
    facts.add_row("cache", f"{content['cache']}, {gigabytes(content['disk_free_bytes'])} free")
    console.print(facts)
    if content["repositories"]:
        table = figures("repository", "needed", "to download")
        for title in ("where", "access", "as"):
            table.add_column(title)
        for row in content["repositories"]:
            sizes = (gigabytes(row["needed_bytes"]), gigabytes(row["download_bytes"])) if row["files"] else ("?", "?")
            table.add_row(escape(row["name"]), *sizes, row["where"], row["access"], row["role"])
        console.print("", table, sep="\n")
    if content["memory"]:
        table = figures("memory", "predicted", "free")
        table.add_column("predicted is the sum of, in GiB")
        for row in content["memory"]:
            free = "?" if row["there_is"] is None else f"{gib(row['there_is'])} GiB"
            terms = ", ".join(f"{name} {gib(size)}" for name, size in row["contains"].items())
            table.add_row(row["of"], f"{gib(row['predicted'])} GiB", free, terms)
        console.print("", table, sep="\n")
    console.print()
    for finding in sorted(content["findings"], key=lambda one: one["fails"]):
        word = "[bold red]Problem:[/]" if finding["fails"] else "Note:"
        console.print(f"{word} {escape(finding['text'])}", soft_wrap=True)
    call = f"{content['model']} with {counted(content['num_world_steps'], 'world step')}"
    verdict = f"OK: this machine can run {call}." if content["works"] else f"This machine cannot run {call}."
    console.print(escape(verdict), style="bold", soft_wrap=True)
