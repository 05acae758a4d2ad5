"""Whether a call can run on this machine, before any weights are downloaded: `preflight`."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from huggingface_hub import constants, get_token
from packaging.requirements import Requirement

from theworld.inspection import machine, memory, repositories
from theworld.inspection.parameters import count_parts
from theworld.inspection.provenance import versions
from theworld.inspection.repositories import Repository, RepositoryCheck
from theworld.model.call_plan import CallPlan, plan_call
from theworld.model.configuration import TheWorldConfig
from theworld.model.devices import resolve_device_and_dtype
from theworld.model.processing import NO_CHAT_TEMPLATE
from theworld.model.spec import ModelSpec, resolve_model
from theworld.storage.hub import hub_answers, may_be_on_hub, resolve
from theworld.world_models.base import PROMPT_EMBEDS
from theworld.world_models.guardrail import INSTALL


@dataclass(frozen=True)
class Finding:
    """One sentence of a preflight check; `fails` if the call cannot run because of it."""

    fails: bool
    text: str


def preflight(
    model: str = "nano",
    world_model: str | None = None,
    num_world_steps: int | None = None,
    *,
    batch_size: int = 1,
    extra: str = "",
) -> dict[str, Any]:
    """Checks whether asking a model a question would work here; downloads no weights.

    Args:
        model: `nano`, a folder or a Hub id.
        world_model: what a Gemma 3 is fused with; None means the published Cosmos-Predict2 of 2B.
        num_world_steps: None means what `plan_call` chooses.
        batch_size: questions that are answered at once.
        extra: an extra of this package whose libraries are needed too.

    Returns:
        A dict that can be written as JSON: `works`, `findings` (sentences, each with `fails`), `repositories` (where
        each is, its access and sizes), `download_bytes`, `disk_free_bytes`, `memory` (predicted and free) and
        `machine`.
    """
    findings = library_findings(extra)
    problem = repositories.token_problem()
    findings += [Finding(True, problem)] if problem else []
    spec: ModelSpec | None = None
    plan: CallPlan | None = None
    wanted: list[Repository] = []
    try:
        spec = resolve_model(model, world_model=world_model, describe_only=True, local_files_only=hub_is_away(model))
        spec.check_world_model(world_model)
        if not spec.is_fused:
            spec = replace(spec, local_files_only=hub_is_away(model, spec.world_name))
        findings += [Finding(False, note) for note in spec.notes]
        wanted = repositories_of(spec, ("encoder",))
        plan = plan_call(spec.config, num_world_steps=num_world_steps)
        wanted = repositories_of(spec, plan.parts)
    except ValueError as error:
        wanted = wanted or unreadable(model, spec)
        if not wanted or (plan is None and spec is not None and "config" in vars(spec)):
            findings.append(Finding(True, " ".join(str(error).split())))
    found = [repositories.check_repository(repository) for repository in wanted]
    found += [
        repositories.check_repository(repository)
        for repository in text_encoder_repositories(found, plan.num_world_steps if plan else 0)
    ]
    findings += [Finding(True, one.problem) for one in found if one.problem]
    cache, missing = repositories.cache_folder(), sum(one.missing for one in found)
    free = repositories.free_disk(cache)
    if missing > free:
        text = (
            f"{gigabytes(missing)} must be downloaded and {gigabytes(free)} are free in {cache}: free some space, or "
            "set HF_HOME to another folder."
        )
        findings.append(Finding(True, text))
    rows: list[dict[str, Any]] = []
    if spec is not None and plan is not None:
        text_encoder = sum(one.needed for one in checks_of("its text encoder", found))
        rows = predict_memory(spec.config, plan, text_encoder, batch_size)
        findings += memory_findings(rows) + model_findings(spec, plan, found)
    return {
        "model": model,
        "num_world_steps": plan.num_world_steps if plan else num_world_steps or 0,
        "mode": plan.mode if plan else None,
        "works": not any(one.fails for one in findings),
        "findings": [asdict(one) for one in findings],
        "repositories": [as_row(one) for one in found],
        "download_bytes": missing,
        "cache": str(cache),
        "disk_free_bytes": free,
        "memory": rows,
        "machine": {
            "platform": platform.platform(),
            "gpus": machine.gpus(),
            "ram_free_bytes": machine.free_ram(),
            "versions": versions(),
            "guardrail": machine.guardrail_version(),
            "hub": constants.ENDPOINT,
            "offline": bool(constants.HF_HUB_OFFLINE),
            "token": get_token() is not None,
        },
    }


def hub_is_away(*names: str) -> bool:
    """Whether one of the names may be on the Hub, and the Hub does not answer."""
    on_hub = any(may_be_on_hub(resolve(name)) for name in names)
    return on_hub and not constants.HF_HUB_OFFLINE and not hub_answers(constants.ENDPOINT)


# ------------------------------------------------------------------------------------------------------- repositories


def repositories_of(spec: ModelSpec, parts: Sequence[str]) -> list[Repository]:
    """The repositories that a call with these parts of the world model reads, and the files of each."""
    config, adapter = spec.config, spec.name if spec.is_fused else None
    wanted = [repositories.adapter_repository(adapter)] if adapter else []
    gemma = config.vlm_name_or_path if adapter else spec.name
    wanted.append(repositories.gemma_repository(gemma, adapter, config.vlm_revision))
    if config.enable_world:
        world = config.world_name_or_path if adapter else spec.world_name
        wanted.append(repositories.world_repository(world, parts, adapter, config.world_revision))
    return wanted


def unreadable(model: str, spec: ModelSpec | None) -> list[Repository]:
    """The repository whose configuration cannot be read; its own problem says more than the error of reading it."""
    name = model if spec is None else spec.world_name
    try:
        config = repositories.check_repository(repositories.config_repository(name))
    except ValueError:  # not a shipped model
        return []
    if config.access == "ok" and config.names:
        return []
    return [repositories.adapter_repository(name) if spec is None else repositories.world_repository(name, ())]


def text_encoder_repositories(found: Sequence[RepositoryCheck], steps: int) -> list[Repository]:
    """The text encoder, if the prompts of a rollout are neither in the world model's folder nor in the adapter's."""
    worlds = [one for one in checks_of("world model", found) if one.access == "ok"]
    stored = [name for one in found for name in one.names if name.endswith(PROMPT_EMBEDS)]
    return [] if stored or not steps else [repositories.text_encoder_repository(one.repository) for one in worlds]


def checks_of(role: str, found: Iterable[RepositoryCheck]) -> Iterator[RepositoryCheck]:
    return (one for one in found if one.repository.role == role)


def as_row(found: RepositoryCheck) -> dict[str, Any]:
    return {
        "role": found.repository.role,
        "name": found.repository.name,
        "revision": found.repository.revision,
        "where": found.where,
        "access": found.access,
        "files": len(found.names),
        "needed_bytes": found.needed,
        "here_bytes": found.here,
        "download_bytes": found.missing,
    }


# ------------------------------------------------------------------------------------------------------------- memory


def predict_memory(
    config: TheWorldConfig, plan: CallPlan, text_encoder: int = 0, batch: int = 1
) -> list[dict[str, Any]]:
    """Memory of `batch` answers about one image each, predicted and free: of RAM, and of the GPU if there is one.

    Args:
        text_encoder: bytes of the world model's text encoder, if the first rollout needs it. It runs on the CPU if it
            does not fit on the GPU, so it never makes a GPU too small.

    Returns:
        One row per kind of memory: `of`, `predicted` and `there_is` (free) in bytes, and `contains`, the terms of which
        the prediction is the sum. `describe_model` predicts what torch allocates, and none of the others.
    """
    counts = count_parts(config)
    cards = machine.gpus()
    _, dtype = resolve_device_and_dtype(None if cards else "cpu", None, "bfloat16" if cards else None)
    call: dict[str, Any] = {
        "num_world_steps": plan.num_world_steps,
        "batch": batch,
        "b": dtype.itemsize,
        "mode": "frames" if plan.mode == "frames" else "tokens",
    }
    answer = memory.inference(config, counts, **call)
    name = f"torch ({str(dtype).removeprefix('torch.')})"
    process = {"libraries": memory.LIBRARIES, "tokenizer": memory.TOKENIZER_ROW * config.get_text_config().vocab_size}
    if not cards:
        peak = memory.inference(config, counts, **call, text_encoder_bytes=text_encoder).peak
        return [memory_row("RAM", {name: peak, **process}, machine.free_ram())]
    passing = max(answer.persistent["weights"], text_encoder)
    return [
        memory_row("RAM", {"weights on their way to the GPU": passing, **process}, machine.free_ram()),
        # the first GPU is used unless the caller names another
        memory_row("GPU", {name: answer.peak, "driver": memory.DRIVER}, cards[0]["free_bytes"]),
    ]


def memory_row(kind: str, contains: dict[str, int], free: int | None) -> dict[str, Any]:
    return {"of": kind, "predicted": sum(contains.values()), "there_is": free, "contains": contains}


SMALL_CARDS = "offloading the world model, 4-bit weights (docs/small_cards.md), "


def memory_findings(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """A finding for each kind of memory that is too small."""
    return [
        Finding(
            True,
            f"The call takes about {gib(row['predicted'])} GiB of {row['of']} and {gib(row['there_is'])} GiB are free: "
            f"try {SMALL_CARDS if row['of'] == 'GPU' else ''}fewer world steps, a smaller model, or another machine.",
        )
        for row in rows
        if row["there_is"] is not None and row["predicted"] > row["there_is"]
    ]


# ----------------------------------------------------------------------------------------------- libraries and models


def library_findings(extra: str = "") -> list[Finding]:
    """Packages that are missing or too old, by this package's own metadata, with those of one of its extras."""
    try:
        wanted = importlib.metadata.requires("theworld") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return []
    findings = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        install = f"run `pip install '{requirement}'`."
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(True, f"{requirement.name} is not installed: {install}"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is installed and {requirement} is required: {install}"
            findings.append(Finding(True, text))
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:  # its operators are registered with torch at import
        text = f"torchvision cannot be imported with this torch ({error}): install both from the same index."
        findings.append(Finding(True, " ".join(text.split())))
    return findings


def model_findings(spec: ModelSpec, plan: CallPlan, found: Sequence[RepositoryCheck]) -> list[Finding]:
    """Properties of the model: a missing chat template, an untrained projector, missing prompts, the guardrail."""
    findings = []
    for gemma in checks_of("vision-language model", found):
        if gemma.access == "ok" and not repositories.has_chat_template(gemma):
            findings.append(Finding(True, NO_CHAT_TEMPLATE.format(gemma.repository.path)))
    if plan.reason and plan.mode == "frames":
        findings.append(Finding(False, f"{plan.reason} An answer therefore sees imagined frames."))
    if note := spec.note_on_steps(plan.num_world_steps):
        findings.append(Finding(False, note))
    world = next(checks_of("world model", found), None)
    if world is None or world.access != "ok":
        return findings
    if any(checks_of("its text encoder", found)):
        text = (
            f"{world.repository.name} has no {PROMPT_EMBEDS}: the first rollout loads its text encoder once to embed "
            "the default prompt, and keeps the result."
        )
        findings.append(Finding(False, text))
    if machine.guardrail_version() is None and world.where != "shipped":
        text = (
            "NVIDIA's guardrail is not installed. Answers do not need it; imagined frames of NVIDIA's weights that are "
            f"shown to people (`theworld imagine`) and world prompts of your own do: install it with {INSTALL}."
        )
        findings.append(Finding(False, text))
    return findings


def gib(size: int) -> str:
    """Bytes as GiB, with two or three significant digits."""
    digits = 1 if size >= 10 * memory.GIB else 2
    return f"{size / memory.GIB:.{digits}f}" if size >= memory.GIB / 100 else "< 0.01"


def gigabytes(size: int) -> str:
    """Bytes as disks and downloads are measured, in powers of ten."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
