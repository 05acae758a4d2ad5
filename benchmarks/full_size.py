"""The whole product at full size: Gemma 3 4B and Cosmos-Predict2 2B, from a photograph to an answer, on one GPU.

    python -m benchmarks.full_size --folder /tmp/full-size

The weights are random, in exactly the published repositories' layout (`benchmarks/random_weights.py`), so answers are
noise; sizes, times and memory are the real ones, and so is whether two programs compute the same. Sections:

    make      both repositories, and an adapter as training leaves one
    answers   one process: times of each stage, peak memory of each call against what `theworld info` predicts
    parity    world off against stock Gemma 3, bit for bit; latents against diffusers' pipeline
    training  steps of AdamW under each freeze setting: peak memory against the prediction, seconds
    describe  `theworld info` and `theworld doctor`; the table of parameters against the published counts
    commands  the commands a person types, each a new process

Each section is a process of its own and writes its findings as it goes, so that what is cut off leaves the rest.
`--size tiny` does all of it with models of a few thousand parameters on a CPU, where memory is counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from theworld.inspection import memory
from theworld.inspection.provenance import versions

if TYPE_CHECKING:
    from theworld import TheWorld

REPOSITORY = Path(__file__).parent.parent
PHOTO = Path(__file__).parent / "grace_hopper.jpg"
QUESTION = "What will happen next in this picture?"
ANSWER = "The woman will smile at the camera and then turn her head."
STEPS = {"full": 4, "tiny": 1}  # world steps of every call that imagines
NEW_TOKENS = 32
REPEATS = 3

# parameters as the published repositories have them, by the components of `theworld info`
PUBLISHED = {
    "projection": 43_520,
    "vision tower": 416_866_032,
    "vision projector": 2_950_272,
    "text embeddings": 671_252_480,
    "language model": 3_209_010_688,
    "VAE encoder": 53_595_872,
    "world transformer": 1_956_413_440,
}
PUBLISHED_SUMS = {"Gemma 3 4B": 4_300_079_472, "VAE": 126_892_531}
GEMMA_COMPONENTS = ("vision tower", "vision projector", "text embeddings", "language model")
VAE_COMPONENTS = ("VAE encoder", "VAE decoder", "VAE latent convolutions")

# Latents are held to diffusers' by ||ours - theirs|| / ||theirs||. In bfloat16 two ways to batch guidance round
# otherwise; what is allowed there is what the pipeline's own latents move by between bfloat16 and float32.
FLOAT32_TOLERANCE = 1e-4
WITHIN = 0.15  # of measured memory

# call -> (whether it imagines, mode, pictures at once)
CALLS: dict[str, tuple[bool, str, int]] = {
    "now, tokens": (False, "tokens", 1),
    "now, tokens, 4 pictures": (False, "tokens", 4),
    "future, tokens": (True, "tokens", 1),
    "future, tokens, 4 pictures": (True, "tokens", 4),
    "future, frames": (True, "frames", 1),
}


@dataclass(frozen=True)
class Setting:
    """What a training step learns, on how many pictures at once, and how."""

    learns: tuple[str, ...]
    batch: int
    checkpointing: bool = False
    imagines: bool = False


# the source document's four rows are marked
TRAINING = {
    "projector, B=1": Setting(("projector",), 1),
    "projector, B=4 *": Setting(("projector",), 4),
    "projector, B=4, checkpointing": Setting(("projector",), 4, checkpointing=True),
    "+ VAE encoder, B=4": Setting(("projector", "vae_encoder"), 4),
    "+ vision, B=4 *": Setting(("projector", "vision"), 4),
    "+ vision, B=4, checkpointing *": Setting(("projector", "vision"), 4, checkpointing=True),
    "all, B=1, checkpointing *": Setting(("projector", "vision", "language", "vae_encoder"), 1, checkpointing=True),
    "projector, B=1, future": Setting(("projector",), 1, imagines=True),  # last: it loads the world transformer
}


@dataclass
class Run:
    """What every section needs; `until` is the second, on this machine's clock, by which all has to be over."""

    size: str
    folder: Path
    device: torch.device
    until: float
    photo: Path = PHOTO
    repeats: int = REPEATS

    @property
    def gemma(self) -> Path:
        return self.folder / "gemma"

    @property
    def cosmos(self) -> Path:
        return self.folder / "cosmos"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def steps(self) -> int:
        return STEPS[self.size]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def piece(self, section: str) -> Path:
        return self.folder / f"{section}.json"

    def keep(self, section: str, content: Mapping[str, Any]) -> None:
        """Writes what a section has found so far."""
        self.piece(section).write_text(json.dumps(content, indent=2), encoding="utf-8")

    def fits(self, seconds: float) -> bool:
        """Whether this many seconds are left; what does not fit is left out and said."""
        return time.time() + (seconds if self.size == "full" else 0) < self.until


def say(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


# -------------------------------------------------------------------------------------------------------- measurements


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> list[float]:
    """Wall time of each of `repeats` calls, until the GPU is done."""
    found = []
    for _ in range(repeats):
        finish(device)
        started = time.perf_counter()
        call()
        finish(device)
        found.append(time.perf_counter() - started)
    return found


def milliseconds(call: Callable[[], Any], run: Run) -> dict[str, Any]:
    """Median and all of `run.repeats` calls, after one to warm up."""
    call()
    found = [1000 * seconds for seconds in seconds_of(call, run.device, run.repeats)]
    return {"median_ms": round(statistics.median(found), 2), "all_ms": [round(value, 2) for value in found]}


@contextmanager
def peak_of(device: torch.device, module: torch.nn.Module) -> Iterator[dict[str, int]]:
    """Fills in, at the end, the peak of what torch allocated meanwhile, and on a GPU of what it reserved.

    On a CPU it is counted (`benchmarks/live_memory.py`).
    """
    found: dict[str, int] = {}
    gc.collect()
    if device.type != "cuda":
        from benchmarks.live_memory import LiveMemory

        with LiveMemory([*module.parameters(), *module.buffers()]) as live:
            yield found
        found["allocated"] = live.peak
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    finish(device)
    found["allocated"] = torch.cuda.max_memory_allocated(device)
    found["reserved"] = torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    found["card_in_use"] = total - free  # of every process, with what torch keeps for later


def against(prediction: memory.Prediction, measured: int) -> dict[str, Any]:
    """A prediction beside a measurement, in bytes."""
    ratio = prediction.peak / measured
    return {
        "predicted": prediction.peak,
        "holds": dict(prediction.persistent),
        "moments": dict(prediction.transient),
        "largest_moment": prediction.largest_transient,
        "predicted_over_measured": round(ratio, 4),
        "within_15_percent": abs(ratio - 1) <= WITHIN,
    }


# ------------------------------------------------------------------------------------------------------------ sections


def make(run: Run) -> dict[str, Any]:
    """Writes the two repositories, and an adapter of a fresh projector, as training would save one."""
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
    # the same components under a folder that says whose weights they are: nobody's but this script's
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
    loads[0].save_pretrained(run.adapter)
    content["adapter_bytes"] = sum(path.stat().st_size for path in run.adapter.iterdir())
    trainable, total, percent = loads[0].get_trainable_parameters()
    content["trainable"] = {"parameters": trainable, "in_memory": total, "percent": percent}
    return content


def fused(run: Run) -> TheWorld:
    """The source document's own call, on the folders."""
    from theworld import TheWorld

    return TheWorld(run.gemma, num_world_steps=run.steps, cosmos_model_name=str(run.cosmos), device=run.device)


def describe(run: Run) -> dict[str, Any]:
    """`theworld info` and `theworld doctor` on the two folders."""
    content: dict[str, Any] = {}
    told = theworld(run, "info", run.gemma, "--world-model", run.cosmos, "--steps", run.steps, "--batch", 4, "--json")
    content["info"] = parsed = json.loads(told["stdout"])
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
    told = theworld(run, *doctor)
    content["doctor_text"] = told["stdout"]
    content["doctor_works"] = told["returncode"] == 0
    return content


def answers(run: Run) -> dict[str, Any]:
    """Loads once and asks in every way: times of the stages, and memory against the prediction."""
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
    for name, (imagines, mode, pictures) in CALLS.items():
        if not run.fits(30):
            content.setdefault("left_out", []).append(name)
            continue
        images, questions = ([photo] * pictures, [QUESTION] * pictures) if pictures > 1 else (photo, QUESTION)
        steps = run.steps if imagines else 0
        asked = {"max_new_tokens": NEW_TOKENS, "num_world_steps": steps, "mode": mode}
        said: list[Any] = []
        # the first call reads the parts of the world model that are new to it
        first = seconds_of(lambda: said.append(model.generate(images, questions, **asked)), run.device)[0]  # noqa: B023
        with peak_of(run.device, model) as peak:
            repeats = run.repeats if pictures == 1 else 1
            times = seconds_of(lambda: model.generate(images, questions, **asked), run.device, repeats)  # noqa: B023
        prediction = memory.inference(
            model.config,
            counts,
            num_world_steps=steps,
            batch=pictures,
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
            "alike": len(set(written)) == 1,  # the same picture and question several times
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
        frames = model.decode(model.imagine(photo, run.steps), for_people=False)
    prediction = memory.imagining(model.config, counts, num_world_steps=run.steps, b=run.dtype.itemsize)
    content["imagine and decode"] = {
        "frames": list(frames.shape),
        "peak": peak,
        **against(prediction, peak["allocated"]),
    }
    run.keep("answers", content)
    stages(run, model, photo, content["stages"])
    return content


def text_tokens(model: TheWorld, images: Any, questions: Any, steps: int) -> int:
    """Tokens of a prompt that are neither a picture's nor the world's."""
    length = int(model.prepare(images, questions, num_world_steps=steps)["input_ids"].shape[1])
    return length - memory.sequence_length(model.config, steps, text_tokens=0)


@torch.no_grad()
def stages(run: Run, model: TheWorld, photo: Any, found: dict[str, Any]) -> None:
    """Milliseconds of each stage by itself, at N = 0 and N = run.steps."""
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
        blind = {name: value for name, value in given.items() if name != "pixel_values"}  # SigLIP stands by itself
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
    """What a person types, each a new process: seconds from start to end."""
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
        told = theworld(run, *arguments)
        content[name] = {
            "command": told["command"],
            "returncode": told["returncode"],
            "seconds": told["seconds"],
            "card_bytes": told["card_bytes"],
            "said": json.loads(told["stdout"]) if told["returncode"] == 0 else None,
            "errors": told["stderr"].strip()[-600:],
        }
        run.keep("commands", content)
        say(f"theworld {name}: exit {told['returncode']} after {told['seconds']} s")
    return content


def theworld(run: Run, *arguments: object) -> dict[str, Any]:
    """Runs the command line in a new process; `card_bytes` is what it took of the GPU at most, None without one."""
    words = [str(argument) for argument in arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH", "")))),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("HF_ENDPOINT", None)  # doctor would name a mirror of this machine's
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
        told = subprocess.run(
            [sys.executable, "-m", "theworld.cli", *words], capture_output=True, text=True, env=environment, check=False
        )
    finally:
        done.set()
        if watcher is not None:
            watcher.join()
    return {
        "command": shlex.join(["theworld", *words]),
        "returncode": told.returncode,
        "seconds": round(time.perf_counter() - started, 2),
        "card_bytes": max(in_use) - before if in_use else None,
        "stdout": told.stdout,
        "stderr": told.stderr,
    }


def parity(run: Run) -> dict[str, Any]:
    """World off against stock Gemma 3, and a rollout against diffusers' pipeline."""
    content: dict[str, Any] = {}
    content["world_off"] = gemma_parity(run)
    run.keep("parity", content)
    say("world off:", content["world_off"])
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    content["latents"] = latents_parity(run)
    say("latents:", content["latents"])
    return content


@torch.no_grad()
def gemma_parity(run: Run) -> dict[str, Any]:
    """Logits and a greedy answer of the fused model with its world off, and of Gemma 3 as transformers loads it."""
    from PIL import Image
    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    photo = Image.open(run.photo).convert("RGB")
    model = fused(run)
    ours_inputs = model.prepare(photo, QUESTION, enable_world=False)
    ours = model.model(**ours_inputs).logits
    ours_answer = model.generate(photo, QUESTION, max_new_tokens=NEW_TOKENS, enable_world=False)
    processor = AutoProcessor.from_pretrained(run.gemma)
    stock = Gemma3ForConditionalGeneration.from_pretrained(run.gemma, dtype=run.dtype).to(run.device).eval()
    chat = [{"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(run.device)
    theirs = stock(**inputs).logits
    ids = stock.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
    names = sorted(inputs.keys())
    with_world = model.model(**model.prepare(photo, QUESTION, num_world_steps=0)).logits[:, -1]
    return {
        "inputs_equal": names == sorted(ours_inputs.keys())
        and all(torch.equal(inputs[name], ours_inputs[name]) for name in names),
        "logits_equal": torch.equal(ours, theirs),
        "largest_difference": float((ours.float() - theirs.float()).abs().max()),
        "logits_finite": bool(theirs.isfinite().all()),
        "logits_shape": list(theirs.shape),
        "answers_equal": ours_answer == processor.batch_decode(ids, skip_special_tokens=True)[0].strip(),
        # so that equality is no accident: what world tokens change at the last position
        "world_on_changes_logits_by": float((with_world - ours[:, -1]).abs().max()),
    }


@torch.no_grad()
def latents_parity(run: Run) -> dict[str, Any]:
    """The same photograph, prompts and noise through our rollout and through the pipeline, in each type."""
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
    from PIL import Image

    from benchmarks.stock_pipeline import pipeline_with_mean_latents, stock_latents
    from theworld.media.images import to_frames
    from theworld.model.configuration import TheWorldConfig
    from theworld.world_models.cosmos_predict2 import CosmosPredict2
    from theworld.world_models.cosmos_sampler import rollout_noise

    photo = Image.open(run.photo).convert("RGB")
    side = TheWorldConfig().world_image_size
    found: dict[str, Any] = {"pixels": side, "frames": 1 + 4 * run.steps, "seed": 7}
    theirs: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        world = CosmosPredict2.from_pretrained(run.cosmos, parts=("encoder", "transformer"), dtype=dtype).to(run.device)
        vae = AutoencoderKLWan.from_pretrained(run.cosmos, subfolder="vae", torch_dtype=dtype).to(run.device)
        transformer = CosmosTransformer3DModel.from_pretrained(
            run.cosmos, subfolder="transformer", torch_dtype=dtype
        ).to(run.device)
        assert world.prompt_embeds is not None
        assert world.negative_prompt_embeds is not None
        latents = world.encode(to_frames([photo], side).to(run.device))
        cells = (latents.shape[1], latents.shape[3], latents.shape[4])
        # unit noise for the given frame too: the pipeline draws it, and leaves a trace of it there
        noise = torch.cat([rollout_noise([1], 1, cells), rollout_noise([7], run.steps, cells)], dim=2).to(run.device)
        for guidance in (1.0, world.config.guidance_scale):
            steps = world.config.num_inference_steps
            ours = world.rollout(latents, run.steps, seeds=[7], num_inference_steps=steps, guidance_scale=guidance)
            with pipeline_with_mean_latents() as module:
                stock = stock_latents(
                    module,
                    vae,
                    transformer,
                    [photo],
                    noise,
                    size=side,
                    steps=steps,
                    guidance=guidance,
                    prompt_embeds=world.prompt_embeds[None].to(dtype),
                    negative_prompt_embeds=world.negative_prompt_embeds[None].to(dtype),
                )
            given, imagined = stock[:, :, :1], stock[:, :, 1:]
            theirs[f"{kind} {guidance}"] = imagined
            # theirs of now: what is left of 80·noise after Euler steps towards the latent from sigma 80 to 0.002
            left = latents + (80 * noise[:, :, :1] - latents) * 0.002 / 80
            difference = distance(ours[:, :, 1:], imagined)
            row: dict[str, Any] = {
                "shape": list(ours.shape),
                "difference": difference,
                "largest": float((ours[:, :, 1:] - imagined).abs().max()),
                "rms": float(imagined.square().mean().sqrt()),
                "given_difference": distance(left, given),
                "tolerance": FLOAT32_TOLERANCE,
            }
            if dtype is torch.bfloat16:  # float32 came before
                row["tolerance"] = distance(imagined, theirs[f"float32 {guidance}"])
            row["within"] = bool(difference <= row["tolerance"])
            found[f"{kind}, guidance {guidance:g}"] = row
        del world, vae, transformer
        gc.collect()
    return found


def distance(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||other||"""
    return float((one.double() - other.double()).norm() / other.double().norm())


def training(run: Run) -> dict[str, Any]:
    """Three steps of AdamW in each setting; the peak is over all of them, the seconds are the last one's."""
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
        pictures, steps = setting.batch, run.steps if setting.imagines else 0
        freezing.train_only(model.model, setting.learns)
        model.train()
        if setting.checkpointing:
            model.model.gradient_checkpointing_enable()
        else:
            model.model.gradient_checkpointing_disable()
        if steps:
            model.imagine(photo, steps)  # reads the transformer
        inputs = model.prepare([photo] * pictures, [QUESTION] * pictures, [ANSWER] * pictures, num_world_steps=steps)
        text = int(inputs["input_ids"].shape[1]) - memory.sequence_length(model.config, steps, text_tokens=0)
        prediction = memory.training(
            model.config,
            counts,
            setting.learns,
            num_world_steps=steps,
            batch=pictures,
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
    """Three steps of the optimiser that HF Trainer takes by default."""
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


# section -> (what it does, seconds without which it is not begun at full size)
SECTIONS: dict[str, tuple[Callable[[Run], dict[str, Any]], float]] = {
    "make": (make, 0),
    "answers": (answers, 70),
    "parity": (parity, 70),
    "training": (training, 60),
    "describe": (describe, 30),
    "commands": (commands, 45),
}


# ------------------------------------------------------------------------------------------------------- the conductor


def main(arguments: list[str] | None = None) -> int:
    """Runs the sections, each in a process of its own, and puts their findings together after each."""
    options = parser().parse_args(arguments)
    folder = options.folder.absolute()
    device = torch.device(options.device)
    sections = options.sections.split(",") if options.sections else list(SECTIONS)
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise SystemExit(f"--sections has {unknown[0]!r}; choose among {', '.join(SECTIONS)}.")
    until = options.until or time.time() + options.budget_seconds
    run = Run(options.size, folder, device, until, options.photo, options.repeats)
    if options.here:
        for library in (transformers_logging, diffusers_logging):
            library.disable_progress_bar()
        for name in sections:
            started = time.perf_counter()
            content = SECTIONS[name][0](run)
            run.keep(name, {**content, "section_seconds": round(time.perf_counter() - started, 1)})
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**provenance(run, options), "sections": {}, "skipped": {}, "failed": {}}
    for name in sections:
        left = until - time.time()
        if run.size == "full" and left < SECTIONS[name][1]:
            report["skipped"][name] = f"{left:.0f} s were left and it takes {SECTIONS[name][1]:.0f} or more"
            say(f"{name} is left out: {report['skipped'][name]}")
        else:
            say(f"== {name} ({left:.0f} s left)")
            failure = run_section(name, run, options, left)
            if failure:
                report["failed"][name] = failure
                say(f"{name} failed: {failure}")
        if run.piece(name).is_file():
            report["sections"][name] = json.loads(run.piece(name).read_text(encoding="utf-8"))
        write(report, folder, options.results)
    say("results:", options.results)
    return 1 if report["failed"] or report["skipped"] else 0


def run_section(name: str, run: Run, options: argparse.Namespace, left: float) -> str | None:
    """Runs one section in a new process; a sentence when it did not end well."""
    run.piece(name).unlink(missing_ok=True)
    command = [sys.executable, "-u", "-m", "benchmarks.full_size", "--here", "--sections", name]
    command += ["--size", run.size, "--folder", str(run.folder), "--device", str(run.device)]
    command += ["--until", str(run.until), "--photo", str(run.photo.absolute()), "--repeats", str(run.repeats)]
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, timeout=max(left, 1), check=False)
    except subprocess.TimeoutExpired:
        return "cut off at the end of the budget"
    return f"exit code {ended.returncode}; its last lines say why" if ended.returncode else None


def provenance(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """When, where and with what; a checkout's commit, or what --commit says where there is no repository."""
    commit = options.commit
    if commit is None:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    cuda = run.device.type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "command": shlex.join(["python", "-m", "benchmarks.full_size", *sys.argv[1:]]),
        "size": run.size,
        "weights": "random, in the published layout",
        "card": torch.cuda.get_device_name(run.device) if cuda else f"none ({os.cpu_count()} CPU cores)",
        "card_bytes": torch.cuda.get_device_properties(run.device).total_memory if cuda else None,
        "versions": versions(),
        "photo": run.photo.name,
        "question": QUESTION,
    }


def write(report: Mapping[str, Any], folder: Path, results: Path) -> None:
    """The report as JSON, and as Markdown beside it."""
    from benchmarks.full_size_report import markdown

    results.parent.mkdir(parents=True, exist_ok=True)
    for path, text in (
        (results, json.dumps(report, indent=2, ensure_ascii=False) + "\n"),
        (results.with_suffix(".md"), markdown(report)),
    ):
        for place, name in (
            (folder, "FOLDER"),
            (REPOSITORY, "."),
            (results.absolute().parent, "RESULTS"),
            (Path.home(), "~"),
        ):  # of no use elsewhere
            text = text.replace(str(place), name)
        path.write_text(text, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, required=True, help="where models and pieces are written; must be empty")
    made.add_argument("--size", choices=("full", "tiny"), default="full")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--sections", default="", help="some of them, with commas; default: all")
    made.add_argument("--budget-seconds", type=float, default=540, help="what no longer fits is left out, and said")
    made.add_argument("--repeats", type=int, default=REPEATS, help="of every timed call, after one to warm up")
    made.add_argument("--photo", type=Path, default=PHOTO)
    made.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "full_size.json")
    made.add_argument("--commit", help="of this checkout, where it is a copy without git")
    made.add_argument("--here", action="store_true", help="run the sections in this process and write no report")
    made.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    raise SystemExit(main())
