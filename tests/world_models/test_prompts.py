"""What a world prompt is to a world model: the pipeline's embedding, made once, kept, and only where there is a T5."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5EncoderModel

from tests.world_models.tiny import hub_copy, tiny_frames, tiny_published_folder, tiny_world, tiny_world_folder
from theworld.world_models import guardrail, prompts
from theworld.world_models.cosmos_predict2 import CosmosPredict2
from theworld.world_models.prompts import DEFAULT_NEGATIVE_PROMPT, cache_file, embed_prompts, encode_texts

CUP = "the cup is pushed to the left"
SHAPE = (512, 8)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_published_folder(tmp_path_factory.mktemp("world") / "cosmos")


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(published, tmp_path / "cosmos"))


@pytest.fixture(autouse=True)
def hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the guardrail was asked; it lets everything pass."""
    seen: list[str] = []
    monkeypatch.setattr(guardrail, "require_installed", lambda: None)
    monkeypatch.setattr(guardrail, "check_prompt", lambda prompt, device: seen.append(prompt))
    return seen


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of each time that the text encoder was read."""
    times: list[list[str]] = []
    real = prompts.encode_texts

    def spy(folder: Path, texts: list[str], *arguments: object) -> list[torch.Tensor]:
        times.append(list(texts))
        return real(folder, texts, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prompts, "encode_texts", spy)
    return times


# -- what the encoder says --------------------------------------------------------------------------------------------


def test_the_negative_prompt_is_the_published_one() -> None:
    from diffusers.pipelines.cosmos import pipeline_cosmos2_video2world as module

    assert module.DEFAULT_NEGATIVE_PROMPT == DEFAULT_NEGATIVE_PROMPT


@pytest.mark.parametrize("prompt", [CUP, "", DEFAULT_NEGATIVE_PROMPT])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_embeddings_are_the_pipelines(published: Path, prompt: str, dtype: torch.dtype, tolerance: float) -> None:
    """Nothing is padded here before the zeros, so it is equal to rounding: measured 7e-7 in float32, on values of 3."""
    from diffusers import Cosmos2VideoToWorldPipeline

    class Pipeline(Cosmos2VideoToWorldPipeline):
        def __init__(self) -> None:
            self.tokenizer = AutoTokenizer.from_pretrained(published / "tokenizer")
            self.text_encoder = T5EncoderModel.from_pretrained(published / "text_encoder", dtype=dtype)

    with torch.no_grad():
        theirs = Pipeline()._get_t5_prompt_embeds([prompt], 512, torch.device("cpu"), dtype)[0]

    (ours,) = encode_texts(published, [prompt], SHAPE, dtype=dtype)

    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    tokens = len(AutoTokenizer.from_pretrained(published / "tokenizer")(prompt).input_ids)
    assert ours[:tokens].any(dim=1).all()
    assert not ours[tokens:].any(), "padded positions are zero"


def test_a_prompt_is_embedded_alone_whatever_is_beside_it(published: Path) -> None:
    together = encode_texts(published, ["left", CUP], SHAPE)
    assert torch.equal(together[1], encode_texts(published, [CUP], SHAPE)[0])


def test_a_prompt_that_is_too_long_is_not_cut(published: Path) -> None:
    with pytest.raises(ValueError, match=r"'a a .* has 601 tokens, and .* at most 512; shorten it"):
        embed_prompts(published, None, ["a " * 600], SHAPE)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_an_embedding_is_made_once(published: Path, hf_home: Path, read: list[list[str]]) -> None:
    first = embed_prompts(published, None, [CUP, "", CUP], SHAPE)
    again = embed_prompts(published, None, ["", CUP], SHAPE)
    more = embed_prompts(published, None, [CUP, "left"], SHAPE)
    assert read == [[CUP, ""], ["left"]]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[0], more[0])
    assert not torch.equal(first[0], first[1])
    files = list((hf_home / "theworld" / "prompts").iterdir())
    assert len(files) == 3, "three prompts, and no half-written file"
    assert {file.suffix for file in files} == {".safetensors"}


def test_all_that_an_embedding_depends_on_is_in_its_name(folder: Path, tmp_path: Path) -> None:
    names = {cache_file(folder, folder, SHAPE, prompt) for prompt in ("left", "right", "")}
    names.add(cache_file(folder, folder, (16, 8), "left"))
    names |= {cache_file("nvidia/a", tmp_path / commit, SHAPE, "left") for commit in ("1", "2")}
    names.add(cache_file("nvidia/b", tmp_path / "1", SHAPE, "left"))
    weights = folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(weights), "more": torch.zeros(1)}, weights)
    names.add(cache_file(folder, folder, SHAPE, "left"))
    assert len(names) == 8


@pytest.mark.parametrize("damage", ["cut", "another shape"])
def test_a_damaged_cache_is_made_anew(
    published: Path, read: list[list[str]], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    (first,) = embed_prompts(published, None, [CUP], SHAPE)
    file = cache_file(published, published, SHAPE, CUP)
    file.write_bytes(file.read_bytes()[:50])
    if damage == "another shape":
        save_file({"prompt": torch.zeros(2, 2)}, file)
    assert torch.equal(embed_prompts(published, None, [CUP], SHAPE)[0], first)
    assert torch.equal(load_file(file)["prompt"], first)
    assert read == [[CUP], [CUP]]
    assert ("damaged" in caplog.text) == (damage == "cut")


def test_a_cache_that_cannot_be_written_costs_no_answer(
    published: Path, hf_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hf_home.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert embed_prompts(published, None, [CUP], SHAPE)[0].any()
    assert "could not be cached" in caplog.text


def test_a_repository_is_known_by_its_commit(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[list[str]]
) -> None:
    """Another commit is another encoder; a cached prompt needs none of the encoder's gigabytes."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = hub_copy(published, tmp_path / "hub", "nvidia/Cosmos-Tiny")
    (first,) = embed_prompts(name, None, [CUP], SHAPE)
    snapshots = tmp_path / "hub" / "models--nvidia--Cosmos-Tiny" / "snapshots"
    shutil.rmtree(snapshots / ("0" * 40) / "text_encoder")
    assert torch.equal(embed_prompts(name, "main", [CUP], SHAPE)[0], first)
    assert read == [[CUP]]
    (snapshots / ("0" * 40)).rename(snapshots / ("1" * 40))
    (snapshots.parent / "refs" / "main").write_text("1" * 40)
    with pytest.raises(ValueError, match=r"nvidia/Cosmos-Tiny has no local text_encoder/config\.json.*go online"):
        embed_prompts(name, None, [CUP], SHAPE)


# -- a folder that does not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"has no local {name}"):
        embed_prompts(folder, None, [CUP], SHAPE)


def test_spoilt_encoders_are_refused(folder: Path) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    with pytest.raises(ValueError, match="has width 8; its transformer needs 16"):
        embed_prompts(folder, None, [CUP], (512, 16))
    save_file({key: tensor for key, tensor in tensors.items() if "final" not in key}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys.*final_layer_norm"):
        embed_prompts(folder, None, [CUP], SHAPE)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        embed_prompts(folder, None, [CUP], SHAPE)
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        embed_prompts(folder, None, [CUP], SHAPE)


# -- the world model --------------------------------------------------------------------------------------------------


def test_a_prompt_steers_the_future_and_another_steers_it_elsewhere(published: Path, asked: list[str]) -> None:
    world = CosmosPredict2.from_pretrained(published)
    latents = world.encode(tiny_frames())
    texts = world.embed_prompts(["", CUP, "the cup is pushed to the right"])
    assert texts.shape == (3, *SHAPE)
    plain, left, right = (world.rollout(latents, 2, seeds=[1], prompt_embeds=text)[:, :, 1:] for text in texts)
    assert torch.equal(plain, world.rollout(latents, 2, seeds=[1])[:, :, 1:]), "an empty prompt is the default"
    assert min((plain - left).abs().max(), (left - right).abs().max(), (plain - right).abs().max()) > 1e-3
    assert asked == [CUP, "the cup is pushed to the right"], "the guardrail sees what people wrote and no more"


def test_the_encoder_is_read_once_for_the_defaults_and_a_prompt(
    published: Path, asked: list[str], read: list[list[str]]
) -> None:
    world = CosmosPredict2.from_pretrained(published)
    assert world.prompt_embeds is None, "nothing is embedded before owner imagines"
    world.embed_prompts([CUP])
    world.load_default_prompts()
    CosmosPredict2.from_pretrained(published).load_default_prompts()
    assert read == [[CUP, "", DEFAULT_NEGATIVE_PROMPT]]
    assert not any("text_encoder" in name for name, _ in world.named_modules()), "it is not kept in memory"


def test_stored_defaults_are_used_and_only_the_prompt_is_embedded(
    folder: Path, asked: list[str], read: list[list[str]]
) -> None:
    stored = {"default": torch.randn(SHAPE), "negative": torch.randn(SHAPE)}
    save_file(stored, folder / "prompt_embeds.safetensors")
    world = CosmosPredict2.from_pretrained(folder)
    world.load_default_prompts()
    assert read == []
    assert torch.equal(world.embed_prompts(["", CUP])[0], stored["default"])
    assert read == [[CUP]]
    assert world.embedded_prompts == {}, "the folder has them, so that an adapter need not keep them"


def test_embedded_defaults_can_be_kept_and_given_back(folder: Path, read: list[list[str]], hf_home: Path) -> None:
    world = CosmosPredict2.from_pretrained(folder)
    world.load_default_prompts()
    kept = world.embedded_prompts
    shutil.rmtree(hf_home)
    shutil.rmtree(folder / "text_encoder")
    for parts in (("encoder",), ("encoder", "transformer")):
        other = CosmosPredict2.from_pretrained(folder, parts=parts)
        other.keep_prompts(kept, "an adapter")
        other.load_parts("transformer")
        other.load_default_prompts()
        assert other.prompt_embeds is not None
        assert torch.equal(other.prompt_embeds, kept["default"])
    assert len(read) == 1
    with pytest.raises(ValueError, match=r"an adapter: default is \(2, 8\) and must be \(512, 8\)"):
        other.keep_prompts({**kept, "default": torch.zeros(2, 8)}, "an adapter")


def test_a_model_without_a_text_encoder_takes_no_prompt(tmp_path: Path, asked: list[str]) -> None:
    folder = tiny_world_folder(tmp_path / "own")
    for world in (tiny_world(), CosmosPredict2.from_pretrained(folder)):
        with pytest.raises(ValueError, match=r"no text encoder, so it cannot take a world prompt; omit the prompt"):
            world.embed_prompts([CUP])
        assert world.prompt_embeds is not None
        assert torch.equal(world.embed_prompts(["", ""])[1], world.prompt_embeds)
    (folder / "prompt_embeds.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no prompt_embeds\.safetensors"):
        CosmosPredict2.from_pretrained(folder).load_default_prompts()
    assert asked == []


def test_prompts_need_the_transformer(published: Path, asked: list[str]) -> None:
    world = CosmosPredict2.from_pretrained(published, parts=("encoder",))
    with pytest.raises(ValueError, match=r"no transformer in memory .* load_parts\('transformer'\)"):
        world.embed_prompts([CUP])


def test_a_loop_over_images_asks_once(
    published: Path, asked: list[str], read: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = CosmosPredict2.from_pretrained(published)
    first = world.embed_prompts([CUP])
    monkeypatch.setattr(prompts, "find_folder", lambda *arguments: pytest.fail("the folder was looked for again"))
    assert torch.equal(world.embed_prompts(["", CUP, CUP])[1:], first.expand(2, -1, -1))


def test_an_encoder_that_does_not_fit_on_the_gpu_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = torch.nn.Linear(10, 99)  # 4,356 bytes
    for free, device in ((6000, "cuda:1"), (5000, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where, free=free: (free, 80_000))
        assert prompts._device_with_memory(torch.device("cuda:1"), encoder) == torch.device(device)
    assert prompts._device_with_memory(torch.device("cpu"), encoder) == torch.device("cpu")
