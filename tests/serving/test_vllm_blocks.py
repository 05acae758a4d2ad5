"""The tokens of images in vLLM's prompts. The tests that need vLLM are in test_vllm.py."""

import copy
import re
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from theworld.model.configuration import TheWorldConfig
from theworld.model.processing import TheWorldProcessor
from theworld.serving.vllm.blocks import NO_WORLD, ImageBlocks, check_servable, image_ranges


@pytest.fixture(scope="module")
def processor() -> TheWorldProcessor:
    return TheWorldProcessor.from_pretrained("nano")


@pytest.fixture(scope="module")
def tokenizer(processor: TheWorldProcessor) -> Any:
    return AutoTokenizer.from_pretrained(processor.base_name_or_path)  # vLLM's, which has no world placeholder


def chat_of(content: str) -> str:
    return f"<bos><start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize(
    "content",
    [
        "<start_of_image>What happens?",
        "<start_of_image>\nWhat happens?",
        "\n\n<start_of_image>\n\n\nWhat happens?",
        "Look: <start_of_image> What happens?",
        "<start_of_image><start_of_image>What happens?",
        "One.\n<start_of_image>\n<start_of_image>\n\nWhat happens?\n",
    ],
)
@pytest.mark.parametrize("which", ["first", "all"])
@pytest.mark.parametrize("steps", [0, 3, None])
def test_prompts_are_those_of_our_processor(
    processor: TheWorldProcessor, tokenizer: Any, content: str, which: str, steps: int | None
) -> None:
    count = content.count("<start_of_image>")
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")[:count]]
    expected = processor(
        images=[images],
        text=[chat_of(content)],
        num_world_steps=steps,
        enable_world=steps is not None,
        world_images=which,
        ids_only=True,
        add_special_tokens=False,
        return_tensors="pt",
    )["input_ids"][0].tolist()

    blocks = ImageBlocks(tokenizer, processor)
    with_world = count if which == "all" else 1
    parts = [blocks.of(NO_WORLD if steps is None or at >= with_world else steps) for at in range(count)]
    ids, places = blocks.expand(tokenizer.encode(chat_of(content), add_special_tokens=False), parts)

    assert ids == expected
    assert [ids[place : place + len(part)] for place, part in zip(places, parts, strict=True)] == parts


def test_image_tokens_without_an_image_stay(processor: TheWorldProcessor, tokenizer: Any) -> None:
    blocks = ImageBlocks(tokenizer, processor)
    ids = tokenizer.encode(chat_of("<start_of_image>one <start_of_image>two"), add_special_tokens=False)

    expanded, places = blocks.expand(ids, [blocks.of(NO_WORLD)])

    assert len(places) == 1
    assert expanded.count(blocks.start) == 2


def test_only_images_attend_in_both_directions(processor: TheWorldProcessor) -> None:
    config = processor.config
    size, world = config.vlm_config.mm_tokens_per_image, config.world_token_count(4)
    image = (6, 5 + size)

    found = image_ranges({0: [image, (80, 79 + world)], 1: []}, config)

    assert found == {0: [image], 1: []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_world": False}, "has no world model"),
        ({"reads_world_tokens": False}, "projector of this model is untrained"),
        ({"projector": "resampler", "resampler_tokens": 31}, "With 1 world steps"),
    ],
)
def test_models_that_vllm_cannot_serve_are_refused(
    processor: TheWorldProcessor, changes: dict[str, Any], message: str
) -> None:
    config: TheWorldConfig = copy.deepcopy(processor.config)
    check_servable(config)
    for name, value in changes.items():
        setattr(config, name, value)

    with pytest.raises(ValueError, match=re.escape(message)):
        check_servable(config)
