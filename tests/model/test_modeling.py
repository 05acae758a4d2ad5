"""Claims about the fused model: equal to Gemma when off, the same answer however it is run, and it listens when on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Gemma3ForConditionalGeneration
from transformers.models.gemma3 import Gemma3Processor

from tests.tiny import tiny_bases, tiny_model
from tests.world_models.tiny import TINY_SIZE
from theworld import TheWorldConfig
from theworld.model import freezing
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor
from theworld.world_models.cosmos_predict2 import CosmosPredict2

TOLERANCE = 1e-4
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def fused(bases: dict[str, str]) -> tuple[TheWorldForConditionalGeneration, TheWorldProcessor]:
    return tiny_model(bases)


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def ask(
    processor: Gemma3Processor, questions: list[str], images: list[Image.Image], **kwargs
) -> dict[str, torch.Tensor]:
    prompts = [f"<bos><start_of_turn>user\n<start_of_image>{q}<end_of_turn>\n<start_of_turn>model\n" for q in questions]
    return processor(
        images=[[own] for own in images], text=prompts, padding=True, padding_side="left", return_tensors="pt",
        add_special_tokens=False, **kwargs,
    )  # fmt: skip


def test_world_off_is_gemma_bit_for_bit(bases: dict[str, str]) -> None:
    model, processor = tiny_model(bases, lora=LORA)
    gemma = Gemma3ForConditionalGeneration.from_pretrained(bases["vlm_name_or_path"], dtype=torch.float32).eval()
    gemma_processor = Gemma3Processor.from_pretrained(bases["vlm_name_or_path"])
    questions, images = ["Which bin will the ball land in?", "yes"], [image(0), image(1)]
    ours = ask(processor, questions, images, enable_world=False)
    theirs = ask(gemma_processor, questions, images)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    with torch.no_grad(), model.lora_disabled():
        assert torch.equal(model(**ours).logits, gemma(**theirs).logits)
    with torch.no_grad():
        assert not torch.equal(model(**ours).logits, gemma(**theirs).logits), "the LoRA is there when it is on"


def test_a_loaded_gemma_keeps_its_causal_mask_when_it_is_injected(bases: dict[str, str]) -> None:
    """TheWorldConfig is given the very config that the Gemma at hand runs on, as a caller naturally would."""
    vlm = Gemma3ForConditionalGeneration.from_pretrained(bases["vlm_name_or_path"])
    world_config = CosmosPredict2.read_config(bases["world_name_or_path"])
    config = TheWorldConfig(
        vlm_config=vlm.config, world_config=world_config, world_image_size=TINY_SIZE, enable_world=False
    )
    assert vlm.config.get_text_config()._attn_implementation == "sdpa"
    model = TheWorldForConditionalGeneration(config, vlm=vlm).eval()
    ids = torch.tensor([[2, 20, 30, 40, 50]])
    with torch.no_grad():
        whole, start = model(input_ids=ids).logits, model(input_ids=ids[:, :3]).logits
    torch.testing.assert_close(whole[:, :3], start, atol=1e-5, rtol=1e-5)


def test_world_tokens_change_logits(fused) -> None:
    model, processor = fused
    inputs = ask(processor, ["Which bin?"], [image()])
    frames, seeds, steps = (inputs.pop(name) for name in ("world_frames", "world_seeds", "num_world_steps"))
    with torch.no_grad():
        latents = model.world_latents_of(frames, int(steps[0]), seeds.tolist())
        logits = model(**inputs, world_latents=latents).logits[:, -1]
        other_future = latents.clone()
        other_future[:, :, 1:] += 1.0
        assert (model(**inputs, world_latents=other_future).logits[:, -1] - logits).abs().max() > 1e-3
        assert (model(**inputs, world_latents=latents.roll(1, dims=4)).logits[:, -1] - logits).abs().max() > 1e-3


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_generation_equals_uncached(fused, cache: str) -> None:
    model, processor = fused
    inputs = ask(processor, ["Which bin will the ball land in?"], [image()])
    arguments = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **arguments, use_cache=False)
    cached = model.generate(**inputs, **arguments, cache_implementation=cache)
    assert torch.equal(plain.sequences, cached.sequences)
    for one, other in zip(plain.logits, cached.logits, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_left_padded_batch_equals_single(fused, cache: str) -> None:
    model, processor = fused
    questions, images = ["Which bin will the ball land in? left middle right", "yes"], [image(0), image(1)]
    arguments = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    arguments["cache_implementation"] = cache
    batch_inputs = ask(processor, questions, images)
    assert not batch_inputs["attention_mask"].all(), "one of the two is padded"
    batch = model.generate(**batch_inputs, **arguments)
    for row in range(2):
        alone = model.generate(**ask(processor, questions[row : row + 1], images[row : row + 1]), **arguments)
        new = len(alone.logits)
        assert torch.equal(batch.sequences[row, batch_inputs["input_ids"].shape[1] :][:new], alone.sequences[0, -new:])
        for one, other in zip(batch.logits, alone.logits, strict=False):
            torch.testing.assert_close(one[row], other[0], atol=TOLERANCE, rtol=0)


def test_same_image_same_future_whatever_the_question(fused) -> None:
    _, processor = fused
    one = ask(processor, ["yes"], [image()])
    other = ask(processor, ["Which bin?", "no"], [image(1), image()])
    assert one["world_seeds"][0] == other["world_seeds"][1] != other["world_seeds"][0]
    assert ask(processor, ["yes"], [image()], seed=1)["world_seeds"][0] != one["world_seeds"][0]


def test_placeholders_and_tokens_must_match(fused) -> None:
    model, processor = fused
    inputs = ask(processor, ["Which bin?"], [image()])
    without = {name: value for name, value in inputs.items() if not name.startswith(("world", "num_world"))}
    with pytest.raises(ValueError, match="pass world_frames"):
        model(**without)
    with pytest.raises(ValueError, match=r"50 world placeholders, but there are 34 world tokens"):
        model(**{**inputs, "num_world_steps": torch.tensor([1])})
    with pytest.raises(ValueError, match="one of"):
        model(**inputs, world_embeds=torch.zeros(1, 50, 32))


def test_more_world_steps_than_the_model_has(fused) -> None:
    _, processor = fused
    with pytest.raises(ValueError, match="num_world_steps is 5; this model takes 0 to 4"):
        ask(processor, ["yes"], [image()], num_world_steps=5)


def test_save_and_load_give_the_same_answers(bases: dict[str, str], tmp_path: Path) -> None:
    model, processor = tiny_model(bases, lora=LORA, projector="mlp", spatial_merge=2)
    freezing.train_only(model, ("projector", "lora"))
    with torch.no_grad():
        for _, parameter in freezing.parameters_of(model, ("projector", "lora")):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    inputs = ask(processor, ["Which bin?"], [image()])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    again = ask(AutoProcessor.from_pretrained(tmp_path / "adapter"), ["Which bin?"], [image()])
    assert isinstance(loaded, TheWorldForConditionalGeneration)
    for name in inputs:
        assert torch.equal(inputs[name], again[name]), name
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, loaded(**again).logits, atol=1e-6, rtol=0)
    assert (tmp_path / "adapter" / "model.safetensors").stat().st_size < 40_000, "the adapter holds no base weights"


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_a_resampler_from_the_processor_to_the_logits(bases: dict[str, str], tmp_path: Path, steps: int) -> None:
    model, processor = tiny_model(bases, projector="resampler", resampler_tokens=5, num_world_steps=steps)
    inputs = ask(processor, ["Which bin?", "yes"], [image(0), image(1)])
    assert (inputs["input_ids"] == model.config.world_token_id).sum(dim=1).tolist() == [5 * (1 + steps) + 2] * 2
    freezing.train_only(model, ("projector",))
    with torch.no_grad():
        for _, parameter in freezing.parameters_of(model, ("projector",)):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    loaded = TheWorldForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, loaded(**inputs).logits, atol=TOLERANCE, rtol=0)
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 2
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    still = [n for n, p in freezing.parameters_of(model, ("projector",)) if p.grad is None or not p.grad.any()]
    assert not still


def test_full_export_needs_nothing_else(bases: dict[str, str], tmp_path: Path) -> None:
    model, _ = tiny_model(bases)
    model.save_pretrained(tmp_path / "full", full=True)
    moved = tmp_path / "moved"
    (tmp_path / "full").rename(moved)
    loaded = TheWorldForConditionalGeneration.from_pretrained(
        moved, dtype=torch.float32, world_parts=("encoder", "transformer")
    )
    inputs = ask(TheWorldProcessor.from_pretrained(moved), ["Which bin?"], [image()])
    loaded.projector.load_state_dict(model.projector.state_dict())  # untrained, so not part of any checkpoint
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


def test_an_adapter_that_does_not_fit_is_refused(bases: dict[str, str], tmp_path: Path) -> None:
    model, _ = tiny_model(bases)
    freezing.train_only(model, ("projector",))
    model.save_pretrained(tmp_path)
    tensors = model.adapter_tensors()
    tensors["projector.extra"] = tensors.pop("projector.row")
    with pytest.raises(
        ValueError, match=r"1 tensor missing \(projector.row\), 1 tensor unexpected \(projector.extra\)"
    ):
        TheWorldForConditionalGeneration.from_pretrained(tmp_path).load_adapter_tensors(tensors, "this file")
    wrong = {**model.adapter_tensors(), "projector.row": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=r"projector.row is \(3, 3\) there and \(4, 32\) here"):
        TheWorldForConditionalGeneration.from_pretrained(tmp_path).load_adapter_tensors(wrong, "this file")


# Tensors that two steps on a still image leave alone, each with its reason.
STAY = {
    "world.vae.encoder": "time_conv",  # at one frame the VAE's temporal downsampling has nothing to fold
    "vlm.model.vision_tower": "k_proj.bias",  # softmax ignores what is added to all keys alike
}


@pytest.mark.parametrize("parts", [("projector",), ("lora",), ("vision",), ("language",), ("vae_encoder",)])
def test_what_learns_moves_and_nothing_else(bases: dict[str, str], parts: tuple[str, ...]) -> None:
    # projection alone: the embeddings of a fused model start at zero and still have to move
    lora = {**LORA, "init_lora_weights": True} if parts == ("lora",) else None
    model, processor = tiny_model(bases, num_world_steps=0, lora=lora, projector="mlp")
    freezing.train_only(model, parts)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    inputs = ask(processor, ["Which bin?", "Is the red ball on the left?"], [image(0), image(1)], num_world_steps=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), before[name])}
    expected = {name for name, _ in freezing.parameters_of(model, parts)}
    assert moved <= expected, f"frozen but moved: {sorted(moved - expected)}"
    stayed = {name for name in expected - moved if not any(p in name and s in name for p, s in STAY.items())}
    # rows of the temporal embedding beyond the last world step get no gradient, but row 0 does
    assert not stayed, f"unfrozen but still: {sorted(stayed)}"


def test_labels_are_shifted_and_ignored_where_minus_100(fused) -> None:
    model, processor = fused
    inputs = ask(processor, ["Which bin?"], [image()])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -2:] = inputs["input_ids"][0, -2:]
    with torch.no_grad():
        out = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[0, -3:-1], inputs["input_ids"][0, -2:])
    torch.testing.assert_close(out.loss, expected)


def test_several_beams_and_answers_share_one_future(fused, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = fused
    calls = []
    rollout = model.world.rollout
    monkeypatch.setattr(model.world, "rollout", lambda *args, **kwargs: calls.append(1) or rollout(*args, **kwargs))
    inputs = ask(processor, ["Which bin?"], [image()])
    answers = model.generate(**inputs, max_new_tokens=3, num_beams=2, num_return_sequences=2, do_sample=False)
    assert answers.shape[0] == 2
    assert len(calls) == 1
