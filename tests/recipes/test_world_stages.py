"""Stages (a) and (b) of nano at toy size: the maths agrees with diffusers', and the whole path runs and resumes."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.nano.buffers import FrameBuffer, LatentBank
from recipes.nano.clips import ClipFactory, ClipSettings, load_labelled, waiting_shards
from recipes.nano.flow import NoiseLevels, flow_inputs, flow_time, sample_times
from recipes.nano.foresight import Foresight, ForesightSettings, reconstruction_psnr
from recipes.nano.progress import StageClock
from recipes.nano.vae import VAESettings, encode_normalised, random_windows, to_pixels, train_vae
from recipes.nano.wan import decode_frames, encode_moments
from recipes.nano.world import NANO_TRANSFORMER, NANO_VAE, TransformerSettings, nano_world_config, train_transformer
from theworld.datasets.physics import FAMILIES, IMAGE_SIZE, NUM_FRAMES, make_clip, make_wild_frames
from theworld.world_models.configuration import COSMOS_SCHEDULER, CosmosPredict2Config
from theworld.world_models.cosmos_predict2 import CosmosPredict2

CPU = torch.device("cpu")
CLIPS = ClipSettings(workers=1, per_family=1, wild_per_family=1, max_clips=24, labelled_per_family=4, head_start=1)


def tiny_config() -> CosmosPredict2Config:
    return CosmosPredict2Config(
        vae={**NANO_VAE, "base_dim": 4, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        transformer={
            **NANO_TRANSFORMER,
            "in_channels": 5,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "text_embed_dim": 8,
            "adaln_lora_dim": 8,
        },
        scheduler=dict(COSMOS_SCHEDULER),
        text_tokens=4,
        num_inference_steps=3,
        guidance_scale=1.0,
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    with ClipFactory(folder, CLIPS, FAMILIES) as factory:
        while not factory.finished():
            factory.check()
            time.sleep(0.05)
        assert factory.clips_drawn() == 24
    return folder


@pytest.fixture
def some_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of the training shards that a reader may delete."""
    (tmp_path / "train").mkdir()
    for shard in waiting_shards(shards):
        (tmp_path / "train" / shard.name).write_bytes(shard.read_bytes())
    return tmp_path


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_whole_clip_passes_equal_diffusers_chunks(frames: int) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    vae = CosmosPredict2(config, parts=("encoder", "decoder")).vae
    assert vae is not None
    pixels = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        mean, logvar = encode_moments(vae, pixels)
        decoded = decode_frames(vae, mean)
        expected = vae.decode(mean).sample
    torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logvar, posterior.logvar, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded.clamp(-1, 1), expected, atol=1e-5, rtol=1e-5)


def test_training_inputs_are_what_a_rollout_feeds_the_transformer() -> None:
    """The rollout's first call: same hidden states for the same noise, same times, same mask."""
    config = tiny_config()
    world = CosmosPredict2(config, parts=("transformer",))
    calls: list[dict[str, torch.Tensor]] = []
    assert world.transformer is not None
    world.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    latents = torch.randn(2, 4, 3, 2, 2)
    world.rollout(latents[:, :, :1], 2, seeds=[1, 2])
    fed, sigma = calls[0], torch.tensor(80.0)
    noise = fed["hidden_states"] / (80.0 / 81.0)  # x0 = 0 below: what is fed is t·noise
    nothing = torch.cat([latents[:, :, :1], torch.zeros(2, 4, 2, 2, 2)], dim=2)
    inputs = flow_inputs(nothing, noise, flow_time(sigma).expand(2), 1, config.sigma_conditioning)
    torch.testing.assert_close(inputs.hidden, fed["hidden_states"])
    torch.testing.assert_close(inputs.timestep, fed["timestep"])
    torch.testing.assert_close(inputs.condition_mask, fed["condition_mask"])


def test_a_perfect_velocity_gives_back_the_clean_latents() -> None:
    latents, noise = torch.randn(3, 4, 3, 2, 2), torch.randn(3, 4, 3, 2, 2)
    times = sample_times(3, NoiseLevels(), CPU)
    inputs = flow_inputs(latents, noise, times, 1, 0.0001)
    t = times.view(3, 1, 1, 1, 1)
    clean = (inputs.hidden - t * inputs.target)[:, :, 1:]  # (1-t)·x0 + t·n - t·(n - x0)
    torch.testing.assert_close(clean, latents[:, :, 1:])
    assert torch.equal(inputs.hidden[:, :, :1], latents[:, :, :1])


def test_noise_levels_stay_in_the_schedule_and_often_start_it() -> None:
    times = sample_times(4000, NoiseLevels(), CPU)
    assert times.min() >= flow_time(torch.tensor(0.002))
    assert times.max() <= flow_time(torch.tensor(80.0)) + 1e-6
    assert (times > 0.9876).float().mean() > 0.09


def test_windows_mark_what_moves() -> None:
    clips = torch.full((1, 17, 16, 16, 3), 200, dtype=torch.uint8)
    for frame in range(17):
        clips[0, frame, 8, frame % 16] = 0  # a dot that runs along one row
    pixels, moving = random_windows(clips, 17)
    assert pixels.shape == (1, 3, 17, 16, 16)
    assert moving[0, 4, 8, 4]
    assert not moving[0, :, 0].any()


def test_shards_are_deterministic_and_carry_no_labels_in_training(shards: Path) -> None:
    training = np.load(waiting_shards(shards)[1])
    assert training.shape == (6, NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert np.array_equal(training[0], make_clip(FAMILIES[0], "train", 1).frames)
    assert np.array_equal(training[1], make_wild_frames(FAMILIES[0], 1))
    assert not list((shards / "train").glob("*.json"))
    labelled = load_labelled(shards, CLIPS, FAMILIES)
    assert labelled is not None
    assert labelled.outcomes[0] == make_clip(labelled.families[0], "validation", 0).outcome
    assert sorted(labelled.families) == sorted(FAMILIES * 4)


@pytest.mark.slow
def test_frames_are_handed_out_once_each_and_free_their_place(some_shards: Path) -> None:
    every = np.concatenate([np.load(shard) for shard in waiting_shards(some_shards)])
    taken: list[torch.Tensor] = []
    with FrameBuffer(some_shards, 12, (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE), CPU) as frames:  # half of what comes
        while sum(len(clips) for clips in taken) < len(every):
            taken.append(frames.take(5))
    assert np.array_equal(torch.cat(taken).numpy(), every)
    assert not waiting_shards(some_shards)


def test_latents_survive_a_restart(tmp_path: Path) -> None:
    latents = torch.randn(6, 4, 2, 2, 2).bfloat16().float()
    bank = LatentBank(tmp_path, 5, (4, 2, 2, 2), CPU, spill=3)
    bank.add(latents[:3])
    bank.add(latents[3:])  # one too many
    assert bank.full()
    assert LatentBank(tmp_path, 5, (4, 2, 2, 2), CPU).count == 3  # the rest had not been spilled


def test_the_clock_counts_a_restart_and_leaves_out_pauses() -> None:
    clock = StageClock(100.0, spent=40.0)
    before = clock.spent()
    with clock.paused():
        clock._start -= 30.0
    assert clock.share() == pytest.approx(0.4 + (clock.spent() - 40.0) / 100, abs=1e-6)
    assert clock.spent() >= before


def test_nano_fits_its_share_of_the_wheel() -> None:
    with torch.device("meta"):
        world = CosmosPredict2(nano_world_config())
    assert world.transformer is not None
    assert world.vae is not None
    mebibytes = [2 * sum(p.numel() for p in part.parameters()) / 2**20 for part in (world.transformer, world.vae)]
    assert 24 < mebibytes[0] <= 27
    assert mebibytes[1] < 5.2


@pytest.mark.slow
def test_both_stages_run_resume_and_give_a_world_that_rolls_out(
    shards: Path, some_shards: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config, work = tiny_config(), tmp_path / "work"
    labelled = load_labelled(shards, CLIPS, FAMILIES)
    assert labelled is not None
    clips = torch.from_numpy(labelled.frames[:2])
    stage_a = VAESettings(seconds=1.0, phases=((0.5, 1, 4), (1.0, 5, 2)), min_clips=6, log_seconds=0.2, warmup_steps=2)
    stage_b = TransformerSettings(
        seconds=1.0, batch=4, min_clips=6, log_seconds=0.2, measure_seconds=0.4, warmup_steps=2
    )
    with FrameBuffer(some_shards, 48, (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE), CPU) as frames:
        vae = train_vae(stage_a, config, frames, work, CPU, measure=lambda vae, wait: reconstruction_psnr(vae, clips))
        latents = encode_normalised(vae, frames.sample(6))
        assert latents.std() == pytest.approx(1.0, abs=0.5)
        foresight = Foresight(labelled, vae, ForesightSettings(scenes=2, reader_steps=3, reader_batch=4), CPU)
        measured: list[int] = []

        def measure(folder: Path, step: int, count: int) -> None:
            measured.append(step)
            foresight.record(work / "foresight.csv", folder, step, count, (2,))

        folder = train_transformer(stage_b, config, vae, frames, work, CPU, measure=measure)
        again = train_vae(stage_a, config, frames, work, CPU)
        assert train_transformer(stage_b, config, again, frames, work, CPU) == folder
        (folder / "model_index.json").unlink()  # as if the run had been killed at its end: it resumes from there
        train_transformer(stage_b, config, again, frames, work, CPU)
    assert len(measured) >= 2
    assert measured[-1] > measured[0] > 0
    foresight.contact_sheet(work / "sheet.png", folder, 2, scenes=1)
    assert (work / "sheet.png").stat().st_size > 1000

    world = CosmosPredict2.from_pretrained(folder, dtype=torch.float32)
    first = world.encode(to_pixels(clips)[:, :, :1])
    torch.testing.assert_close(first, encode_normalised(vae, clips)[:, :, :1], atol=1e-4, rtol=1e-4)
    assert world.decode(world.rollout(first, 4, seeds=[0, 1])).shape == (2, 3, NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE)
    rows = (work / "vae_loss.csv").read_text().splitlines()
    assert rows[0].startswith("seconds,step,frames,loss")
    assert len(rows) > 1
