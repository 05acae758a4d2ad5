"""What a world model promises about latents, rollouts and the parts it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.world_models.tiny import TINY_SIZE, tiny_frames, tiny_world, tiny_world_config
from theworld.world_models import WORLD_MODELS, world_model_class
from theworld.world_models.base import WORLD_PARTS
from theworld.world_models.configuration import CosmosPredict2Config
from theworld.world_models.cosmos_predict2 import PART_PREFIXES, CosmosPredict2
from theworld.world_models.cosmos_sampler import noise_schedule, rollout_noise

# Batches of another size take other kernels: measured 5e-7 on latents, and 3e-6 after a rollout's Euler steps.
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def world() -> CosmosPredict2:
    return tiny_world().requires_grad_(False)


@pytest.fixture(scope="module")
def latents(world: CosmosPredict2) -> Tensor:
    return world.encode(tiny_frames(3))


# -- latents ----------------------------------------------------------------------------------------------------------


def test_latents_are_the_normalised_mean(world: CosmosPredict2) -> None:
    assert world.vae is not None
    frames = tiny_frames(2, num_frames=5)
    mean = world.vae.encode(frames).latent_dist.mean
    expected = torch.empty_like(mean)
    for channel, (center, scale) in enumerate(zip([0.1, -0.2, 0.3, 0.0], [0.5, 0.6, 0.7, 0.8], strict=True)):
        expected[:, channel] = (mean[:, channel] - center) / scale

    latents = world.encode(frames)

    assert latents.shape == (2, world.latent_channels, 2, 4, 4)
    torch.testing.assert_close(latents, expected)
    assert torch.equal(latents, world.encode(frames)), "same frames, same latents"


def test_a_batch_is_encoded_as_its_members(world: CosmosPredict2) -> None:
    frames = tiny_frames(3, num_frames=5)
    alone = torch.cat([world.encode(frame[None]) for frame in frames])
    torch.testing.assert_close(world.encode(frames), alone, **CLOSE)


def test_latents_are_float32_whatever_the_weights_are() -> None:
    world = tiny_world().to(torch.bfloat16)
    latents = world.encode(tiny_frames())
    assert latents.dtype == torch.float32
    assert world.rollout(latents, 1, seeds=[0]).dtype == torch.float32
    assert world.decode(latents).dtype == torch.float32


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 32, 32), r"must be \(n, 3, F, H, W\)"),
        (torch.zeros(1, 4, 1, 32, 32), r"must be \(n, 3, F, H, W\)"),
        (torch.zeros(0, 3, 1, 32, 32), r"must be \(n, 3, F, H, W\)"),
        (torch.zeros(1, 3, 1, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 1, 32, 32), 255.0), r"must be in \[-1, 1\]"),
        (torch.full((1, 3, 1, 32, 32), float("nan")), r"must be in \[-1, 1\]"),
        (torch.zeros(1, 3, 4, 32, 32), r"must be 1 \+ 4·k"),
        (torch.zeros(1, 3, 1, 32, 36), "multiple of 8"),
    ],
)
def test_wrong_frames_are_refused(world: CosmosPredict2, frames: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world.encode(frames)


def test_gradients_reach_the_encoder() -> None:
    """All of it for a clip; for one frame all but `time_conv`, which then has no second frame to convolve."""
    for num_frames, without in [
        (1, ["vae.encoder.down_blocks.3.time_conv", "vae.encoder.down_blocks.5.time_conv"]),
        (5, []),
    ]:
        world = tiny_world()
        world.encode(tiny_frames(num_frames=num_frames)).square().sum().backward()
        encoder = {k: p for k, p in world.named_parameters() if k.startswith(PART_PREFIXES["encoder"])}
        still = {k.rpartition(".")[0] for k, p in encoder.items() if p.grad is None or not p.grad.abs().sum() > 0}
        assert sorted(still) == without
        assert not [k for k, p in world.named_parameters() if k not in encoder and p.grad is not None]


def test_gradients_pass_a_rollout_through_its_given_frames() -> None:
    world = tiny_world()
    rolled = world.rollout(world.encode(tiny_frames()), 1, seeds=[0])
    rolled[:, :, 1:].sum().backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in world.parameters()), "the denoise keeps no gradients"
    rolled[:, :, :1].square().sum().backward()
    assert world.vae is not None
    assert world.vae.quant_conv.weight.grad.abs().sum() > 0
    assert torch.is_grad_enabled()


def test_decode_undoes_the_normalisation(world: CosmosPredict2, latents: Tensor) -> None:
    assert world.vae is not None
    raw = latents * torch.tensor([0.5, 0.6, 0.7, 0.8]).view(1, 4, 1, 1, 1)
    raw = raw + torch.tensor([0.1, -0.2, 0.3, 0.0]).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(world.decode(latents), world.vae.decode(raw).sample)


def test_decoded_frames_are_a_clip_in_range(world: CosmosPredict2, latents: Tensor) -> None:
    frames = world.decode(latents.repeat(1, 1, 3, 1, 1) * 100)
    assert frames.shape == (3, 3, 9, TINY_SIZE, TINY_SIZE)
    assert frames.min() >= -1
    assert frames.max() <= 1
    with pytest.raises(ValueError, match=r"must be \(n, 4, T, h, w\)"):
        world.decode(latents[:, :3])


# -- rollouts ---------------------------------------------------------------------------------------------------------


def test_no_world_steps_give_the_latents_and_need_no_transformer(world: CosmosPredict2) -> None:
    small = CosmosPredict2(tiny_world_config(), parts=("encoder",))
    latents = small.encode(tiny_frames())
    assert small.rollout(latents, 0, seeds=[3]) is latents


def test_a_rollout_keeps_what_was_given(world: CosmosPredict2, latents: Tensor) -> None:
    rolled = world.rollout(latents, 2, seeds=[1, 2, 3])
    assert rolled.shape == (3, 4, 3, 4, 4)
    assert torch.equal(rolled[:, :, :1], latents)
    assert rolled[:, :, 1:].std() > 0.1


def test_a_video_so_far_is_kept_and_the_future_appended(world: CosmosPredict2) -> None:
    """P given latent frames and N imagined ones: none of the given is recomputed, and all of them count."""
    past = world.encode(tiny_frames(2, num_frames=9))
    assert past.shape == (2, 4, 3, 4, 4)
    rolled = world.rollout(past, 2, seeds=[1, 2])
    assert rolled.shape == (2, 4, 5, 4, 4)
    assert torch.equal(rolled[:, :, :3], past)
    assert world.decode(rolled).shape == (2, 3, 17, TINY_SIZE, TINY_SIZE)
    alone = torch.cat([world.rollout(past[i : i + 1], 2, seeds=[i + 1]) for i in range(2)])
    torch.testing.assert_close(rolled, alone, **CLOSE)
    for frame in range(3):
        changed = past.clone()
        changed[:, :, frame] += 1
        moved = (world.rollout(changed, 2, seeds=[1, 2]) - rolled)[:, :, 3:]
        assert moved.abs().max() > 1e-3, f"given frame {frame} does not matter to the future"
    with pytest.raises(ValueError, match="has 9 latent frames, and this transformer takes at most 8; use fewer"):
        world.rollout(past, 6, seeds=[1, 2])


def test_a_batch_is_imagined_as_its_members(world: CosmosPredict2, latents: Tensor) -> None:
    together = world.rollout(latents, 2, seeds=[1, 2, 3])
    alone = torch.cat([world.rollout(latents[i : i + 1], 2, seeds=[i + 1]) for i in range(3)])
    reordered = world.rollout(latents.flip(0), 2, seeds=[3, 2, 1]).flip(0)
    torch.testing.assert_close(together, alone, **CLOSE)
    torch.testing.assert_close(together, reordered, **CLOSE)


def test_a_rollout_depends_on_its_seed_and_on_no_other_randomness(world: CosmosPredict2, latents: Tensor) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = world.rollout(latents, 1, seeds=[5, 6, 7])
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, world.rollout(latents, 1, seeds=torch.tensor([5, 6, 7]).tolist()))
    assert not torch.equal(first[1:], world.rollout(latents, 1, seeds=[5, 7, 6])[1:])


def test_noise_of_a_sample_is_its_own_and_grows_at_the_end() -> None:
    noise = rollout_noise([11, 12], 4, (4, 3, 5))
    assert noise.shape == (2, 4, 4, 3, 5)
    assert torch.equal(noise[1:], rollout_noise([12], 4, (4, 3, 5)))
    assert torch.equal(noise[:, :, :2], rollout_noise([11, 12], 2, (4, 3, 5)))


@pytest.mark.parametrize("change", ["prompt_embeds", "negative_prompt_embeds", "guidance_scale", "num_inference_steps"])
def test_every_argument_of_a_rollout_counts(world: CosmosPredict2, latents: Tensor, change: str) -> None:
    values = {"guidance_scale": 2.0, "num_inference_steps": 5}
    argument = values[change] if change in values else torch.randn(6, 8)
    changed = world.rollout(latents, 1, seeds=[1, 2, 3], **{change: argument})  # type: ignore[arg-type]
    assert (changed - world.rollout(latents, 1, seeds=[1, 2, 3]))[:, :, 1:].abs().max() > 1e-3


def test_one_prompt_for_all_is_a_prompt_each(world: CosmosPredict2, latents: Tensor) -> None:
    prompt = torch.randn(6, 8)
    shared = world.rollout(latents, 1, seeds=[1, 2, 3], prompt_embeds=prompt)
    each = world.rollout(latents, 1, seeds=[1, 2, 3], prompt_embeds=prompt.expand(3, 6, 8))
    assert torch.equal(shared, each)


@pytest.mark.parametrize(("guidance", "batch"), [(1.0, 3), (3.0, 6)])
def test_a_step_of_length_zero_is_not_computed(
    world: CosmosPredict2, latents: Tensor, guidance: float, batch: int
) -> None:
    """Four points on the schedule are three runs, guidance one batch of two; progress tells of them."""
    assert world.transformer is not None
    batches: list[int] = []
    progress: list[tuple[int, int]] = []
    hook = world.transformer.patch_embed.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))
    world.rollout(
        latents, 1, seeds=[1, 2, 3], guidance_scale=guidance, progress=lambda *counts: progress.append(counts)
    )
    hook.remove()
    assert batches == [batch] * 3
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_the_schedule_falls_from_80_to_sigma_min() -> None:
    sigmas = noise_schedule(tiny_world_config(), 6)
    torch.testing.assert_close(sigmas[[0, -2, -1]], torch.tensor([80.0, 0.002, 0.002]))
    assert (sigmas[:-1].diff() < 0).all()
    to_zero = tiny_world_config(scheduler={"use_karras_sigmas": True, "final_sigmas_type": "zero"})
    assert noise_schedule(to_zero, 6)[-1] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [1]}, "1 seeds for 3 samples"),
        ({"num_world_steps": -1}, "must be an integer, 0 or more"),
        ({"num_world_steps": 1.0}, "must be an integer, 0 or more"),
        ({"num_world_steps": 8}, "at most 8"),
        ({"num_inference_steps": 1}, "one step returns noise"),
        ({"prompt_embeds": torch.zeros(5, 8)}, r"\(5, 8\); it must be \(6, 8\) or \(3, 6, 8\)"),
        ({"negative_prompt_embeds": torch.zeros(2, 6, 8)}, r"must be \(6, 8\)"),
        ({"latents": torch.zeros(3, 5, 1, 4, 4)}, r"must be \(n, 4, T, h, w\)"),
        ({"latents": torch.zeros(3, 4, 1, 4, 5)}, "multiple of 2"),
    ],
)
def test_wrong_rollouts_are_refused(
    world: CosmosPredict2, latents: Tensor, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        world.rollout(**{"latents": latents, "num_world_steps": 1, "seeds": [1, 2, 3], **arguments})


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts", [(), ("encoder",), ("decoder",), ("encoder", "decoder"), ("transformer",), WORLD_PARTS]
)
def test_only_the_asked_parts_exist(parts: tuple[str, ...]) -> None:
    everything = tiny_world().state_dict()
    prefixes = tuple(prefix for part in parts for prefix in PART_PREFIXES[part])
    expected = {name: t.shape for name, t in everything.items() if name.startswith(prefixes)} if prefixes else {}

    world = CosmosPredict2(tiny_world_config(), parts=parts)

    assert {name: t.shape for name, t in world.state_dict().items()} == expected
    assert world.parts == parts


def test_the_default_config_is_the_published_2b_model() -> None:
    with torch.device("meta"):
        world = CosmosPredict2(CosmosPredict2Config())
    assert world.vae is not None
    assert world.transformer is not None
    assert sum(p.numel() for p in world.transformer.parameters()) == 1_956_413_440
    assert sum(p.numel() for p in world.vae.parameters()) == 126_892_531


def test_every_tensor_belongs_to_one_part() -> None:
    for name in tiny_world().state_dict():
        assert sum(name.startswith(prefixes) for prefixes in PART_PREFIXES.values()) == 1, name


def test_the_encoder_is_the_same_whatever_is_built_beside_it() -> None:
    torch.manual_seed(3)
    alone = CosmosPredict2(tiny_world_config(), parts=("encoder",)).state_dict()
    torch.manual_seed(3)
    beside = CosmosPredict2(tiny_world_config()).state_dict()
    assert all(torch.equal(tensor, beside[name]) for name, tensor in alone.items())


def test_a_missing_part_names_the_call_that_brings_it() -> None:
    latents = torch.zeros(1, 4, 1, 4, 4)
    nothing = CosmosPredict2(tiny_world_config(), parts=())
    with pytest.raises(ValueError, match=r"no encoder in memory \(it holds: nothing\).*parts=\(\.\.\., 'encoder'\)"):
        nothing.encode(tiny_frames())
    with pytest.raises(ValueError, match="no decoder in memory"):
        nothing.decode(latents)
    with pytest.raises(ValueError, match="no transformer in memory"):
        nothing.rollout(latents, 1, seeds=[0])
    with pytest.raises(ValueError, match="no folder to load encoder from"):
        nothing.load_parts("encoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": {"based_im": 4}}, "'based_im' that AutoencoderKLWan does not have"),
        ({"vae": {"z_dim": 4}}, "latents_mean has 16 values"),
        ({"transformer": {"heads": 4}}, "'heads' that CosmosTransformer3DModel does not have"),
        ({"vae": {}}, "it must have 17"),
        ({"scheduler": {"sigma_max": 80.0, "karras": True}}, "'karras' that FlowMatchEulerDiscreteScheduler"),
        ({"scheduler": {"sigma_data": 0.5}}, "it must be 1.0"),
        ({"scheduler": {"stochastic_sampling": True}}, "must be off"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    config = tiny_world_config(**changes)
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        CosmosPredict2(config)


def test_parts_are_checked() -> None:
    with pytest.raises(ValueError, match="no part 'vae'"):
        CosmosPredict2(tiny_world_config(), parts=("vae",))
    with pytest.raises(ValueError, match="is the string 'encoder'"):
        CosmosPredict2(tiny_world_config(), parts="encoder")


def test_the_registry_finds_its_classes() -> None:
    assert world_model_class(tiny_world_config().model_type) is CosmosPredict2
    assert all(issubclass(world_model_class(name), torch.nn.Module) for name in WORLD_MODELS)
    with pytest.raises(ValueError, match="Unknown world model 'genie'"):
        world_model_class("genie")


def test_importing_is_light_and_using_leaves_autograd_on() -> None:
    """With its guardrail installed, importing a Cosmos pipeline would switch autograd off; no test may import one."""
    code = """
import sys, torch, theworld
from theworld.world_models.cosmos_predict2 import CosmosPredict2
theworld.TheWorld  # which also registers the classes with transformers' Auto classes
assert not {"diffusers", "matplotlib", "pymunk"} & set(sys.modules)
from tests.world_models.tiny import tiny_frames, tiny_world
world = tiny_world()
world.rollout(world.encode(tiny_frames()), 1, seeds=[0])
assert torch.is_grad_enabled()
assert not any(name.startswith("diffusers.pipelines.cosmos") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=120)
