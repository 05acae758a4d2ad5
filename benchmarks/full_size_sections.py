"""The sections of `benchmarks/full_size.py` that measure: weights, answers, training, descriptions and commands."""

from __future__ import annotations

import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.full_size_run import (
    ANSWER,
    CALLS,
    GEMMA_COMPONENTS,
    NEW_TOKENS,
    PUBLISHED,
    PUBLISHED_SUMS,
    QUESTION,
    REPOSITORY,
    TRAINING,
    VAE_COMPONENTS,
    Run,
    against,
    fused,
    milliseconds,
    peak_of,
    say,
    seconds_of,
    text_tokens,
)
from theworld.inspection import memory

if TYPE_CHECKING:
    from theworld import TheWorld


def make(run: Run) -> dict[str, Any]:
    """Writes the two repositories, and an adapter with a random projector that counts as trained."""
    from benchmarks.random_weights import SIZES, make_cosmos, make_gemma

    size = SIZES[run.size]
    content: dict[str, Any] = {}
    started = time.perf_counter()
    make_gemma(run.gemma, size, run.device)
    make_cosmos(run.cosmos, size, run.device)
    content["write_seconds"] = round(time.perf_counter() - started, 1)
    content["bytes"] = {
        name: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for name, folder in (("gemma", run.gemma), ("cosmos", run.cosmos))
    }
    # the same components in a folder whose weights do not need NVIDIA's guardrail
    own = run.folder / "cosmos-own"
    own.mkdir()
    for entry in run.cosmos.iterdir():
        (own / entry.name).symlink_to(entry.absolute())
    (own / "rollout_config.json").write_text(json.dumps({"weights_from": "own"}))
    run.keep("make", content)
    say(f"written in {content['write_seconds']} s")
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    loads: list[TheWorld] = []
    content["fuse_seconds"] = seconds_of(lambda: loads.append(fused(run)), run.device)[0]
    loads[0].config.reads_world_tokens = True  # the cost of reading them does not depend on the weights
    loads[0].save_pretrained(run.adapter)
    content["adapter_bytes"] = sum(path.stat().st_size for path in run.adapter.iterdir())
    trainable, total, percent = loads[0].get_trainable_parameters()
    content["trainable"] = {"parameters": trainable, "in_memory": total, "percent": percent}
    return content


def describe(run: Run) -> dict[str, Any]:
    """`theworld info` and `theworld doctor` on the two folders."""
    content: dict[str, Any] = {}
    result = theworld(run, "info", run.gemma, "--world-model", run.cosmos, "--steps", run.steps, "--batch", 4, "--json")
    content["info"] = parsed = json.loads(result["stdout"])
    counted = {row["component"]: row["parameters"] for row in parsed["components"]}
    content["components"] = counted
    if run.size == "full":
        sums = {
            "Gemma 3 4B": sum(counted[name] for name in GEMMA_COMPONENTS),
            "VAE": sum(counted[name] for name in VAE_COMPONENTS),
        }
        differ = {name: counted[name] for name, number in PUBLISHED.items() if counted[name] != number}
        differ |= {name: sums[name] for name, number in PUBLISHED_SUMS.items() if sums[name] != number}
        content["published"] = {**PUBLISHED, **PUBLISHED_SUMS}
        content["differ_from_published"] = differ
        say("parameters:", f"{differ} differ from the published counts" if differ else "the published counts")
    run.keep("describe", content)
    doctor = ("doctor", "--model", run.gemma, "--world-model", run.cosmos, "--steps", run.steps)
    result = theworld(run, *doctor)
    content["doctor_text"] = result["stdout"]
    content["doctor_works"] = result["returncode"] == 0
    return content


def answers(run: Run) -> dict[str, Any]:
    """Loads once and answers in every mode: times of the stages, and memory against the prediction."""
    from PIL import Image

    from theworld import TheWorld
    from theworld.inspection.parameters import build_on_meta
    from theworld.model import freezing

    content: dict[str, Any] = {"calls": {}, "stages": {}}
    loads: list[TheWorld] = []
    seconds = seconds_of(
        lambda: loads.append(TheWorld.from_pretrained(run.adapter, num_world_steps=0, device=run.device)), run.device
    )
    content["load_seconds"] = round(seconds[0], 2)
    model = loads[0]
    counts = {row.part: row.total for row in freezing.count_parameters(build_on_meta(model.config))}
    photo = Image.open(run.photo).convert("RGB")
    for name, (imagines, mode, num_images) in CALLS.items():
        if not run.fits(30):
            content.setdefault("left_out", []).append(name)
            continue
        images, questions = ([photo] * num_images, [QUESTION] * num_images) if num_images > 1 else (photo, QUESTION)
        steps = run.steps if imagines else 0
        asked = {"max_new_tokens": NEW_TOKENS, "num_world_steps": steps, "mode": mode}
        said: list[Any] = []
        # the first call loads parts of the world model
        first = seconds_of(lambda: said.append(model.generate(images, questions, **asked)), run.device)[0]  # noqa: B023
        with peak_of(run.device, model) as peak:
            repeats = run.repeats if num_images == 1 else 1
            times = seconds_of(lambda: model.generate(images, questions, **asked), run.device, repeats)  # noqa: B023
        prediction = memory.inference(
            model.config,
            counts,
            num_world_steps=steps,
            batch=num_images,
            b=run.dtype.itemsize,
            new_tokens=NEW_TOKENS,
            text_tokens=text_tokens(model, images, questions, steps),
            mode=mode,
            world_parts=model.model.world.parts,
        )
        written = said[0] if isinstance(said[0], list) else [said[0]]
        content["calls"][name] = {
            "num_world_steps": steps,
            "answer": written[0],
            "alike": len(set(written)) == 1,  # the same image and question several times
            "first_seconds": round(first, 3),
            "median_seconds": round(statistics.median(times), 3),
            "all_seconds": [round(value, 3) for value in times],
            "peak": peak,
            **against(prediction, peak["allocated"]),
        }
        run.keep("answers", content)
        row = content["calls"][name]
        say(f"{name}: {row['median_seconds']} s, predicted/measured memory {row['predicted_over_measured']}")
    with peak_of(run.device, model) as peak:
        frames = model.decode(model.imagine(photo, run.steps), check_guardrail=False)
    prediction = memory.imagining(model.config, counts, num_world_steps=run.steps, b=run.dtype.itemsize)
    content["imagine and decode"] = {
        "frames": list(frames.shape),
        "peak": peak,
        **against(prediction, peak["allocated"]),
    }
    run.keep("answers", content)
    stages(run, model, photo, content["stages"])
    return content


@torch.no_grad()
def stages(run: Run, model: TheWorld, photo: Any, found: dict[str, Any]) -> None:
    """Milliseconds of each stage on its own, at N = 0 and N = run.steps."""
    inner = model.model
    inputs = model.prepare(photo, QUESTION, num_world_steps=run.steps)
    frames, seeds = inputs["world_frames"].to(run.device), inputs["world_seeds"].tolist()
    latents = inner.world_latents_of(frames, run.steps, seeds)
    config = model.config.world_config
    found["VAE encode, 1 frame"] = milliseconds(lambda: inner.world.encode(frames), run)
    found[f"rollout, N={run.steps}"] = {
        **milliseconds(lambda: inner.world.rollout(latents[:, :, :1], run.steps, seeds=seeds), run),
        "num_inference_steps": config.num_inference_steps,
        "transformer_passes": config.num_inference_steps - 1,
        "guidance_scale": config.guidance_scale,
    }
    found[f"VAE decode, {1 + 4 * run.steps} frames"] = milliseconds(lambda: inner.world.decode(latents), run)
    pixels = inputs["pixel_values"].to(inner.dtype)
    found["SigLIP, 1 picture"] = milliseconds(lambda: inner.vlm.model.get_image_features(pixels), run)
    found["projector"] = milliseconds(lambda: inner.projector(latents), run)
    for steps in (0, run.steps):
        given = model.prepare(photo, QUESTION, num_world_steps=steps)
        for name in ("world_frames", "world_seeds", "num_world_steps"):
            given.pop(name)
        given["world_latents"] = latents[:, :, : 1 + steps]
        length = int(given["input_ids"].shape[1])
        # SigLIP is measured separately
        blind = {name: value for name, value in given.items() if name != "pixel_values"}
        found[f"prefill, {length:,} tokens"] = milliseconds(
            lambda: inner(**blind, use_cache=True, logits_to_keep=1), run  # noqa: B023
        )
        long = 1 + (NEW_TOKENS if run.size == "full" else 4)

        def write(tokens: int, given: Mapping[str, Any] = given) -> float:
            call = lambda: inner.generate(  # noqa: E731
                **given, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
            )
            return seconds_of(call, run.device)[0]

        each = (write(long) - write(1)) / (long - 1)
        found[f"decode, behind {length:,} tokens"] = {"median_ms": round(1000 * each, 2), "tokens_per_second": 1 / each}


def commands(run: Run) -> dict[str, Any]:
    """The commands of the documentation, each in a new process: seconds from start to end."""
    content: dict[str, Any] = {}
    ask = ("ask", run.photo, QUESTION, "--json", "--max-new-tokens", NEW_TOKENS)
    bases = ("--model", run.gemma, "--world-model", run.cosmos)
    lines: dict[str, tuple[object, ...]] = {
        "ask, now, tokens": (*ask, "--model", run.adapter, "--steps", 0, "--mode", "tokens"),
        "ask, future, tokens": (*ask, "--model", run.adapter, "--steps", run.steps, "--mode", "tokens"),
        "ask, future, frames": (*ask, *bases, "--steps", run.steps, "--mode", "frames"),
        "ask without training, tokens": (*ask, *bases, "--steps", run.steps, "--mode", "tokens"),
        "imagine": ("imagine", run.photo, "-o", run.folder / "future.gif", *bases, "--steps", run.steps, "--json"),
        "imagine, own weights": (
            *("imagine", run.photo, "-o", run.folder / "future.gif", "--model", run.gemma),
            *("--world-model", run.folder / "cosmos-own", "--steps", run.steps, "--json"),
        ),
    }
    for name, arguments in lines.items():
        if not run.fits(40):
            content.setdefault("left_out", []).append(name)
            continue
        result = theworld(run, *arguments)
        content[name] = {
            "command": result["command"],
            "returncode": result["returncode"],
            "seconds": result["seconds"],
            "card_bytes": result["card_bytes"],
            "said": json.loads(result["stdout"]) if result["returncode"] == 0 else None,
            "errors": result["stderr"].strip()[-600:],
        }
        run.keep("commands", content)
        say(f"theworld {name}: exit {result['returncode']} after {result['seconds']} s")
    return content


def theworld(run: Run, *arguments: object) -> dict[str, Any]:
    """Runs the command line in a new process; `card_bytes` is its peak of GPU memory, None without a GPU."""
    words = [str(argument) for argument in arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH", "")))),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("HF_ENDPOINT", None)  # doctor would print the address of a mirror
    in_use: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            free, total = torch.cuda.mem_get_info(run.device)
            in_use.append(total - free)

    watcher = threading.Thread(target=watch) if run.device.type == "cuda" else None
    before = 0
    if watcher is not None:
        free, total = torch.cuda.mem_get_info(run.device)
        before = total - free
        watcher.start()
    started = time.perf_counter()
    try:
        result = subprocess.run(
            [sys.executable, "-m", "theworld.cli", *words], capture_output=True, text=True, env=environment, check=False
        )
    finally:
        done.set()
        if watcher is not None:
            watcher.join()
    return {
        "command": shlex.join(["theworld", *words]),
        "returncode": result.returncode,
        "seconds": round(time.perf_counter() - started, 2),
        "card_bytes": max(in_use) - before if in_use else None,
        "stdout": result.stdout,
        "stderr": result.stderr,
    }


def training(run: Run) -> dict[str, Any]:
    """Three steps of AdamW in each setting: the peak over all of them, and the seconds of the last one."""
    from PIL import Image

    from theworld import TheWorld
    from theworld.inspection.parameters import build_on_meta
    from theworld.model import freezing

    content: dict[str, Any] = {}
    photo = Image.open(run.photo).convert("RGB")
    model = TheWorld.from_pretrained(run.adapter, num_world_steps=0, device=run.device)
    counts = {row.part: row.total for row in freezing.count_parameters(build_on_meta(model.config))}
    for name, setting in TRAINING.items():
        if not run.fits(25):
            content.setdefault("left_out", []).append(name)
            continue
        num_images, steps = setting.batch, run.steps if setting.imagines else 0
        freezing.train_only(model.model, setting.learns)
        model.train()
        if setting.checkpointing:
            model.model.gradient_checkpointing_enable()
        else:
            model.model.gradient_checkpointing_disable()
        if steps:
            model.imagine(photo, steps)  # reads the transformer
        inputs = model.prepare(
            [photo] * num_images, [QUESTION] * num_images, [ANSWER] * num_images, num_world_steps=steps
        )
        text = int(inputs["input_ids"].shape[1]) - memory.sequence_length(model.config, steps, text_tokens=0)
        prediction = memory.training(
            model.config,
            counts,
            setting.learns,
            num_world_steps=steps,
            batch=num_images,
            b=run.dtype.itemsize,
            text_tokens=text,
            checkpointing=setting.checkpointing,
            world_parts=model.model.world.parts,
        )
        row: dict[str, Any] = {"predicted": prediction.peak}
        content[name] = row
        try:
            row |= train_steps(run, model, inputs)
        except torch.OutOfMemoryError as error:
            row["out_of_memory"] = str(error).partition(". ")[0]
        else:
            row |= against(prediction, row["peak"]["allocated"])
        model.zero_grad(set_to_none=True)
        gc.collect()
        run.keep("training", content)
        say(f"training {name}:", {key: row.get(key) for key in ("seconds", "predicted_over_measured", "out_of_memory")})
    return content


def train_steps(run: Run, model: TheWorld, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Three steps of the default optimiser of Hugging Face's Trainer."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)
    losses: list[float] = []

    def step() -> None:
        outputs = model.model(**inputs)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(outputs.loss.item())

    with peak_of(run.device, model) as peak:
        seconds = seconds_of(step, run.device, 3)
    return {
        "losses": losses,
        "seconds": round(seconds[-1], 3),
        "all_seconds": [round(value, 3) for value in seconds],
        "trainable": sum(parameter.numel() for parameter in learning),
        "tokens": list(inputs["input_ids"].shape),
        "peak": peak,
    }
