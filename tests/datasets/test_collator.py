"""Labels are exactly the ids of the answers; what is drawn depends on the index of a batch and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_bases, tiny_config
from tests.training.conftest import image, records
from tests.world_models.tiny import TINY_SIZE, tiny_world
from theworld.datasets.collator import BatchSampling, ChatCollator, IndexedSample
from theworld.datasets.physics.samples import PhysicsSamples
from theworld.datasets.samples import Sample, TheWorldDataset
from theworld.inference.latent_cache import WorldRequest, compute_with, latents_of
from theworld.media.images import frames_of
from theworld.model.configuration import TheWorldConfig
from theworld.model.processing import WORLD_TOKEN, TheWorldProcessor


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TheWorldConfig:
    bases = tiny_bases(tmp_path_factory.mktemp("bases"))
    return tiny_config(bases, world_image_size=TINY_SIZE, max_world_steps=4, num_world_steps=2)


def collator_of(config: TheWorldConfig, **sampling: Any) -> ChatCollator:
    return ChatCollator(TheWorldProcessor.from_config(config), BatchSampling(**{"num_world_steps": 2, **sampling}))


def samples(*chats: dict[str, Any]) -> list[Sample]:
    dataset = TheWorldDataset(chats)
    return [dataset[index] for index in range(len(dataset))]


def turns(*pairs: tuple[str, str], num_images: int = 1) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(pairs):
        images = [{"type": "image"}] * (num_images if number == 0 else 0)
        messages.append({"role": "user", "content": [*images, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    return messages


def learned(batch: dict[str, Any], row: int) -> list[int]:
    labels: torch.Tensor = batch["labels"][row]
    return labels[labels != -100].tolist()


def test_labels_of_several_turns_are_exactly_the_answers_and_their_ends(config: TheWorldConfig) -> None:
    collator = collator_of(config)
    pairs = (("Is the red ball on the left?", "yes"), ("Which bin will the ball land in?", "the middle one"))
    short = samples({"image": image(1), "text": "Is the red ball on the left?", "label": "no"})
    long = samples({"images": [image(0)], "messages": turns(*pairs)})
    batch = collator([IndexedSample(0, long[0]), IndexedSample(1, short[0])])
    tokenizer = collator.processor.tokenizer

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert learned(batch, 0) == ids("yes<end_of_turn>") + ids("the middle one<end_of_turn>")
    assert learned(batch, 1) == ids("no<end_of_turn>")
    # each label is at the position of its token, after the opening of the assistant's turn
    where = (batch["labels"][0] != -100).nonzero()[:, 0]
    assert torch.equal(batch["labels"][0, where], batch["input_ids"][0, where])
    opening = ids("<start_of_turn>model\n")
    first = int(where[0])
    assert batch["input_ids"][0, first - len(opening) : first].tolist() == opening


def test_a_chat_is_the_ids_of_its_pieces(config: TheWorldConfig) -> None:
    collator = collator_of(config)
    pairs = (("Is the red ball on the left?", "yes"), ("Which bin will the ball land in?", "left"))
    chats = samples({"image": image(0), "messages": turns(*pairs)}, {"image": image(1), "messages": turns(pairs[0])})
    batch = collator([IndexedSample(index, chat) for index, chat in enumerate(chats)])
    processor = collator.processor
    world = WORLD_TOKEN * processor.config.world_token_count(2)
    pieces = [[pairs[0], pairs[1]], [pairs[0]]]
    for seen, prefix in (
        (batch, processor.full_image_sequence + world),
        (
            collator_of(config, image_dropout=1.0)([IndexedSample(index, chat) for index, chat in enumerate(chats)]),
            world,
        ),
    ):
        for row, pairs_of_row in enumerate(pieces):
            ids, labels = written_by_hand(processor.tokenizer, prefix, pairs_of_row)
            length = len(ids)
            assert seen["input_ids"][row, :length].tolist() == ids
            assert seen["labels"][row, :length].tolist() == labels
            assert (seen["labels"][row, length:] == -100).all()
            assert seen["attention_mask"][row].tolist() == [1] * length + [0] * (seen["input_ids"].shape[1] - length)
            image_id = processor.tokenizer.image_token_id
            if "token_type_ids" in seen:
                assert seen["token_type_ids"][row, :length].tolist() == [int(token == image_id) for token in ids]
    assert "pixel_values" in batch
    assert "pixel_values" not in seen


def written_by_hand(
    tokenizer: PreTrainedTokenizerFast, prefix: str, pairs: Sequence[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Ids and labels of a chat, tokenised piece by piece."""
    ids: list[int] = []
    labels: list[int] = []

    def add(text: str, learned: bool) -> None:
        new = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(new)
        labels.extend(new if learned else [-100] * len(new))

    add(f"<bos><start_of_turn>user\n{prefix}", False)
    for number, (question, answer) in enumerate(pairs):
        add("\n<start_of_turn>user\n" if number else "", False)
        add(question, False)
        add("<end_of_turn>\n<start_of_turn>model\n", False)
        add(f"{answer}<end_of_turn>", True)
    return ids, labels


def test_several_images_and_a_system_turn(config: TheWorldConfig) -> None:
    collator = collator_of(config)
    later = turns(("Which?", "left"), ("And now?", "right"), num_images=2)
    later[2]["content"].insert(0, {"type": "image"})
    messages = [{"role": "system", "content": "Be brief."}, *later]
    batch = collator([IndexedSample(0, samples({"images": [image(n) for n in range(3)], "messages": messages})[0])])
    text = collator.processor.tokenizer.decode(batch["input_ids"][0])
    assert text.startswith("<bos><start_of_turn>user\nBe brief.\n\n")
    assert text.count("<start_of_image>") == 3
    assert batch["pixel_values"].shape[0] == 3
    assert len(batch["world_requests"]) == 1  # world_images is `first`
    tokenizer = collator.processor.tokenizer
    assert learned(batch, 0) == [
        token
        for answer in ("left", "right")
        for token in tokenizer(f"{answer}<end_of_turn>", add_special_tokens=False)["input_ids"]
    ]


CONTROL_TOKENS = (
    "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
    "<image_soft_token>", WORLD_TOKEN,
)  # fmt: skip


@pytest.mark.parametrize("image_dropout", [0.0, 1.0])
@pytest.mark.parametrize("name", CONTROL_TOKENS)
def test_control_tokens_in_the_text_are_words(config: TheWorldConfig, name: str, image_dropout: float) -> None:
    """Of every turn, the labels included; the ids are those of the tokenizer's own `split_special_tokens`."""
    question, answer = f"What is {name}?", f"It is <{name}{name}>\nor {name}"
    system = {"role": "system", "content": f"Say {name}."}
    pairs = ((question, answer), ("Which?", name))
    collator = collator_of(config, image_dropout=image_dropout)
    chats = samples(
        {"image": image(0), "messages": [system, *turns(*pairs)]}, {"text": question, "label": answer}
    )  # of the second, which has no image, nothing may look like one
    batch = collator([IndexedSample(index, chat) for index, chat in enumerate(chats)])
    tokenizer = collator.processor.tokenizer

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert learned(batch, 0) == [*ids(answer), end, *ids(name), end]
    assert learned(batch, 1) == [*ids(answer), end]
    bos, start = tokenizer.convert_tokens_to_ids(["<bos>", "<start_of_turn>"])
    turn = [bos, start, *ids(f"user\n{question}"), end, *ids("\n"), start, *ids("model\n"), *learned(batch, 1)]
    assert batch["input_ids"][1][batch["attention_mask"][1].bool()].tolist() == turn
    asked = collator.prompts(chats[1:])["input_ids"][0].tolist()
    assert asked == turn[: -len(learned(batch, 1))]
    assert collator.text_lengths([chats[1].messages]) == [len(turn)]


def test_the_ids_of_other_text_are_those_of_the_base_models_tokenizer() -> None:
    """For the chats of the shipped recipes, with the tokenizer of nano, which reads their numbers."""
    processor = TheWorldProcessor.from_pretrained("nano")
    tokenizer = AutoTokenizer.from_pretrained(processor.base_name_or_path)
    collator = ChatCollator(processor, BatchSampling())
    dataset = PhysicsSamples("train", scenes_per_family=3)
    for index in range(0, len(dataset), 2):
        chat = dataset.messages(index)
        expected = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n"), add_special_tokens=False)
        assert processor.tokenizer(collator.chat(chat), add_special_tokens=False)["input_ids"] == expected["input_ids"]


def test_white_space_around_an_answer_is_reported_once(
    config: TheWorldConfig, caplog: pytest.LogCaptureFixture
) -> None:
    collator = collator_of(config)
    for label in ("yes", "\nyes", " no", "right\n"):
        collator.chat(samples({"text": "What?", "label": label})[0].messages)
    assert [record.getMessage() for record in caplog.records] == [
        "The chat template removes white space at the beginning and end of answers, such as '\\nyes'"
    ]


def test_a_chat_template_that_writes_other_turns_is_refused(config: TheWorldConfig) -> None:
    collator = collator_of(config)
    collator.processor.chat_template = "<bos><start_of_turn>model\n{{ messages[-1]['content'] }}<end_of_turn>"
    with pytest.raises(ValueError, match=r"record 0 has 2 turns, but the chat template .* writes 1: use"):
        collator([IndexedSample(0, samples({"text": "What?", "label": "no"})[0])])


def test_text_lengths_count_text_and_not_images(config: TheWorldConfig) -> None:
    collator = collator_of(config)
    chat = samples({"image": image(0), "text": "What?", "label": "yes"})[0]
    batch = collator([IndexedSample(0, chat)])
    config_ = collator.processor.config
    around = len(
        collator.processor.tokenizer(collator.processor.full_image_sequence, add_special_tokens=False)["input_ids"]
    )
    world = config_.world_token_count(2)
    assert collator.text_lengths([chat.messages]) == [batch["input_ids"].shape[1] - around - world + 1]


def test_draws_depend_on_the_index_alone(config: TheWorldConfig) -> None:
    sampling = {"steps_shares": {0: 0.3, 1: 0.3, 2: 0.4}, "world_dropout": 0.2, "image_dropout": 0.2, "futures": 3}
    collator = collator_of(config, seed=7, **sampling)
    chat = samples(records(1)[0])[0]
    seen = []
    for index in range(60):
        one, same = (collator([IndexedSample(index, chat)]) for _ in range(2))
        assert torch.equal(one["input_ids"], same["input_ids"])
        requests = one.get("world_requests", [])
        assert [r.key for r in requests] == [r.key for r in same.get("world_requests", [])]
        steps = requests[0].num_world_steps if requests else None
        seed = requests[0].seed if requests and steps else None
        seen.append((steps, "pixel_values" in one, seed))
    assert {steps for steps, _, _ in seen} == {None, 0, 1, 2}
    assert len({seed for steps, _, seed in seen if steps == 2}) == 3
    assert {image_seen for _, image_seen, _ in seen} == {True, False}
    # never without the world model and the images
    assert all(image_seen for steps, image_seen, _ in seen if steps is None)
    other = collator_of(config, seed=8, **sampling)
    assert seen != [
        (r[0].num_world_steps if (r := b.get("world_requests", [])) else None, "pixel_values" in b, None)
        for b in (other([IndexedSample(index, chat)]) for index in range(60))
    ]


def test_shares_are_kept(config: TheWorldConfig) -> None:
    collator = collator_of(config, steps_shares={0: 0.25, 2: 0.75}, seed=1)
    chat = samples(records(1)[0])[0]
    drawn = [collator([IndexedSample(index, chat)])["world_requests"][0].num_world_steps for index in range(200)]
    assert 120 < drawn.count(2) < 175


def test_a_batch_is_what_the_processor_makes(config: TheWorldConfig) -> None:
    """But for pixels, which are normalised on the device; the results are equal bit for bit."""
    collator = collator_of(config)
    chats = samples(*records(3), {"images": [image(7), image(8)], "text": "Which?", "label": "the first"})
    batch = collator([IndexedSample(0, chat) for chat in chats])
    texts = [collator.chat(chat.messages) for chat in chats]
    images = [list(chat.images) for chat in chats]
    theirs = collator.processor(
        images,
        texts,
        num_world_steps=2,
        padding=True,
        padding_side="right",
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(collator.normalize(batch["pixel_values"]), theirs["pixel_values"])
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], theirs[name])
    frames = frames_of(torch.stack([request.pixels for request in batch["world_requests"]]))
    assert torch.equal(frames, theirs["world_frames"])
    assert [request.seed for request in batch["world_requests"]] == theirs["world_seeds"].tolist()


def test_evaluation_draws_nothing(config: TheWorldConfig) -> None:
    collator = collator_of(config, steps_shares={0: 1.0}, world_dropout=0.5, true_futures=1.0, futures=4)
    chat = samples(records(1)[0])[0]
    for index in range(10):
        (request,) = collator([IndexedSample(index, chat, deterministic=True)])["world_requests"]
        assert (request.num_world_steps, len(request.pixels)) == (2, 1)


def test_true_futures_are_the_clip_that_followed(config: TheWorldConfig) -> None:
    collator = collator_of(config, true_futures=1.0)
    record = records(1)[0]
    (request,) = collator([IndexedSample(0, samples(record)[0])])["world_requests"]
    assert (request.num_world_steps, tuple(request.pixels.shape)) == (0, (9, TINY_SIZE, TINY_SIZE, 3))
    assert torch.equal(request.pixels[0], torch.from_numpy(record["image"]))
    assert torch.equal(request.pixels[8], torch.from_numpy(record["future_frames"][7]))
    with pytest.raises(ValueError, match="has 3 future frames, and 2 world steps need 8"):
        collator([IndexedSample(0, samples({**record, "future_frames": record["future_frames"][:3]})[0])])


def test_past_frames_change_the_latents_of_an_image(config: TheWorldConfig) -> None:
    """Its latents are those of its moment in the clip, for a sample with 0 world steps; its image may be hidden."""
    collator = collator_of(config)
    record = records(1)[0]
    plain = samples(record)[0]
    chat = replace(plain, past_frames=record["future_frames"][:8], num_world_steps=0, hide_images=True)
    batch = collator([IndexedSample(0, chat)])
    (request,) = batch["world_requests"]
    assert (request.num_world_steps, len(request.pixels), request.moment) == (0, 9 + 16, 2)
    assert "pixel_values" not in batch
    assert int((batch["input_ids"] == collator.processor.config.world_token_id).sum()) == 4 * 4 + 2
    world = tiny_world()
    (latents,) = latents_of([request], compute_with(world, world.config))
    # later frames do not change the latents of a moment
    torch.testing.assert_close(latents, world.encode(frames_of(request.pixels[None, :9]))[0][:, -1:])
    (alone,) = collator([IndexedSample(0, replace(chat, future_frames=None))])["world_requests"]
    assert (len(alone.pixels), alone.moment) == (9, 2)
    assert {r.key for r in collator.all_requests(chat)} == {request.key}
    shown, hidden = replace(plain, num_world_steps=0), replace(plain, num_world_steps=0, hide_images=True)
    mixed = collator([IndexedSample(0, shown), IndexedSample(1, hidden)])
    assert mixed["pixel_values"].shape[0] == 1
    assert len(mixed["world_requests"]) == 2
    with pytest.raises(ValueError, match="group them by that number"):
        collator([IndexedSample(0, chat), IndexedSample(1, plain)])
    with pytest.raises(ValueError, match="has 3 past frames, and the number must be a multiple of 4"):
        collator([IndexedSample(0, replace(chat, past_frames=record["future_frames"][:3]))])


def test_a_video_has_tokens_for_its_past(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Five frames are a past moment and now: T = 1 + 1 + N; Gemma sees the last of them."""
    bases = tiny_bases(tmp_path_factory.mktemp("past"))
    config = tiny_config(bases, world_image_size=TINY_SIZE, max_world_steps=4, max_past_steps=2, num_world_steps=1)
    frames = [image(number) for number in range(5)]
    record = {"frames": frames, "text": "What?", "label": "yes", "future_frames": [image(n) for n in range(5, 9)]}
    (chat,) = samples(record)
    collator = collator_of(config, num_world_steps=1)
    batch = collator([IndexedSample(0, chat)])
    (request,) = batch["world_requests"]
    assert (len(request.pixels), request.num_world_steps, batch["num_past_steps"]) == (5, 1, 1)
    count = int((batch["input_ids"] == config.world_token_id).sum())
    assert count == config.world_token_count(1, 1) == 3 * 16 + 2
    true = collator_of(config, num_world_steps=1, true_futures=1.0)([IndexedSample(0, chat)])
    (request,) = true["world_requests"]
    assert (len(request.pixels), request.num_world_steps) == (9, 0)
    hidden = collator_of(config, num_world_steps=1, image_dropout=1.0)([IndexedSample(0, chat)])
    assert int((hidden["input_ids"] == config.world_token_id).sum()) == count
    (plain,) = samples({**records(1)[0]})
    with pytest.raises(ValueError, match="group your questions"):
        collator([IndexedSample(0, chat), IndexedSample(1, plain)])
    with pytest.raises(ValueError, match=r"record 0 .*reads images only|this model reads images only"):
        collator_of(tiny_config(bases, world_image_size=TINY_SIZE))([IndexedSample(0, chat)])


def test_latents_of_samples_are_read_and_nothing_is_requested(config: TheWorldConfig) -> None:
    collator = collator_of(config, steps_shares={1: 1.0})
    latents = torch.randn(4, 3, 4, 4)
    record = {**records(1)[0], "world_latents": latents}
    batch = collator([IndexedSample(0, samples(record)[0])])
    assert torch.equal(batch["world_latents"][0], latents[:, :2])
    assert "world_requests" not in batch
    with pytest.raises(ValueError, match="others do not"):
        collator([IndexedSample(0, samples(record)[0]), IndexedSample(1, samples(records(1)[0])[0])])
    with pytest.raises(ValueError, match="has 3 latent frames, and 4 world steps need 5"):
        collator_of(config, num_world_steps=4)([IndexedSample(0, samples(record)[0])])
    for wrong, words in (
        (latents[:3], r"record 0: world_latents have the shape \(1, 3, 3, 4, 4\); they must be \(1, 4, T, 4, 4\)"),
        (latents * math.nan, "record 0 has world_latents that are infinite or no number"),
    ):
        with pytest.raises(ValueError, match=words):
            collator([IndexedSample(0, samples({**record, "world_latents": wrong})[0])])


def test_without_images_there_are_no_world_tokens(config: TheWorldConfig) -> None:
    collator = collator_of(config)
    batch = collator([IndexedSample(0, samples({"text": "What?", "label": "yes"})[0])])
    assert "world_requests" not in batch
    assert collator.processor.config.world_token_id not in batch["input_ids"]
    assert WORLD_TOKEN not in collator.processor.tokenizer.decode(batch["input_ids"][0])


def test_an_unreadable_image_names_its_sample(config: TheWorldConfig, tmp_path: Path) -> None:
    chat = samples({"image": str(tmp_path / "none.png"), "text": "What?", "label": "yes"})[0]
    with pytest.raises(ValueError, match=r"record 0: There is no file .*none\.png"):
        collator_of(config)([IndexedSample(0, chat)])


def test_all_requests_are_known_in_advance(config: TheWorldConfig) -> None:
    """`all_requests` gives what a cache must hold; no batch requests more."""
    sampling = {"steps_shares": {0: 0.3, 2: 0.7}, "true_futures": 0.5, "futures": 2, "seed": 3}
    collator = collator_of(config, **sampling)
    chats = samples(*records(3))
    expected = {request.key for chat in chats for request in collator.all_requests(chat)}
    assert len(expected) == 3 * (1 + 2 + 1)  # now; two imagined futures; the true one
    requested = {
        request.key
        for index in range(80)
        for request in collator([IndexedSample(index, chats[index % 3])])["world_requests"]
    }
    assert requested == expected
    deterministic = {request.key for request in collator.all_requests(chats[0], deterministic=True)}
    (request,) = collator([IndexedSample(0, chats[0], deterministic=True)])["world_requests"]
    assert deterministic == {request.key}


def test_equal_requests_are_computed_once() -> None:
    calls = []

    def compute(frames: torch.Tensor, steps: int, seeds: Any, prompts: Any) -> torch.Tensor:
        calls.append((frames.shape[0], steps, tuple(seeds), prompts))
        return frames[:, :1]

    frames = torch.zeros(3, 1, 8, 8)
    requests = [WorldRequest(frames, 0, 1), WorldRequest(frames, 0, 2), WorldRequest(frames, 2, 1, "push")]
    assert len(latents_of(requests, compute)) == 3
    assert calls == [(1, 0, (1,), None), (1, 2, (1,), ["push"])]  # with 0 steps the seed has no effect


@pytest.mark.parametrize("steps", [0, 2])
def test_a_constant_world_requests_nothing_and_carries_no_information(config: TheWorldConfig, steps: int) -> None:
    collator = collator_of(config, constant_world=True, num_world_steps=steps)
    (chat,) = samples({"image": image(0), "text": "Is it red?", "label": "yes"})
    for deterministic in (False, True):
        batch = collator([IndexedSample(0, chat, deterministic), IndexedSample(1, chat, deterministic)])
        assert "world_requests" not in batch
        assert batch["world_latents"].shape == (2, config.world_config.latent_channels, 1 + steps, *config.world_grid())
        assert not batch["world_latents"].any()
        count = (batch["input_ids"] == config.world_token_id).sum(dim=1)
        assert count.tolist() == [config.world_token_count(steps)] * 2
    assert collator.all_requests(chat) == []
