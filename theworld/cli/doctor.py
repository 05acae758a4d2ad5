"""theworld doctor: whether a call would work here, before anything of it is fetched."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from huggingface_hub import constants

from theworld.cli import options
from theworld.cli.console import stdout, waiting
from theworld.cli.info import figures, gib, on_meta
from theworld.model.call_plan import plan_call, world_parts_for
from theworld.model.spec import ModelSpec, resolve_model
from theworld.storage.hub import hub_answers, may_be_on_hub, resolve

if TYPE_CHECKING:
    from theworld.inspection.repositories import Found, Need
    from theworld.model.configuration import TheWorldConfig

GUARDRAIL = "cosmos_guardrail"


@dataclass(frozen=True)
class Finding:
    """A sentence, and whether the call fails for it."""

    fails: bool
    text: str


def doctor(
    name: Annotated[str | None, typer.Argument(metavar="MODEL", help="As --model.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="nano, a model folder, or a Hub id.  [default: nano]"),
    ] = None,
    steps: options.Steps = None,
    world_model: options.WorldModel = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check that a call would work here: repositories and their licences, downloads, disk, memory, libraries.

    Fetches no weights. The exit code is 1 when the call would fail, and the last lines say why and what to do.

    Example: theworld doctor --model google/gemma-3-4b-it --world-model nvidia/Cosmos-Predict2-2B-Video2World --steps 4
    """
    if name is not None and model is not None:
        raise typer.BadParameter("the model was named twice; name it once.")
    with waiting("Looking …"):
        content = examine(name or model or "nano", world_model, steps)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
    else:
        show(content)
    if not content["works"]:
        raise typer.Exit(1)


def examine(model: str, world_model: str | None, steps: int | None) -> dict[str, Any]:
    """All that can be known of a call beforehand."""
    from huggingface_hub import get_token

    from theworld.evaluation.report import versions
    from theworld.inspection import repositories

    findings: list[Finding] = [*library_findings()]
    problem = repositories.token_problem()
    findings += [Finding(True, problem)] if problem else []
    spec: ModelSpec | None = None
    config: TheWorldConfig | None = None
    wanted: list[Need] = []
    number = 0 if steps is None else steps
    try:
        spec = resolve_model(
            model,
            world_model=world_model,
            describe_only=True,
            local_files_only=is_away(model),
        )
        spec.check_world_model(world_model)
        if not spec.is_fused:
            spec = replace(spec, local_files_only=is_away(model, spec.world_name))
        config = spec.config
        findings += [Finding(False, note) for note in spec.notes]
        wanted = needs(spec, number)
        number = plan_call(config, num_world_steps=steps).num_world_steps
        wanted = needs(spec, number)
    except ValueError as error:
        wanted = wanted or unreadable(model, spec, world_model)
        if not wanted:
            findings.append(Finding(True, " ".join(str(error).split())))
    found = [repositories.look(need) for need in wanted]
    found += [repositories.look(need) for need in prompt_needs(found, number)]
    findings += [Finding(True, one.problem) for one in found if one.problem]
    cache = repositories.cache_folder()
    free, missing = repositories.free_disk(cache), sum(one.missing for one in found)
    if missing > free:
        findings.append(
            Finding(
                True,
                f"{gigabytes(missing)} are to be downloaded and {gigabytes(free)} are free in {cache}: make room, or "
                "set HF_HOME to a place that has it.",
            )
        )
    text_encoder = sum(one.needed for one in found if one.need.role == "its text encoder")
    memory = predict(config, number, text_encoder) if config is not None else []
    for row in memory:
        if row["there_is"] is not None and row["predicted"] > row["there_is"]:
            findings.append(
                Finding(
                    True,
                    f"The call takes about {gib(row['predicted'])} GiB of {row['of']} and {gib(row['there_is'])} GiB "
                    "are free: try fewer --steps, a smaller model, or another machine.",
                )
            )
    if config is not None:
        findings += model_findings(model, config, found)
    return {
        "model": model,
        "num_world_steps": number,
        "works": not any(one.fails for one in findings),
        "findings": [{"fails": one.fails, "text": one.text} for one in findings],
        "repositories": [as_row(one) for one in found],
        "download_bytes": missing,
        "cache": str(cache),
        "disk_free_bytes": free,
        "memory": memory,
        "machine": {
            "platform": platform.platform(),
            "gpus": gpus(),
            "ram_free_bytes": free_ram(),
            "versions": versions(),
            "guardrail": guardrail_version(),
            "hub": constants.ENDPOINT,
            "offline": bool(constants.HF_HUB_OFFLINE),
            "token": get_token() is not None,
        },
    }


def is_away(*names: str | None) -> bool:
    """Whether a name may be on the Hub, and the Hub does not answer."""
    on_hub = [name for name in names if name and may_be_on_hub(resolve(name))]
    return bool(on_hub) and not constants.HF_HUB_OFFLINE and not hub_answers(constants.ENDPOINT)


def unreadable(model: str, spec: ModelSpec | None, world_model: str | None) -> list[Need]:
    """The repositories whose configuration cannot be read; their own problem says more than the error of reading."""
    from theworld.inspection import repositories

    if spec is None:
        try:
            candidates = [repositories.adapter_need(model)]
        except ValueError:  # no such shipped model
            return []
        config = repositories.look(repositories.config_need(model))
    else:
        name = spec.world_name
        candidates = [repositories.world_need(name, ())]
        config = repositories.look(repositories.config_need(name))
    return candidates if config.access != "ok" or not config.names else []


def needs(spec: ModelSpec, steps: int) -> list[Need]:
    """The repositories that answering would read, and the files of each."""
    from theworld.inspection import repositories

    config, parts = spec.config, world_parts_for(steps)
    if not spec.is_fused:
        wanted = [repositories.gemma_need(spec.name, revision=spec.revision)]
        adapter = None
    else:
        wanted = [
            repositories.adapter_need(spec.name),
            repositories.gemma_need(config.vlm_name_or_path, spec.name, config.vlm_revision),
        ]
        adapter = spec.name
    if config.enable_world:
        wanted.append(repositories.world_need(config.world_name_or_path, parts, adapter, config.world_revision))
    return wanted


def prompt_needs(found: list[Found], steps: int) -> list[Need]:
    """The text encoder, where a rollout's prompts are neither in the world's folder nor in the adapter's."""
    from theworld.inspection import repositories
    from theworld.world_models.base import PROMPT_EMBEDS

    worlds = [one for one in found if one.need.role == "world model" and one.access == "ok"]
    stored = [name for one in found for name in one.names if name.endswith(PROMPT_EMBEDS)]
    return [] if stored or not steps else [repositories.text_encoder_need(one.need) for one in worlds]


def predict(config: TheWorldConfig, steps: int, text_encoder: int = 0) -> list[dict[str, Any]]:
    """Memory of one answer to one picture: predicted, and what is free, for RAM and for the GPU where there is one.

    Args:
        text_encoder: bytes of the world model's text encoder, where the first rollout needs it. Where a GPU has no room
            for it, it runs on the CPU, so a GPU is never too small for it.
    """
    from theworld.inspection import memory
    from theworld.model import freezing

    counts = {row.part: row.total for row in freezing.count_parameters(on_meta(config))}
    cards = gpus()
    call: dict[str, Any] = {
        "num_world_steps": steps,
        "b": memory.DTYPES["bfloat16" if cards else "float32"],  # as TheWorld chooses
        # an untrained projector: imagined frames are shown instead
        "mode": "frames" if config.enable_world and not config.reads_world_tokens else "tokens",
    }
    answer = memory.inference(config, counts, **call)
    if cards:  # on their way to a GPU the weights pass through RAM
        ram = max(answer.holds["weights"], text_encoder)
    else:
        ram = memory.inference(config, counts, **call, text_encoder_bytes=text_encoder).peak
    rows = [{"of": "RAM", "predicted": ram + memory.LIBRARIES, "there_is": free_ram()}]
    if cards:
        # the first, which is the one that is used unless --device says otherwise
        rows.append({"of": "GPU", "predicted": answer.peak + memory.DRIVER, "there_is": cards[0]["free_bytes"]})
    return rows


def library_findings() -> list[Finding]:
    """Packages that are missing or too old for this one, by its own metadata."""
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("theworld") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return []
    findings = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(True, f"{requirement.name} is not installed: run `pip install '{requirement}'`."))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            text = (
                f"{requirement.name} {version} is here and {requirement} is needed: run `pip install '{requirement}'`."
            )
            findings.append(Finding(True, text))
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:  # its operators are registered with torch at import
        text = f"torchvision does not import beside this torch ({error}): install both from the same index."
        findings.append(Finding(True, " ".join(text.split())))
    return findings


def model_findings(model: str, config: TheWorldConfig, found: list[Found]) -> list[Finding]:
    """What is true of the model itself: an untrained projector, prompts that a rollout lacks, a missing guardrail."""
    from theworld.world_models.base import PROMPT_EMBEDS
    from theworld.world_models.guardrail import INSTALL

    findings = []
    if config.enable_world and not config.reads_world_tokens:
        text = (
            f"{model} has no trained projector, so its world tokens mean nothing yet, and it sees imagined frames "
            "instead: train one or name another model."
        )
        findings.append(Finding(False, text))
    world = next((one for one in found if one.need.role == "world model"), None)
    if world is None or world.access != "ok":
        return findings
    if any(one.need.role == "its text encoder" for one in found):
        text = (
            f"{world.need.name} comes without {PROMPT_EMBEDS}: the first rollout embeds its default prompt with its "
            "text encoder, which takes its size in memory for a moment; the result is kept."
        )
        findings.append(Finding(False, text))
    if guardrail_version() is None and world.where != "shipped":
        text = (
            "NVIDIA's guardrail is not installed; answering needs none, and showing imagined frames of NVIDIA's "
            f"weights (`theworld imagine`) or a world prompt of your own does: install it with {INSTALL}."
        )
        findings.append(Finding(False, text))
    return findings


def guardrail_version() -> str | None:
    """Looked for and not imported: importing it switches autograd off."""
    if importlib.util.find_spec(GUARDRAIL) is None:
        return None
    try:
        return importlib.metadata.version(GUARDRAIL)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def gpus() -> list[dict[str, Any]]:
    """Name, total and free memory of each GPU that torch can use."""
    import torch

    cards = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        cards.append({"name": torch.cuda.get_device_name(index), "total_bytes": total, "free_bytes": free})
    return cards


def free_ram() -> int | None:
    """Bytes of RAM that a new program may have, within this container's limit; None where the system does not say."""
    free: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(1024 * int(line.split()[1]))
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    except OSError:  # not Linux, or no such group
        pass
    if not free and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free)) if free else None


def as_row(found: Found) -> dict[str, Any]:
    return {
        "role": found.need.role,
        "name": found.need.name,
        "revision": found.need.revision,
        "where": found.where,
        "access": found.access,
        "files": len(found.names),
        "needed_bytes": found.needed,
        "here_bytes": found.here,
        "download_bytes": found.missing,
    }


def gigabytes(size: int) -> str:
    """Bytes as disks and downloads are counted, in powers of ten."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def show(content: dict[str, Any]) -> None:
    """The same as text, on stdout: the machine, what the call needs, and what stands in its way."""
    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    machine = content["machine"]
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
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
        console.print()
        console.print(table)
    if content["memory"]:
        table = figures("memory", "predicted", "free")
        for row in content["memory"]:
            free = "?" if row["there_is"] is None else f"{gib(row['there_is'])} GiB"
            table.add_row(row["of"], f"{gib(row['predicted'])} GiB", free)
        console.print()
        console.print(table)
    console.print()
    for finding in sorted(content["findings"], key=lambda one: one["fails"]):
        word = "[bold red]Problem:[/]" if finding["fails"] else "Note:"
        console.print(f"{word} {escape(finding['text'])}", soft_wrap=True)
    call = f"Asking {content['model']} with {content['num_world_steps']} world steps"
    verdict = "would work here." if content["works"] else "would fail here."
    console.print(escape(f"{call} {verdict}"), style="bold", soft_wrap=True)
