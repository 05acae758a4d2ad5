"""Latents by content: equal requests share one entry, shards are whole, and a killed run loses only what it was at."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.nano.gemma import build_config, build_tokenizer
from tests.world_models.tiny import tiny_frames, tiny_world, tiny_world_config, tiny_world_folder
from theworld.inference import latent_cache
from theworld.inference.latent_cache import LatentCache, WorldRequest, compute_with, latents_of, world_identity
from theworld.media.images import frames_of, to_pixels
from theworld.model.configuration import TheWorldConfig


def requests(count: int, steps: int = 1, seed: int = 0) -> list[WorldRequest]:
    return [WorldRequest(pixels, steps, seed + number) for number, pixels in enumerate(tiny_pixels(count))]


def tiny_pixels(count: int, seed: int = 0) -> Tensor:
    """(count, 1, 32, 32, 3) uint8"""
    return torch.from_numpy(to_pixels(tiny_frames(count, seed=seed)))


def counting(calls: list[int]) -> latent_cache.Compute:
    def compute(pixels: Tensor, steps: int, seeds: Sequence[int], prompts: Any) -> Tensor:
        calls.append(len(pixels))
        frames = frames_of(pixels)
        return frames.mean(dim=1, keepdim=True).repeat(1, 1, 1 + steps, 1, 1) + torch.tensor(seeds).view(-1, 1, 1, 1, 1)

    return compute


def test_keys_are_what_the_latents_depend_on() -> None:
    pixels = tiny_pixels(1)[0]
    request = WorldRequest(pixels, 2, 5, "push")
    assert request.key == WorldRequest(pixels.clone(), 2, 5, "push").key
    others = [
        WorldRequest(tiny_pixels(1, seed=1)[0], 2, 5, "push"),
        WorldRequest(pixels, 3, 5, "push"),
        WorldRequest(pixels, 2, 6, "push"),
        WorldRequest(pixels, 2, 5, "pull"),
        WorldRequest(pixels.repeat(5, 1, 1, 1), 2, 5, "push"),
    ]
    assert len({request.key, *(other.key for other in others)}) == 6
    assert request.key == WorldRequest(pixels, 2, 5, "push", moment=1).key  # cut when it is read
    # nothing is imagined: neither seed nor prompt decides anything
    assert WorldRequest(pixels, 0, 5, "push").key == WorldRequest(pixels, 0, 6).key
    assert (
        WorldRequest(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), 0, 0).key == "847c15a393798d976e629eb3f59da3d0"
    ), "earlier caches stay valid"


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    calls: list[int] = []
    cache = LatentCache(tmp_path, "world")
    asked = requests(5)
    assert cache.fill([*asked, *asked], counting(calls), batch_size=2) == 5
    assert calls == [2, 2, 1]
    assert cache.fill(requests(6), counting(calls), batch_size=4) == 1
    assert calls == [2, 2, 1, 1]
    again = LatentCache(tmp_path, "world")
    assert len(again) == 6
    wanted = latents_of(asked, counting([]))
    assert all(torch.equal(again.read(r.key), x) for r, x in zip(asked, wanted, strict=True))
    assert len(LatentCache(tmp_path, "another")) == 0


def test_shards_and_the_clips_of_each_length(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "world")
    asked = [*requests(3, steps=0), *requests(3, steps=2), *requests(2, steps=1)]
    assert cache.fill(asked, counting([]), batch_size=2, shard_entries=3) == 8
    assert len(list(cache.folder.glob("*.safetensors"))) >= 2
    for request in asked:
        assert cache.read(request.key).shape == (1, 1 + request.num_world_steps, 32, 32)


def test_a_run_that_is_cut_loses_only_its_last_shard(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "world")

    def cut(pixels: Tensor, steps: int, seeds: Sequence[int], prompts: Any) -> Tensor:
        if 5 in seeds:
            raise KeyboardInterrupt
        return counting([])(pixels, steps, seeds, prompts)

    with pytest.raises(KeyboardInterrupt):
        cache.fill(requests(8), cut, batch_size=1, shard_entries=2)
    calls: list[int] = []
    again = LatentCache(tmp_path, "world")
    assert len(again) == 4
    assert again.fill(requests(8), counting(calls), batch_size=1) == 4
    assert calls == [1, 1, 1, 1]


def test_two_runs_fill_one_cache(tmp_path: Path) -> None:
    one, other = LatentCache(tmp_path, "world"), LatentCache(tmp_path, "world")
    one.fill(requests(2), counting([]), batch_size=2)
    other.fill(requests(3), counting([]), batch_size=3)
    one.refresh()
    assert len(one) == len(other) == 3


def test_a_worker_process_opens_shards_itself(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "world")
    asked = requests(2)
    cache.fill(asked, counting([]), batch_size=2)
    expected = cache.read(asked[0].key)
    assert torch.equal(pickle.loads(pickle.dumps(cache)).read(asked[0].key), expected)


def test_more_shards_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "OPEN_SHARDS", 2)
    cache = LatentCache(tmp_path, "world")
    asked = requests(6)
    cache.fill(asked, counting([]), batch_size=1, shard_entries=1)
    for request in [*asked, *reversed(asked)]:
        assert cache.read(request.key).shape[0] == 1
    assert len(cache._open) == 2


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "world")
    cache.fill(requests(2), counting([]), batch_size=2)
    (shard,) = cache.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged .*delete that file"):
        LatentCache(tmp_path, "world")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fill it with `theworld cache CONFIG`"):
        LatentCache(tmp_path, "world").read("0" * 32)


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LatentCache(tmp_path, "world")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache.fill(requests(2), counting([]), batch_size=2)
    assert not list(cache.folder.iterdir())
    monkeypatch.undo()
    left = cache.folder / ".old.safetensors.1.writing"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    young = cache.folder / ".new.safetensors.2.writing"
    young.write_bytes(b"half")
    assert cache.fill(requests(2), counting([]), batch_size=2) == 2
    assert young.exists()  # another run may be writing it
    assert not left.exists()


def test_the_real_world_model_makes_the_same_latents_through_the_cache(tmp_path: Path) -> None:
    world = tiny_world()
    compute = compute_with(world, world.config)
    asked = requests(3, steps=2)
    cache = LatentCache(tmp_path, "world")
    cache.fill(asked, compute, batch_size=2)
    direct = latents_of(asked, compute)
    for request, latents in zip(asked, direct, strict=True):
        torch.testing.assert_close(cache.read(request.key), latents, atol=1e-5, rtol=1e-5)
    assert cache.read(asked[0].key).shape == (4, 3, 4, 4)


def test_another_world_model_has_another_cache(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["a b"] * 20, vocab_size=300)
    vlm = build_config(
        tokenizer, {"hidden_size": 32, "num_attention_heads": 2}, {"image_size": 32, "patch_size": 8}, 16
    )

    def identity(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> str:
        config = TheWorldConfig(
            vlm_config=vlm,
            world_config=tiny_world_config(**changes),
            world_name_or_path=str(folder),
            world_image_size=32,
        )
        return world_identity(config, dtype)[0]

    one = tiny_world_folder(tmp_path / "one")
    names = [
        identity(one),
        identity(tiny_world_folder(tmp_path / "other", seed=1)),
        identity(one, torch.bfloat16),
        identity(one, num_inference_steps=7),
        identity(one, guidance_scale=1.0),
        identity(one, guidance_interval=[0.0, 0.5]),
    ]
    assert len(set(names)) == 6
    default = TheWorldConfig(vlm_config=vlm, world_config=tiny_world_config(), world_name_or_path=str(one))
    made_by = world_identity(default, torch.float32)[1]
    assert "guidance_interval" not in made_by["world"]  # caches from before it existed stay valid
    assert identity(tiny_world_folder(tmp_path / "copy")) == names[0]  # where it lies does not matter
    assert identity(one, weights_from="nvidia") == names[0]
