"""Measures the world model alone: encoding one frame, one pass of the transformer, and whole rollouts, by every path.

    python -m benchmarks.rollout_speed --size full --output rollout.json     # one GPU, about three minutes
    python -m benchmarks.rollout_speed --size tiny --output rollout.json     # a CPU, in seconds, without captures

Weights are random and of the published shapes, made on the device. The arms of a figure alternate, and each is the
median of `--repeats` calls after a first one, whose time is `warm_up_s`. `max_error` and `rms_error` are distances from
the plain path in float32 with TF32 off; the plain path's own distance in bfloat16 shows what rounding does. The file is
written after every figure. A figure that fails has an `error` with the traceback.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.initialization import no_init_weights

from benchmarks.random_weights import SIZES, cosmos_config, drawn
from benchmarks.rows import Rows
from benchmarks.stock_pipeline import pipeline_with_mean_latents, stock_latents
from theworld.compilation import can_compile, compile_function, compiling
from theworld.cuda_graphs import Graphs
from theworld.world_models.cosmos_fast import rollout_shape
from theworld.world_models.cosmos_predict2 import CosmosPredict2
from theworld.world_models.cosmos_rollout import StaticRollout, block_step
from theworld.world_models.cosmos_sampler import noise_schedule, rollout_noise
from theworld.world_models.first_frame import FirstFrameEncoder, residual_block

WORLD_STEPS, DENOISING_STEPS = 4, 10  # N, and points of the schedule: one pass fewer
SIDES = {"full": 224, "tiny": 32}
# milliseconds by arithmetic on one H200: at 775 TFLOP/s and 4.2 TB/s
FLOORS = {("encode", 1): 0.4, ("encode", 8): 3.4, ("pass", 1): 10.0, ("pass", 8): 79.0}
FLOORS |= {("rollout", n): (DENOISING_STEPS - 1) * FLOORS["pass", n] for n in (1, 8)}

Call = Callable[[], Tensor]


class Bench(Rows):
    """A world model, what it is measured with, and the rows of the figures."""

    def __init__(self, size: str, output: Path, repeats: int) -> None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        super().__init__("benchmarks.rollout_speed", output, device, repeats)
        self.size = size
        self.world = random_world(size, self.device)
        self.graphs = Graphs()
        self.block, self.residual = compile_function(block_step), compile_function(residual_block)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        return self.graphs.capture(function, self.device) if self.on_gpu else function

    def captured(self, call: Call) -> Call:
        """`call` as a graph whose result is copied out."""
        result = torch.empty_like(call())

        def copy_result() -> None:
            result.copy_(call())

        replay = self.capture(copy_result)

        def replayed(recorded: Call = call) -> Tensor:  # which keeps the tensors of the graph in memory
            replay()
            return result.clone()

        return replayed

    def figure(self, what: str, batch: int, arms: Mapping[str, Callable[[], Call]], reference: Tensor | None) -> None:
        """Measures all arms of a figure: each is made and called once, then all are called in turn.

        Args:
            arms: name -> makes the call whose result is compared with `reference`.
        """
        ready: dict[str, tuple[Call, dict[str, Any]]] = {}
        for name, make in arms.items():
            if "compiled" in name and not can_compile():
                continue
            row = {"what": what, "arm": name, "batch": batch, "world_steps": 0 if what == "encode" else WORLD_STEPS}
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            try:
                call = make()
                result = self.timed(call)[1].float()
                row["warm_up_s"] = round(time.perf_counter() - start, 3)
                if reference is not None:
                    error = result[: len(reference)] - reference
                    row["max_error"], row["rms_error"] = error.abs().max().item(), error.square().mean().sqrt().item()
                    row["reference_rms"] = reference.square().mean().sqrt().item()
                ready[name] = (call, row | self.memory())
            except Exception:  # noqa: BLE001 - kept in the file; the other arms are measured
                self.keep(row | {"error": traceback.format_exc()})
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.repeats):
            for name, (call, _) in ready.items():
                times[name].append(self.timed(call)[0] * 1000)
        for name, (_, row) in ready.items():
            floor = FLOORS.get((what, batch)) if self.size == "full" else None
            self.keep(row | {"value": round(statistics.median(times[name]), 3), "unit": "ms", "floor": floor})
        del ready
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def random_world(size: str, device: torch.device) -> CosmosPredict2:
    """A world model with random bfloat16 weights, drawn on `device`."""
    with torch.device("meta"), no_init_weights():
        world = CosmosPredict2(cosmos_config(SIZES[size])).to(torch.bfloat16)
    world = world.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in world.named_parameters():
        parameter.copy_(drawn(parameter, 1.0, name.endswith("bias"), generator))
    for buffer in world.buffers():  # the prompts
        buffer.normal_(generator=generator)
    return world


@contextmanager
def exact(world: CosmosPredict2) -> Iterator[CosmosPredict2]:
    """A float32 copy of `world` on the plain path, without TF32."""
    reference = copy.deepcopy(world).float()
    reference.fast_path = "off"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield reference


# --------------------------------------------------------------------------------------------------------- the encoder


def encode(bench: Bench, batch: int) -> None:
    """Latents of one frame per image."""
    world, side = bench.world, SIDES[bench.size]
    assert world.vae is not None
    vae, dtype = world.vae, world.vae.quant_conv.weight.dtype
    generator = torch.Generator("cpu").manual_seed(1)
    coarse = torch.rand(batch, 3, 8, 8, generator=generator) * 2 - 1
    frames = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").unsqueeze(2).to(bench.device)

    def stock() -> Call:
        center, spread = (
            torch.tensor(values, device=bench.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return lambda: (vae.encode(frames.to(dtype)).latent_dist.mean.float() - center) / spread

    def by(fast_path: str) -> Call:
        def call() -> Tensor:
            world.fast_path = fast_path
            return world.encode(frames)

        return call

    def in_2d(
        captured: bool = True,
        residual: Callable[..., Tensor] = residual_block,
        memory_format: torch.memory_format = torch.channels_last,
        search: bool = False,
    ) -> Callable[[], Call]:
        def make() -> Call:
            capture = bench.capture if captured else lambda function: function
            with torch.backends.cudnn.flags(enabled=True, benchmark=search), compiling():
                encoder = FirstFrameEncoder(vae, (batch, 3, side, side), capture, residual, memory_format)
                encoder.run(frames)
            return lambda: encoder.run(frames)

        return make

    with exact(world) as reference_world:
        reference = reference_world.encode(frames)
    arms = {
        "stock": stock,
        "plain (off)": lambda: by("off"),
        "graph of the plain pass": lambda: bench.captured(stock()),
        "2-D, contiguous": in_2d(captured=False, memory_format=torch.contiguous_format),
        "2-D, contiguous, graph": in_2d(memory_format=torch.contiguous_format),
        "2-D, channels last": in_2d(captured=False),
        "2-D, channels last, graph": in_2d(),
        "2-D, channels last, graph, cuDNN search": in_2d(search=True),
        "2-D, channels last, compiled": in_2d(captured=False, residual=bench.residual),
        "2-D, contiguous, compiled, graph": in_2d(residual=bench.residual, memory_format=torch.contiguous_format),
        "2-D, channels last, compiled, graph": in_2d(residual=bench.residual),
        "2-D, channels last, compiled, graph, cuDNN search": in_2d(residual=bench.residual, search=True),
    }
    if bench.on_gpu:
        arms["ours (on)"] = lambda: by("on")
    bench.figure("encode", batch, arms, reference)


# -------------------------------------------------------------------------------------------------------- the rollouts


class Inputs:
    """What a rollout of `batch` samples starts from; the same for a sample in any batch."""

    def __init__(self, bench: Bench, batch: int) -> None:
        config, cells = bench.world.config, SIDES[bench.size] // bench.world.spatial_factor
        shape = (config.latent_channels, cells, cells)
        self.seeds = list(range(batch))
        self.latents = rollout_noise(self.seeds, 1, shape).to(bench.device)
        self.sigmas = noise_schedule(config, DENOISING_STEPS)
        self.noise = rollout_noise(self.seeds, WORLD_STEPS, shape).to(bench.device) * self.sigmas[0].item()
        assert bench.world.prompt_embeds is not None
        assert bench.world.negative_prompt_embeds is not None
        self.text = torch.stack([bench.world.prompt_embeds, bench.world.negative_prompt_embeds])[:, None].float()


def plain_pass(world: CosmosPredict2, inputs: Inputs, step: int = 4) -> Call:
    """A pass of diffusers' transformer at a step in the middle, guidance as one batch: velocities of the future."""
    transformer = world.transformer
    assert transformer is not None
    dtype, device = transformer.dtype, inputs.latents.device
    sigma = inputs.sigmas[step].to(device)
    t = sigma / (sigma + 1)
    n, frames = inputs.latents.shape[0], 1 + WORLD_STEPS
    grid = inputs.latents.shape[3:]
    t_given = torch.tensor(world.config.sigma_conditioning)
    timestep = t.repeat(1, 1, frames, 1, 1)
    timestep[:, :, :1] = t_given / (t_given + 1)
    mask = torch.zeros(2 * n, 1, frames, *grid, dtype=dtype, device=device)
    mask[:, :, :1] = 1
    given = {
        "hidden_states": torch.cat([inputs.latents, inputs.noise * (1 - t)], 2).to(dtype).repeat(2, 1, 1, 1, 1),
        "timestep": timestep.to(dtype).expand(2 * n, -1, -1, -1, -1),
        "encoder_hidden_states": inputs.text.to(dtype).expand(-1, n, -1, -1).flatten(0, 1),
        "fps": world.config.fps,
        "condition_mask": mask,
        "padding_mask": torch.zeros(1, 1, *grid, dtype=dtype, device=device),
        "return_dict": False,
    }
    return lambda: transformer(**given)[0][:, :, 1:]


def denoising_pass(bench: Bench, batch: int) -> None:
    """One pass of the transformer with guidance."""
    world, inputs = bench.world, Inputs(bench, batch)
    transformer = world.transformer
    assert transformer is not None

    def compiled_blocks(graph: bool) -> Callable[[], Call]:
        def make() -> Call:
            own = copy.copy(transformer)  # shares the weights; its blocks are copies that share them, too
            own._modules = {**transformer._modules}
            own.transformer_blocks = torch.nn.ModuleList([copy.copy(block) for block in transformer.transformer_blocks])
            for block in own.transformer_blocks:
                block.compile(fullgraph=True, dynamic=False)  # as the library's documentation has it
            holder = copy.copy(world)
            holder._modules = {**world._modules, "transformer": own}
            call = plain_pass(holder, inputs)
            with compiling():
                call()
            return bench.captured(call) if graph else call

        return make

    def static(block: Callable[..., Tensor], graph: bool) -> Callable[[], Call]:
        def make() -> Call:
            shape = rollout_shape(inputs.latents, inputs.noise, inputs.text, inputs.sigmas)
            same = lambda function: function  # noqa: E731
            with compiling():
                rollout = StaticRollout(
                    transformer, shape, world.config.fps, world.config.sigma_conditioning, same, block
                )
                rollout.run(inputs.latents, inputs.noise, inputs.text, sigmas=inputs.sigmas, guidance_scale=7.0)
            rollout.step.fill_(4)
            rollout.future.copy_(inputs.noise)
            call = lambda: rollout.velocity(2)  # noqa: E731
            return bench.captured(call) if graph else call

        return make

    reference = None
    with exact(world) as exact_world:
        one = Inputs(bench, 1)
        reference = plain_pass(exact_world, one)().float()[:1]
    arms = {
        "eager": lambda: plain_pass(world, inputs),
        "graph of the eager pass": lambda: bench.captured(plain_pass(world, inputs)),
        "blocks compiled": compiled_blocks(graph=False),
        "blocks compiled, graph": compiled_blocks(graph=True),
        "text and modulation once": static(block_step, graph=False),
        "text and modulation once, graph": static(block_step, graph=True),
        "text and modulation once, compiled": static(bench.block, graph=False),
        "text and modulation once, compiled, graph": static(bench.block, graph=True),
    }
    bench.figure("pass", batch, arms, reference)


def rollouts(bench: Bench, batch: int) -> None:
    """Whole rollouts with guidance."""
    world, inputs = bench.world, Inputs(bench, batch)

    def by(fast_path: str, **options: Any) -> Callable[[], Call]:
        def call() -> Tensor:
            world.fast_path = fast_path
            latents = world.rollout(
                inputs.latents, WORLD_STEPS, seeds=inputs.seeds, num_inference_steps=DENOISING_STEPS, **options
            )
            return latents[:, :, 1:]

        return lambda: call

    def stock() -> Call:
        cells = inputs.latents.shape[-1]
        image = Image.new("RGB", (SIDES[bench.size],) * 2, (90, 120, 60))
        noise = torch.randn(1, world.latent_channels, 1 + WORLD_STEPS, cells, cells, device=bench.device)
        prompts = dict(zip(("prompt_embeds", "negative_prompt_embeds"), inputs.text.bfloat16(), strict=True))

        def call() -> Tensor:
            with pipeline_with_mean_latents() as module:
                return stock_latents(
                    module,
                    world.vae,
                    world.transformer,
                    [image],
                    noise,
                    size=SIDES[bench.size],
                    steps=DENOISING_STEPS,
                    guidance=7.0,
                    **prompts,
                )[:, :, 1:]

        return call

    if batch == 1:
        bench.figure("rollout", batch, {"stock": stock}, None)
    with exact(world) as exact_world:
        reference = exact_world.rollout(
            inputs.latents[:1], WORLD_STEPS, seeds=inputs.seeds[:1], num_inference_steps=DENOISING_STEPS
        )[:, :, 1:]
    arms = {"plain (off)": by("off")}
    if bench.on_gpu:
        arms["ours (on)"] = by("on")
    bench.figure("rollout", batch, arms, reference)
    if bench.on_gpu:  # another result, therefore without a reference
        half = {"ours (on), guided in the first half": by("on", guidance_interval=(0.0, 0.5))}
        bench.figure("rollout", batch, half, None)


FIGURES = {"encode": encode, "pass": denoising_pass, "rollout": rollouts}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the rows")
    parser.add_argument("--repeats", type=int, default=7, help="calls per arm that are timed")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", choices=FIGURES, nargs="+", default=list(FIGURES))
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        bench = Bench(options.size, options.output, options.repeats)
        for what in options.only:
            for batch in options.batches:
                try:
                    FIGURES[what](bench, batch)
                except Exception:  # noqa: BLE001 - kept in the file
                    bench.keep({"what": what, "arm": "all", "batch": batch, "error": traceback.format_exc()})


if __name__ == "__main__":
    main()
