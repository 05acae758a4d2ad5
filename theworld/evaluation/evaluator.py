"""`evaluate`: a model on a benchmark in several arms, from names to results."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from theworld.datasets.columns import Fields, read_fields
from theworld.evaluation.answering import ModelAnswerer
from theworld.evaluation.arms import Arm, Imagination, choose
from theworld.evaluation.disagreements import INDEX, disagreeing, save_images
from theworld.evaluation.results import MEAN_OF_FAMILIES, Results, reference_of, summarise
from theworld.evaluation.run_folder import IMAGES, RESULTS, RunFolder
from theworld.evaluation.runner import Answer, run_arms, with_steps
from theworld.evaluation.tasks import Item, Request, find_benchmark, load_benchmark
from theworld.evaluation.training_format import note_on_format
from theworld.inference.pipeline import TheWorld
from theworld.inspection.provenance import labels, versions
from theworld.messages import TaskProgress
from theworld.model.call_plan import check_seed
from theworld.model.devices import resolve_device_and_dtype
from theworld.model.spec import ModelSpec, resolve_model
from theworld.storage.files import write_text
from theworld.storage.hub import ADAPTER_FILE, CONFIG_FILE, resolve

Model = str | os.PathLike[str] | ModelSpec | TheWorld


def evaluate(
    model: Model,
    benchmark: str,
    *,
    arms: Sequence[str] | str = ("fused", "fused-0"),
    num_world_steps: int | Sequence[int] | None = None,
    limit: int | None = None,
    split: str | None = None,
    tasks: Sequence[str] = (),
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    fields: str | Fields | None = None,
    config: str | None = None,
    controls: Mapping[str, str] | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    world_model: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: str | None = None,
    progress: TaskProgress | None = None,
    load: Callable[[ModelSpec], TheWorld] | None = None,
    command: str | None = None,
) -> Results:
    """Asks a model the questions of a benchmark in several arms, and compares the arms question by question.

    Answers are generated greedily; unparsed answers count as wrong and are reported. Rollouts are computed once for all
    arms of the same weights. Wrong arguments are reported before a model is loaded.

    Args:
        model: `nano`, a folder, a Hub id, what `resolve_model` returned for one of them, or a loaded model.
        benchmark: a name in `BENCHMARKS`: `physics`, `blink`, `mcq`, `jsonl`, ….
        arms: names in `ARMS`, in order, also as one string with commas; `all` selects every arm.
        num_world_steps: world steps to imagine; with several numbers, arms that look ahead run with each. None means
            the model's own number.
        limit: maximum number of questions. None means all, and 300 for physics.
        split: split of the benchmark; None means its default.
        tasks: sub-tasks or families; empty means all.
        seed: of the rollouts' noise, and of the scenes of physics.
        output: folder of the run. Every answer is saved there as soon as it is generated, the same call resumes an
            interrupted run, and `compare` reads it.
        data: file, folder or Hub id with the questions; None means the benchmark's own data.
        fields: column names for mcq, as `NAME=COLUMN,…`, a JSON file, or `Fields`.
        config: configuration of a Hub dataset, for mcq.
        controls: weights of trained controls, name -> model; None looks for them next to the model.
        batch_size: questions per batch.
        max_new_tokens: maximum length of an answer; None means 64, and 8 for physics.
        world_model: world model that a Gemma 3 is fused with.
        device, dtype, quantization: as in `TheWorld`.
        progress: called with (description, done, total), over all arms.
        load: loads the weights of a resolved model; None calls `TheWorld` with the three above.
        command: command line to record in the results.

    Raises:
        ValueError: if an argument is wrong, the model or the data cannot be read, or an arm cannot run on them.
    """
    started = time.perf_counter()
    chosen = choose([name.strip() for name in arms.split(",") if name.strip()] if isinstance(arms, str) else list(arms))
    if split is not None and benchmark != "blink" and data is not None and Path(data).is_file():
        raise ValueError(f"split is {split!r} but {data} is one file, which has no splits; leave the split out.")
    wanted = {arm.weights for arm in chosen.values() if arm.weights}
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more.")
    check_seed(seed)
    needs_world = any(arm.needs_world for arm in chosen.values() if arm.weights is None)
    subject = Subject(
        model,
        world_model,
        needs_world,
        load or (lambda spec: TheWorld(spec, device=device, dtype=dtype, quantization=quantization)),
    )
    subject.controls = find_controls(subject.name, wanted, controls or {})
    steps = subject.world_steps(num_world_steps)
    readers = [name for name, arm in chosen.items() if arm.needs_trained_projector and arm.weights is None]
    if readers:
        subject.check_trained(f"leave out the arms that read them ({', '.join(readers)})")
    request = Request(
        data=None if data is None else os.fspath(data),
        split=split,
        tasks=tuple(tasks),
        limit=limit,
        seed=seed,
        fields=read_fields(fields) if isinstance(fields, str) else fields,
        config=config,
        progress=None if progress is None else lambda done, total: progress("Generating scenes", done, total),
    )
    items = load_benchmark(benchmark, request)  # before any model, while the memory is free
    if steps[-1] and any(arm.needs_world and arm.looks_ahead and arm.weights is None for arm in chosen.values()):
        subject.check_prompts(items)
    kind = find_benchmark(benchmark)
    settings = {
        "benchmark": benchmark,
        "split": split or kind.split,
        "data": request.data,
        "tasks": list(request.tasks),
        "limit": limit or len(items),
        "seed": seed,
        "model": subject.name,
        "weights": weights_digest(subject.path),
        "world_model": world_model,
        "steps": steps[0] if len(steps) == 1 else steps,
        "max_new_tokens": max_new_tokens or kind.max_new_tokens,
        "dtype": subject.dtype or str(resolve_device_and_dtype(device, None, dtype)[1]).removeprefix("torch."),
    }
    if quantization is not None:  # saved runs without it have no such key, and are resumed
        settings["quantization"] = quantization
    pace = Pace(subject.load, progress)
    answers, notes = answer_in_arms(items, chosen, pace.load, settings, steps, output, batch_size, pace.report)
    notes += [note for number in steps if (note := subject.note_on_steps(number))]
    notes += [note for note in (subject.note_on_format(benchmark, items), note_on_length(answers, settings)) if note]
    summary = summarise(items, {name: [rows] for name, rows in answers.items()})
    models = {"model": subject.path, **subject.controls}
    content = {
        **summary,
        **settings,
        "questions": len(items),
        "seconds_per_world_step": subject.seconds_per_world_step,
        "headline": MEAN_OF_FAMILIES if kind.equal_families else "accuracy",
        "controls": subject.controls,
        "command": command,
        "versions": versions(),
        "device": device_name(device),
        "dtype": subject.dtype or settings["dtype"],
        "seconds": round(time.perf_counter() - started, 1),
        "questions_per_second": pace.questions_per_second(len(answers)),
        "labels": {name: labels(resolve(path)) for name, path in models.items() if path is not None},
        "warnings": [*summary["warnings"], *notes],
        "note": subject.note,
    }
    results = Results({name: value for name, value in content.items() if value is not None}, items, answers)
    if output is not None:
        write_text(Path(output) / RESULTS, results.to_json())
        if results.hidden:
            results.write_submissions(output)
    return results


def note_on_length(answers: Mapping[str, Sequence[Answer]], settings: Mapping[str, Any]) -> str | None:
    """What to say about labels that are longer than answers can be."""
    given, limit = next(iter(answers.values())), int(settings["max_new_tokens"])
    longer = [answer for answer in given if answer.label_tokens - 1 > limit]  # the end of the turn need not be written
    if not longer:
        return None
    longest = max(answer.label_tokens for answer in longer)
    return (
        f"{len(longer)} of {len(given)} labels have more than {limit} tokens, so no answer can equal them; set "
        f"max_new_tokens to {longest} or more."
    )


class Subject:
    """The model under test and its trained controls.

    Attributes:
        name: of the model.
        path: its folder or Hub id; None for a loaded model, whose weights may have changed.
        note: the sentence that belongs to every answer of the shipped model.
        controls: name -> model of each trained control.
        dtype: type of the weights of a loaded model.
        note_on_steps: what to say about a number of world steps; see `ModelSpec.note_on_steps`.
    """

    def __init__(
        self, model: Model, world_model: str | None, needs_world: bool, load_spec: Callable[[ModelSpec], TheWorld]
    ) -> None:
        if not isinstance(model, ModelSpec | TheWorld):
            # a Gemma 3 is fused with a world model only if an arm needs one
            model = resolve_model(model, world_model=world_model, enable_world=needs_world)
            model.check_world_model(world_model)
        self._model, self._load_spec = model, load_spec
        self.controls: dict[str, str] = {}
        self.dtype: str | None = None
        self.path: str | None = None
        self.note: str | None = None
        if isinstance(model, TheWorld):
            self.name = str(model.config.name_or_path or model.config.vlm_name_or_path)
            self.dtype = dtype_name(model)
            self.note_on_steps: Callable[[int], str | None] = model.runner.note_on_steps
        else:
            self.name, self.path, self.note = model.name, model.path, model.shipped_note
            self.note_on_steps = model.note_on_steps

    def note_on_format(self, benchmark: str, items: Sequence[Item]) -> str | None:
        """What to say if the questions have another form than those that the model was trained on."""
        return note_on_format(self.path, benchmark, any(item.form == "choice" for item in items))

    def check_trained(self, alternative: str) -> None:
        if isinstance(self._model, ModelSpec):  # `check_arms` checks a loaded model
            self._model.check_trained(alternative)

    def check_prompts(self, items: Sequence[Item]) -> None:
        """Raises a ValueError that names the first item with a world prompt, if the world model takes none."""
        item = next((item for item in items if item.world_prompt), None)
        if item is not None:
            with item.named():
                if isinstance(self._model, ModelSpec):
                    self._model.check_prompt(item.world_prompt)
                else:
                    self._model.runner.world.check_takes_prompts()

    @property
    def seconds_per_world_step(self) -> float | None:
        """How long a world step is; None without a world model."""
        config = self._model.config
        return config.world_config.seconds_per_world_step if config.enable_world else None

    def world_steps(self, requested: int | Sequence[int] | None) -> list[int]:
        """The requested numbers of world steps in order, or the model's own number.

        Raises:
            ValueError: if the model cannot imagine that many.
        """
        model = self._model
        if requested is None:
            has_own = isinstance(model, TheWorld) or model.is_fused
            requested = model.config.num_world_steps if has_own else 0
        steps = sorted({requested} if isinstance(requested, int) else set(requested))
        if not steps or steps[0] < 0:
            raise ValueError(f"num_world_steps is {requested}; it must be 0 or more.")
        if isinstance(model, TheWorld):
            model.config.check_world_steps(steps[-1])
        else:
            model.check_steps(steps[-1])
        return steps

    def load(self, weights: str | None) -> ModelAnswerer:
        """The model for the name of a trained control, or for None the model under test."""
        model = self._model if weights is None else resolve_model(self.controls[weights])
        if isinstance(model, ModelSpec):
            model = self._load_spec(model)
        self.dtype = dtype_name(model)
        return ModelAnswerer(model)


class Pace:
    """How many questions are answered per second, from the first loaded model to the last answer.

    Args:
        load_model: what `load` calls.
        progress: what `report` calls, if it is not None.
    """

    def __init__(self, load_model: Callable[[str | None], ModelAnswerer], progress: TaskProgress | None = None) -> None:
        self._load_model, self._progress = load_model, progress
        self.started: float | None = None
        self.seconds, self.answers = 0.0, 0

    def load(self, weights: str | None) -> ModelAnswerer:
        model = self._load_model(weights)
        if self.started is None:
            self.started = time.perf_counter()
        return model

    def report(self, what: str, done: int, total: int) -> None:
        assert self.started is not None
        self.seconds, self.answers = time.perf_counter() - self.started, done
        if self._progress is not None:
            self._progress(what, done, total)

    def questions_per_second(self, arms: int) -> float | None:
        """Questions that all arms have answered, per second; None if no answer was missing."""
        return float(f"{self.answers / arms / self.seconds:.3g}") if self.answers else None


def dtype_name(model: TheWorld) -> str:
    return str(model.model.get_input_embeddings().weight.dtype).removeprefix("torch.")


def answer_in_arms(
    items: Sequence[Item],
    arms: Mapping[str, Arm],
    load: Callable[[str | None], ModelAnswerer],
    settings: Mapping[str, Any],
    steps: Sequence[int],
    output: str | os.PathLike[str] | None,
    batch_size: int,
    progress: TaskProgress,
) -> tuple[dict[str, list[Answer]], list[str]]:
    """The answers of every arm, with a folder also saved there, and notes about what could not be saved."""
    notes: list[str] = []
    seed = int(settings["seed"])
    images = None if output is None else Path(output) / IMAGES

    def save(imagination: Imagination | None, answers: dict[str, list[Answer]]) -> None:
        assert images is not None
        rows = disagreeing(items, {name: [own] for name, own in answers.items()}, reference_of(list(answers)))
        reason = save_images(images, items, rows, imagination, steps[-1], seed)
        if reason is not None:
            notes.append(f"No strips of imagined frames: {reason}")

    folder = None if output is None else RunFolder(output, settings, items)
    with folder or nullcontext():
        # a complete run needs no model in memory
        complete = folder is not None and all(len(folder.known(name)) == len(items) for name in with_steps(arms, steps))
        has_images = images is not None and (images / INDEX).is_file()
        answers = run_arms(
            items,
            arms,
            load,
            num_world_steps=steps,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=int(settings["max_new_tokens"]),
            progress=progress,
            store=folder,
            finish=None if images is None or (complete and has_images) else save,
        )
    return answers, notes


def weights_digest(path: str | None) -> str | None:
    """A hash of a local model's own weights, so that a run does not resume with others; None for a Hub id."""
    files = [Path(path) / name for name in (CONFIG_FILE, ADAPTER_FILE)] if path is not None else []
    files = [file for file in files if file.is_file()]
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def find_controls(model: str, wanted: Collection[str], given: Mapping[str, str]) -> dict[str, str]:
    """The model of each trained control: the given one, or the one next to the model (`nano/NAME`, a sibling folder).

    Raises:
        ValueError: if a control cannot be read, or the model is on the Hub and its control is not given.
    """
    found = {}
    for name in sorted(wanted):
        if name in given:
            found[name] = given[name]
        elif model == "nano":
            found[name] = f"nano/{name}"
        elif Path(model).is_dir():
            found[name] = str(Path(model).resolve().parent / name)
            if not Path(found[name]).is_dir():
                raise ValueError(
                    f"The arm {name!r} needs its trained weights, and there is no folder {name!r} next to {model}: "
                    f"name them in the controls, as {name}=FOLDER."
                )
        else:
            raise ValueError(
                f"The arm {name!r} needs its trained weights; name them in the controls, as {name}=FOLDER."
            )
        resolve_model(found[name])  # a missing one is reported now, and not after half of the arms
    return found


def device_name(device: str | torch.device | None) -> str:
    """The name of the GPU that computes the answers, or cpu."""
    if str(device) == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name(device)
