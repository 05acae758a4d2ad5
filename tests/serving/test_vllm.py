"""The plug-in inside vLLM, without its engine. `make test-vllm` runs these tests and then compares answers."""

from typing import Any

import pytest
import torch
from PIL import Image

from theworld.model.processing import TheWorldProcessor
from theworld.storage.hub import resolve

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

CHAT = "<bos><start_of_turn>user\n{}What happens?<end_of_turn>\n<start_of_turn>model\n"
RED, BLUE = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))


@pytest.fixture(scope="module")
def processor() -> Any:
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    limit = {"limit_mm_per_prompt": {"image": 3}}
    return MULTIMODAL_REGISTRY.create_processor(ModelConfig(str(resolve("nano")), dtype="float32", **limit))


def processed(processor: Any, images: list[Image.Image], cache: Any = None, **options: Any) -> Any:
    ids = processor.info.get_tokenizer().encode(CHAT.format("<start_of_image>" * len(images)), add_special_tokens=False)
    items = processor.info.parse_mm_data({"image": images})
    return processor(ids, items, hf_processor_mm_kwargs=options, cache=cache)


def test_the_settings_are_those_of_the_gemma_base(processor: Any) -> None:
    settings = processor.info.ctx.model_config

    assert settings.is_mm_prefix_lm
    assert settings.try_get_generation_config()["eos_token_id"] == [1, 5]


@pytest.mark.parametrize("images", [[RED], [RED, BLUE], [RED, RED, BLUE]], ids=len)
@pytest.mark.parametrize("options", [{}, {"num_world_steps": 0, "world_images": "all"}, {"enable_world": False}])
def test_prompts_and_pixels_are_those_of_our_processor(
    processor: Any, images: list[Image.Image], options: dict[str, Any]
) -> None:
    ours = TheWorldProcessor.from_pretrained("nano")(
        images=[images],
        text=[CHAT.format("<start_of_image>" * len(images))],
        add_special_tokens=False,
        return_tensors="pt",
        **options,
    )
    found = processed(processor, images, **options)

    assert found["prompt_token_ids"] == ours["input_ids"][0].tolist()
    items = found["mm_kwargs"]["image"]
    assert torch.equal(torch.stack([item["pixel_values"].data for item in items]), ours["pixel_values"])
    with_world = [item for item in items if int(item["num_world_steps"].data) >= 0]
    seeds = ours.get("world_seeds", torch.empty(0))
    assert [int(item["world_seeds"].data) for item in with_world] == seeds.tolist()
    config = processor.info.config
    for place in found["mm_placeholders"]["image"]:
        embedded = torch.tensor(found["prompt_token_ids"][place.offset : place.offset + place.length])[place.is_embed]
        assert set(embedded.tolist()) <= {config.vlm_config.image_token_id, config.world_token_id}
    total = sum(int(place.is_embed.sum()) for place in found["mm_placeholders"]["image"])
    assert total == int(torch.isin(ours["input_ids"], torch.tensor(processor.blocks.embedded)).sum())


def test_caches_hold_an_image_once_for_each_use(processor: Any) -> None:
    def name(images: list[Image.Image], place: int = 0, **options: Any) -> str:
        return processed(processor, images, **options)["mm_hashes"]["image"][place]

    first = name([RED])
    assert first == name([RED.copy(), BLUE])
    others = [
        name([RED, RED], 1),  # without world tokens
        name([BLUE]),
        name([RED], num_world_steps=1),
        name([RED], seed=1),
        name([RED], enable_world=False),
    ]
    assert len({first, *others}) == len(others) + 1


def test_a_cached_image_has_the_tokens_of_its_new_place(processor: Any) -> None:
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    cache = MultiModalProcessorOnlyCache(processor.info.ctx.model_config)
    for images in ([RED], [BLUE, RED], [RED, BLUE], [BLUE, RED]):
        expected = processed(processor, images)
        assert processed(processor, images, cache)["prompt_token_ids"] == expected["prompt_token_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"futures": 3}, "futures is no option"),
        ({"num_world_steps": 99}, "takes 0 to 4"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"world_images": "last"}, "choose 'first' or 'all'"),
    ],
)
def test_wrong_options_are_refused(processor: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processed(processor, [RED], **options)


def test_rows_of_images_in_a_batch() -> None:
    """Of three requests, the first begins before its image, the second inside it, the third is past its own."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    from theworld.serving.vllm.cpu_attention import images_of

    starts = torch.tensor([0, 10, 16, 17], dtype=torch.int32)
    batch = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor([10, 14, 30], dtype=torch.int32),
        num_reqs=3,
        num_actual_tokens=17,
        max_query_len=10,
        max_seq_len=30,
        block_table_tensor=torch.arange(6).view(3, 2),
        slot_mapping=torch.arange(17),
    )
    rows, images = images_of(batch, {0: [(2, 5)], 1: [(6, 9)], 2: [(2, 5)]})

    assert rows.tolist() == [2, 3, 4, 5, 10, 11]  # positions 2 to 5, and 8 and 9 of a request with 8 before
    assert images.query_start_loc.tolist() == [0, 4, 6]
    assert images.seq_lens.tolist() == [6, 10]
    assert images.block_table_tensor.tolist() == [[0, 1], [2, 3]]
    assert images.causal is False
    assert images_of(batch, {0: [], 1: [], 2: [(2, 5)]})[1] is None
