"""Claims about fast generation: the same tokens as transformers' loop, whatever was computed before; few graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention

from tests.model.test_modeling import LORA, ask, image
from tests.tiny import tiny_bases, tiny_model
from theworld.model import gemma_layers
from theworld.model.fast_generation import FastGeneration
from theworld.model.gemma_vision import embed_patches, read_images, vision_layer
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor

QUESTIONS = ["Which bin will the ball land in?", "yes"]  # of different lengths
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}

Fused = tuple[TheWorldForConditionalGeneration, TheWorldProcessor]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def loaded(bases: dict[str, str]) -> Fused:
    return tiny_model(bases)


@pytest.fixture
def fused(loaded: Fused) -> Iterator[Fused]:
    loaded[0].fast = plain_functions(loaded[0])
    yield loaded
    loaded[0].fast, loaded[0].fast_path = None, "auto"


def plain_functions(model: TheWorldForConditionalGeneration, **options: Any) -> FastGeneration:
    return FastGeneration(model, compiled=False, captured=False, **options)


def with_latents(model: TheWorldForConditionalGeneration, inputs: Any, steps: int) -> dict[str, Any]:
    """The same inputs with random world latents instead of frames to imagine from."""
    kept = {name: value for name, value in inputs.items() if not name.startswith(("world_", "num_"))}
    channels, grid = model.config.world_config.latent_channels, model.config.world_grid()
    return kept | {"world_latents": torch.randn(2, channels, 1 + steps, *grid)}


def both(model: TheWorldForConditionalGeneration, inputs: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids by transformers' loop and by the fast path, from the same random numbers."""
    ids = []
    for model.fast_path in ("off", "on"):
        torch.manual_seed(1)
        ids.append(model.generate(**inputs, **GREEDY | arguments))
    return ids[0], ids[1]


@pytest.mark.parametrize(
    ("steps", "attention"),
    [(0, "matmul"), (4, "matmul"), (0, "reduced"), (0, "folded"), (0, "shared"), (0, "repeated")],
)
def test_the_tokens_are_those_of_transformers(fused: Fused, steps: int, attention: str) -> None:
    model, processor = fused
    model.fast = plain_functions(model, decode_attention=attention)
    inputs = with_latents(model, ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=steps), steps)
    window = model.config.get_text_config().sliding_window
    assert (inputs["input_ids"].shape[1] > window) == (steps == 4)
    expected, ours = both(model, inputs)
    assert torch.equal(expected, ours)
    assert model.fast is not None
    model.fast.forget()
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    session = next(reversed(model.fast.sessions.values()))
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    torch.testing.assert_close(session.logits, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"eos_token_id": 44},  # which the second row writes before the end
        {"repetition_penalty": 1.3, "eos_token_id": 44},
        {"do_sample": True, "top_k": 5},
        {"min_new_tokens": 4, "max_new_tokens": 5},
    ],
    ids=["end", "processor", "sampling", "shortest"],
)
def test_options_of_generate(fused: Fused, arguments: dict[str, Any]) -> None:
    model, processor = fused
    expected, ours = both(model, ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=0), **arguments)
    assert torch.equal(expected, ours)


def flash_by_loops(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_q: torch.Tensor, starts_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int], **options: Any,
) -> torch.Tensor:  # fmt: skip
    """`varlen_attn`, row by row."""
    mixed = torch.empty_like(query)
    for q, end_q, k, end_k in zip(starts_q[:-1], starts_q[1:], starts_k[:-1], starts_k[1:], strict=True):
        assert end_q - q <= max_q
        assert end_k - k <= max_k
        distance = torch.arange(k - end_k, 0)[None] - torch.arange(q - end_q, 0)[:, None]
        seen = (distance <= window_size[1]) & ((distance >= -window_size[0]) | (window_size[0] < 0))
        heads = (part.transpose(0, 1)[None] for part in (query[q:end_q], key[k:end_k], value[k:end_k]))
        row = scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale, enable_gqa=True)
        mixed[q:end_q] = row[0].transpose(0, 1)
    return mixed


def test_flash_attention_reads_what_follows_the_images(fused: Fused, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = fused
    monkeypatch.setattr(gemma_layers, "varlen_attn", flash_by_loops)
    monkeypatch.setattr(gemma_layers, "can_flash", lambda hidden: True)
    for inputs in (
        with_latents(model, ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=4), 4),
        {"input_ids": torch.arange(2, 102)[None]},  # without an image
    ):
        assert inputs["input_ids"].shape[1] > model.config.get_text_config().sliding_window
        expected, ours = both(model, inputs)
        assert torch.equal(expected, ours)


def test_fused_products_are_views_of_the_same_weights(bases: dict[str, str]) -> None:
    model, processor = tiny_model(bases)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.fast = plain_functions(model, fused=True)
    inputs = with_latents(model, ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=0), 0)
    expected, ours = both(model, inputs)
    assert torch.equal(expected, ours)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    attend = model.language_model.layers[0].self_attn
    with torch.no_grad():
        attend.k_proj.weight.mul_(1.5)  # is seen in the whole
    both(model, inputs)
    fused = next(iter(model.fast.sessions.values())).fused[0]
    assert fused is not None
    assert torch.equal(fused.query_key_value[attend.q_proj.out_features :][: attend.k_proj.out_features],
                       attend.k_proj.weight)  # fmt: skip
    attend.v_proj.weight = torch.nn.Parameter(attend.v_proj.weight * 1.5)  # fused again
    expected, ours = both(model, inputs)
    assert torch.equal(expected, ours)


@pytest.mark.gpu
@pytest.mark.parametrize("fused_products", [False, True])
def test_captured_generation_is_that_of_transformers_on_a_gpu(bases: dict[str, str], fused_products: bool) -> None:
    model, processor = tiny_model(bases)
    model.cuda()
    model.fast = FastGeneration(model, fused=fused_products)
    for steps in (0, 4):
        inputs = with_latents(model, ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=steps), steps)
        inputs = {name: value.cuda() for name, value in inputs.items()}
        for _ in range(3):  # runs, records, replays
            model.fast.forget()
            expected, ours = both(model, inputs)
            assert torch.equal(expected, ours)
    sessions = list(model.fast.sessions.values())
    assert [len(session.read_prompts_captured.recorded) for session in sessions] == [2]


def test_without_images_and_with_a_lora(bases: dict[str, str]) -> None:
    model, processor = tiny_model(bases, lora=LORA)
    model.fast = plain_functions(model)
    inputs = ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=0)
    expected, ours = both(model, inputs)
    assert torch.equal(expected, ours)
    with model.lora_disabled():
        base, ours_without = both(model, inputs)
        assert model.fast.reused == 0, "these keys and values are the LoRA's"
    assert torch.equal(base, ours_without)
    assert not torch.equal(base, expected)
    assert torch.equal(expected, both(model, inputs)[1])
    text = {"input_ids": torch.tensor([[2, 20, 30, 40, 50, 60]])}
    expected, ours = both(model, text)
    assert torch.equal(expected, ours)


@pytest.mark.slow
def test_images_are_read_once_and_before_the_rest(fused: Fused, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = fused
    inputs = with_latents(model, ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=0), 0)
    both(model, inputs)
    assert model.fast is not None
    read, sample, calls = model.fast.image_features.read_images, model.fast.sample, []

    def counted(pixel_values: torch.Tensor) -> torch.Tensor:
        calls.append("images")
        return read(pixel_values)

    def sampled(*arguments: Any, **keywords: Any) -> torch.Tensor:
        calls.append("sample")
        return sample(*arguments, **keywords)

    model.fast.image_features.recorded = None
    monkeypatch.setattr(model.fast.image_features, "read_images", counted)
    monkeypatch.setattr(model.fast, "sample", sampled)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    expected, ours = both(model, other)
    assert torch.equal(expected, ours)
    assert calls == ["images", "sample"]
    both(model, other)
    assert calls == ["images", "sample", "sample"], "the same images"


def test_patches_are_embedded_as_the_convolution_does(fused: Fused) -> None:
    model, _ = fused
    embeddings = model.vlm.model.vision_tower.embeddings
    size = model.vlm.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = embed_patches(embeddings, pixels)
        torch.testing.assert_close(found, embeddings(pixels), rtol=1e-5, atol=1e-6)
        assert found.is_contiguous()
        features = read_images(model.vlm.model, vision_layer, pixels, dynamic=True)
        torch.testing.assert_close(features, model.image_features(pixels), rtol=1e-4, atol=1e-5)


def test_questions_about_the_same_images_share_their_prefix(fused: Fused) -> None:
    model, processor = fused
    images = [image(0), image(1)]
    both(model, ask(processor, QUESTIONS, images, num_world_steps=0))
    others = ask(processor, ["no", "Is the red ball on the left?"], images, num_world_steps=0)
    expected, ours = both(model, others)
    first_token_of_question = int((others["input_ids"][1] == model.config.world_token_id).nonzero()[-1]) + 2
    assert model.fast is not None
    assert model.fast.reused >= first_token_of_question - 4
    assert torch.equal(expected, ours)
    reversed_images = ask(processor, QUESTIONS, images[::-1], num_world_steps=0)
    expected, ours = both(model, reversed_images)
    assert torch.equal(expected, ours)
    assert model.fast.reused == 0
    both(model, others)
    # other world tokens, as another arm of an evaluation has them: what comes before them is the same
    expected, ours = both(model, {**others, "world_frames": others["world_frames"].flip(-1)})
    assert torch.equal(expected, ours)
    first_world_token = int((others["input_ids"][1] == model.config.world_token_id).nonzero()[0])
    assert 0 < model.fast.reused == first_world_token
    both(model, others)
    weight = model.language_model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        expected, ours = both(model, others)
    finally:
        with torch.no_grad():
            weight.div_(1.5)
    assert torch.equal(expected, ours)
    assert model.fast.reused == 0, "the weights are others"
    assert both(model, others)[1].shape == expected.shape
    model.train()
    model.eval()
    both(model, others)
    assert model.fast.reused == 0


def test_a_streamer_receives_every_token(fused: Fused) -> None:
    model, processor = fused
    received: list[int] = []

    class Streamer:
        ended = False

        def put(self, value: torch.Tensor) -> None:
            received.extend(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    inputs = ask(processor, QUESTIONS[:1], [image(0)], num_world_steps=0)
    model.fast_path = "on"
    ids = model.generate(**inputs, **GREEDY, streamer=streamer)
    assert received == ids[0].tolist()
    assert streamer.ended


@pytest.mark.slow
def test_one_graph_per_kind_of_work(fused: Fused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and prompt lengths share graphs: vision, prompts, what the last layer keeps, a step's begin, layers, end.

    Short prompts have one more than those that are longer than the multiple up to which a mask is used.
    """
    model, processor = fused
    counter = CompileCounter()
    model.fast = FastGeneration(model, captured=False, backend=counter)
    monkeypatch.setattr("theworld.model.fast_generation.SLOTS_MULTIPLE", 64)
    for steps in (0, 4):
        inputs = with_latents(model, ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=steps), steps)
        expected, ours = both(model, inputs, max_new_tokens=3)
        assert torch.equal(expected, ours)
    assert counter.frame_count == 7
    assert len(model.fast.sessions) == 2
    other = ask(processor, ["no", "left"], [image(0), image(1)], num_world_steps=4)
    other = with_latents(model, other, 4) | {"world_latents": inputs["world_latents"]}
    both(model, other, max_new_tokens=3)
    assert model.fast.reused > 0
    assert counter.frame_count == 8


def test_the_rule(fused: Fused, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = fused
    inputs = ask(processor, QUESTIONS, [image(0), image(1)], num_world_steps=0) | {"max_new_tokens": 2}
    model.fast = None
    model.generate(**inputs)  # "auto" on a CPU
    assert model.fast is None
    model.fast_path = "on"
    model.generate(**inputs, return_dict_in_generate=True)
    assert model.fast is None
    assert "it returns more than ids" in caplog.text
    model.train()
    with pytest.raises(ValueError, match="fast_path is on, but the model is in training mode; set it to auto or off"):
        model.generate(**inputs)
    model.eval()
    model.generate(**inputs, num_beams=2)  # has a loop of its own
    assert model.fast is None


def test_a_copied_model_makes_its_own(fused: Fused) -> None:
    assert fused[0].fast is not None
    assert copy.deepcopy(fused[0]).fast is None
