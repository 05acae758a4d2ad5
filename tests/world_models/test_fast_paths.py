"""The captured paths compute what the plain ones do; here their steps run without a capture, since there is no GPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.world_models.tiny import tiny_frames, tiny_world
from theworld.compilation import compile_function, compiling
from theworld.world_models import cosmos_fast
from theworld.world_models.cosmos_fast import FastPaths, Weights
from theworld.world_models.cosmos_predict2 import CosmosPredict2
from theworld.world_models.cosmos_rollout import StaticRollout, block_step
from theworld.world_models.cosmos_sampler import guided_passes, transformer_passes
from theworld.world_models.first_frame import FirstFrameEncoder, residual_block

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def world() -> CosmosPredict2:
    return tiny_world().requires_grad_(False)


@pytest.fixture
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule holds as on a GPU, and a captured function runs as it is."""
    monkeypatch.setattr(cosmos_fast, "without_gpu", lambda device: None)
    monkeypatch.setattr(cosmos_fast, "can_compile", lambda: False)
    monkeypatch.setattr(FastPaths, "capture", lambda paths, device: lambda function: function)


def plain(world: CosmosPredict2, call: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    """What `call` returns on the plain path; the other path is on afterwards."""
    world.fast_path = "off"
    result = call(*arguments, **named)
    world.fast_path = "on"
    return result


@pytest.mark.parametrize(
    ("n", "frames", "options"),
    [
        pytest.param(1, 1, {}, id="guided"),
        pytest.param(3, 1, {}, id="a batch"),
        pytest.param(2, 5, {}, id="a video so far"),
        pytest.param(2, 1, {"guidance_scale": 1.0}, id="no guidance"),
        pytest.param(2, 1, {"guidance_interval": (0.3, 0.7)}, id="an interval of guidance"),
        pytest.param(1, 1, {"num_inference_steps": 2}, id="one pass"),
        pytest.param(2, 1, {"prompt_embeds": torch.ones(2, 6, 8).cumsum(0)}, id="a prompt per sample"),
    ],
)
def test_a_static_rollout_is_the_plain_one(
    world: CosmosPredict2, uncaptured: None, n: int, frames: int, options: dict[str, Any]
) -> None:
    latents = world.encode(tiny_frames(n, frames))
    counts: list[tuple[int, int]] = []

    def rollout(**more: Any) -> Tensor:
        return world.rollout(latents, 2, seeds=list(range(n)), **options, **more)

    expected = plain(world, rollout)
    first = rollout(progress=lambda *count: counts.append(count))
    tolerance = 1e-4 if options.get("num_inference_steps") == 2 else 1e-5  # see test_rollout_parity
    torch.testing.assert_close(first, expected, atol=tolerance, rtol=0)
    assert len(world._fast.rollouts.values) == 1
    assert counts == [(done, len(counts)) for done in range(1, len(counts) + 1)]
    again = rollout()
    assert torch.equal(first, again), "nothing of a rollout is left in the next one"


def test_seeds_give_the_same_futures_in_any_batch(world: CosmosPredict2, uncaptured: None) -> None:
    world.fast_path = "on"
    latents = world.encode(tiny_frames(3))
    together = world.rollout(latents, 1, seeds=[5, 6, 7])
    alone = torch.cat([world.rollout(latents[i : i + 1], 1, seeds=[5 + i]) for i in range(3)])
    torch.testing.assert_close(together, alone, **CLOSE)
    assert len(world._fast.rollouts.values) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_frame_in_2d_is_the_plain_latent(uncaptured: None, dtype: torch.dtype) -> None:
    world = tiny_world().requires_grad_(False).to(dtype)
    for frames in (tiny_frames(3), tiny_frames(1, seed=1)[..., :16]):
        expected = plain(world, world.encode, frames)
        latents = world.encode(frames)
        assert latents.shape == expected.shape
        torch.testing.assert_close(latents, expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)
    assert len(world._fast.encoders.values) == 2
    clip = tiny_frames(1, 5)
    assert torch.equal(world.encode(clip), plain(world, world.encode, clip))


def test_2d_weights_follow_the_encoder(uncaptured: None) -> None:
    world = tiny_world()  # its encoder is trained
    frames = tiny_frames()
    world.fast_path = "on"
    assert world.encode(frames).requires_grad, "gradients need the plain path"
    assert not world._fast.encoders.values
    with torch.no_grad():
        before = world.encode(frames)
        assert world.vae is not None
        world.vae.encoder.conv_out.weight.mul_(2)
        torch.testing.assert_close(world.encode(frames), plain(world, world.encode, frames), **CLOSE)
        assert not torch.allclose(world.encode(frames), before)
        world.load_state_dict(tiny_world(seed=1).state_dict(), assign=True)  # other storage
        torch.testing.assert_close(world.encode(frames), plain(world, world.encode, frames), **CLOSE)
        assert len(world._fast.encoders.values) == 1


def test_a_rollout_follows_the_weights_and_prompts(world: CosmosPredict2, uncaptured: None) -> None:
    world.fast_path = "on"
    latents = world.encode(tiny_frames())
    world.rollout(latents, 1, seeds=[0])
    assert world.transformer is not None
    assert world.prompt_embeds is not None
    world.transformer.transformer_blocks[0].attn2.to_v.weight.mul_(2)
    world.transformer.transformer_blocks[1].norm1.linear_2.weight.mul_(2)
    world.prompt_embeds.mul_(2)
    expected = plain(world, world.rollout, latents, 1, seeds=[0])
    torch.testing.assert_close(world.rollout(latents, 1, seeds=[0]), expected, **CLOSE)


def test_inference_mode_leaves_nothing_behind(world: CosmosPredict2, uncaptured: None) -> None:
    world.fast_path = "on"
    frames = tiny_frames()
    with torch.inference_mode():
        first = world.imagine(frames, 1, seeds=[0])
    assert torch.equal(world.imagine(frames, 1, seeds=[0]), first)


class CountingBackend:
    """A backend of torch.compile that runs what was traced, and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward

    def compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        torch.compiler.reset()
        return compile_function(function, backend=self)


def test_a_block_is_compiled_once_for_all_layers(world: CosmosPredict2) -> None:
    backend = CountingBackend()
    assert world.transformer is not None
    assert world.prompt_embeds is not None
    given, noise = torch.randn(1, 4, 1, 4, 4), torch.randn(1, 4, 2, 4, 4)
    text, sigmas = world.prompt_embeds[None, None], torch.tensor((80.0, 5.0, 0.1))
    shape = cosmos_fast.rollout_shape(given, noise, text, sigmas)
    results = []
    for function in (block_step, backend.compile(block_step)):
        rollout = StaticRollout(world.transformer, shape, 16, 1e-4, lambda step: step, function)
        with compiling():
            results.append(rollout.run(given, noise, text, sigmas=sigmas, guidance_scale=1.0))
    torch.testing.assert_close(results[0], results[1], **CLOSE)
    assert backend.graphs == 1, "two layers share a graph"


def test_a_residual_block_is_compiled_once_per_shape(world: CosmosPredict2) -> None:
    backend = CountingBackend()
    assert world.vae is not None
    frames, residual = tiny_frames(), backend.compile(residual_block)
    with compiling():
        latents = FirstFrameEncoder(world.vae, (1, 3, 32, 32), lambda step: step, residual).run(frames)
    torch.testing.assert_close(latents, world.encode(frames), **CLOSE)
    # 4 channels at 32, 4 to 8 at 16, 8 at 8 and 8 at 4 pixels a side, where three blocks are
    assert backend.graphs == 4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_results_are_the_plain_ones_on_a_gpu(dtype: torch.dtype) -> None:
    world = tiny_world().requires_grad_(False).to("cuda", dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 0.3  # of values of order 1, after three passes under guidance
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for n in (1, 2, 1):
            frames = tiny_frames(n).cuda()
            expected = plain(world, world.imagine, frames, 2, seeds=[3] * n)
            for _ in range(2):
                torch.testing.assert_close(world.imagine(frames, 2, seeds=[3] * n), expected, atol=tolerance, rtol=0)
            latents = world.encode(frames)
            interval = {"guidance_interval": (0.0, 0.5)}
            expected = plain(world, world.rollout, latents, 2, seeds=[3] * n, **interval)
            found = world.rollout(latents, 2, seeds=[3] * n, **interval)
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert len(world._fast.rollouts.values) == len(world._fast.encoders.values) == 2


@pytest.mark.gpu
def test_a_graph_without_a_compiler_is_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosmos_fast, "can_compile", lambda: False)
    world = tiny_world().requires_grad_(False).cuda()
    world.fast_path = "on"
    latents = world.encode(tiny_frames(2).cuda())
    found = world.rollout(latents, 2, seeds=[1, 2])
    monkeypatch.setattr(FastPaths, "capture", lambda paths, device: lambda function: function)
    again = copy.deepcopy(world)
    again.fast_path = "on"
    assert torch.equal(again.encode(tiny_frames(2).cuda()), latents)
    assert torch.equal(again.rollout(latents, 2, seeds=[1, 2]), found)


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_the_second_request_of_a_shape_is_captured(world: CosmosPredict2, uncaptured: None) -> None:
    kept = world._fast.encoders.values
    world.encode(tiny_frames(1))
    world.encode(tiny_frames(2))
    assert not kept
    world.encode(tiny_frames(2))
    assert [key[0] for key in kept] == [2]  # type: ignore[index]


def test_an_announcement_counts_for_the_first_shape(world: CosmosPredict2, uncaptured: None) -> None:
    world.expects_repeats = True
    world.encode(tiny_frames(2))
    world.encode(tiny_frames(1))  # a last batch
    assert [key[0] for key in world._fast.encoders.values] == [2]  # type: ignore[index]


def test_a_cpu_takes_the_plain_path(world: CosmosPredict2) -> None:
    frames = tiny_frames()
    assert torch.equal(world.encode(frames), world.encode(frames))
    assert not world._fast.encoders.values
    world.fast_path = "on"
    with pytest.raises(ValueError, match="fast_path is on, but it needs an NVIDIA GPU, and the model is on cpu"):
        world.encode(frames)


def test_what_is_not_supported_takes_the_plain_path_or_is_an_error(world: CosmosPredict2, uncaptured: None) -> None:
    world.expects_repeats = True
    frames = tiny_frames()
    assert world.vae is not None
    assert world.transformer is not None
    latents = world.encode(frames)
    assert len(world._fast.encoders.values) == 1
    world.transformer.patch_embed.register_forward_hook(lambda *_: None)
    world.rollout(latents, 1, seeds=[0])
    assert not world._fast.rollouts.values
    world.fast_path = "on"
    with pytest.raises(ValueError, match="fast_path is on, but it has forward hooks; set it to auto or off"):
        world.rollout(latents, 1, seeds=[0])
    world.vae.enable_slicing()
    with pytest.raises(ValueError, match="fast_path is on, but its VAE encodes images in tiles or slices"):
        world.encode(frames)
    world.fast_path = "auto"
    assert torch.equal(world.encode(frames), plain(world, world.encode, frames))


def test_weights_are_looked_at_in_each_call() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False)).requires_grad_(False)
    weights = Weights([layers])
    assert weights.unsupported() is None
    assert len(weights.addresses) == 3
    before = weights.addresses
    layers.load_state_dict({name: value.clone() for name, value in layers.state_dict().items()}, assign=True)
    assert weights.unsupported() is None
    assert weights.addresses != before, "other storage"
    assert weights.are_of([layers])
    assert not weights.require_grad()
    layers[0].weight.requires_grad_()
    assert weights.require_grad()
    layers[1].to("meta")
    assert weights.unsupported() == "its weights are on several devices"
    layers[1].weight = Parameter8(torch.zeros(2, 2), requires_grad=False)
    assert weights.unsupported() == "its weights are sharded or quantised"
    layers[1] = nn.Linear(2, 2)
    assert not weights.are_of([layers])
    assert not weights.are_of([nn.Linear(2, 2)])
    with torch.inference_mode():
        made = Weights([nn.Linear(2, 2)])
    assert made.unsupported() == "its weights were made in inference mode, which does not count their changes"


class Parameter8(nn.Parameter):
    """As libraries for quantised weights have them."""


def test_a_copy_starts_without_graphs(world: CosmosPredict2, uncaptured: None) -> None:
    world.fast_path = "on"
    latents = world.encode(tiny_frames())
    for other in (copy.deepcopy(world), pickle.loads(pickle.dumps(world))):
        assert not other._fast.encoders.values
        assert torch.equal(other.encode(tiny_frames()), latents)


def test_transformer_passes_are_those_of_a_rollout(world: CosmosPredict2, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    assert world.transformer is not None
    forward = world.transformer.forward

    def counting(**inputs: Any) -> Any:
        rows.append(len(inputs["hidden_states"]))
        return forward(**inputs)

    world.fast_path = "off"
    monkeypatch.setattr(world.transformer, "forward", counting)
    for interval in (None, (0.3, 0.7)):
        rows.clear()
        world.config.guidance_interval = interval
        names = ("num_inference_steps", "guidance_scale", "guidance_interval")
        world.imagine(tiny_frames(1, 1), 1, seeds=[0], **{name: getattr(world.config, name) for name in names})
        assert transformer_passes(world.config) == sum(rows) > 0


def test_guided_passes() -> None:
    assert guided_passes(4, 3.0, None) == [True] * 4
    assert guided_passes(4, 1.0, (0, 1)) == [False] * 4
    assert guided_passes(4, 3.0, (0.25, 0.75)) == [False, True, True, False]
    assert guided_passes(9, 3.0, (0, 0.5)) == [True] * 5 + [False] * 4


def test_guidance_applies_in_its_interval(world: CosmosPredict2) -> None:
    latents = world.encode(tiny_frames())
    batches: list[int] = []
    assert world.transformer is not None
    hook = world.transformer.register_forward_pre_hook(
        lambda module, args, inputs: batches.append(len(inputs["hidden_states"])), with_kwargs=True
    )
    world.rollout(latents, 1, seeds=[0], num_inference_steps=5, guidance_interval=(0.0, 0.5))
    hook.remove()
    assert batches == [2, 2, 1, 1]
    everywhere = world.rollout(latents, 1, seeds=[0], guidance_interval=(0, 1))
    assert torch.equal(everywhere, world.rollout(latents, 1, seeds=[0]))
    configured = tiny_world(guidance_interval=[0.0, 0.5]).requires_grad_(False)
    interval = world.rollout(latents, 1, seeds=[0], guidance_interval=(0.0, 0.5))
    assert torch.equal(configured.rollout(latents, 1, seeds=[0]), interval)
    assert not torch.equal(interval, everywhere)


@pytest.mark.parametrize("interval", [(0.5,), (0.7, 0.2), (0, 2), "ab", (True, 1), 3])
def test_wrong_intervals_are_refused(world: CosmosPredict2, interval: Any) -> None:
    with pytest.raises(ValueError, match=r"guidance_interval is .*; it must be two shares"):
        world.rollout(world.encode(tiny_frames()), 1, seeds=[0], guidance_interval=interval)
    with pytest.raises(ValueError, match="guidance_interval is"):
        tiny_world(guidance_interval=interval)
