"""Claims about prompts with answers: their ids are those of generation, also if the tokenizer merges newlines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld
from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.inference.prompting import IGNORE_INDEX, PromptBuilder

QUESTIONS = ["Which bin?", "Is the red ball on the left?"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def model(bases: dict[str, str]) -> TheWorld:
    return TheWorld(
        bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], world_image_size=TINY_SIZE
    )


def merging(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with a token for two newlines, as Gemma's has."""
    tokens = tokenizer.get_vocab()
    newline, double = "\u010a", "\u010a\u010a"  # a newline, as byte-level tokenizers write it
    rare = max((token for token in tokens if len(token) > 1 and not token.startswith("<")), key=lambda t: tokens[t])
    index = tokens.pop(rare)
    inner = Tokenizer(models.BPE({**tokens, double: index}, [(newline, newline)], unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n+|[^\n]"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    merged = PreTrainedTokenizerFast(tokenizer_object=inner, **tokenizer.special_tokens_map)
    merged.add_special_tokens(
        {"additional_special_tokens": [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]}
    )
    return merged


def images(count: int) -> list[np.ndarray]:
    return [np.full((TINY_SIZE, TINY_SIZE, 3), 50 * number, dtype=np.uint8) for number in range(count)]


def test_an_answer_follows_the_prompt_that_generation_reads(model: TheWorld) -> None:
    """Rows of different length: each is the prompt of `prepare`, then the ids of its answer, padded on the left."""
    tokenizer, answers = model.processor.tokenizer, ["yes", "left left left"]
    together = model.prepare(images(2), QUESTIONS, answers, num_world_steps=0)
    for row, (image, question, answer) in enumerate(zip(images(2), QUESTIONS, answers, strict=True)):
        prompt = model.prepare(image, question, num_world_steps=0)
        added = tokenizer(answer + "<end_of_turn>", add_special_tokens=False)["input_ids"]
        kept = together["attention_mask"][row].bool()
        ids = together["input_ids"][row][kept].tolist()
        assert ids == prompt["input_ids"][0].tolist() + added
        assert not kept[: -len(ids)].any()
        assert together["token_type_ids"][row][kept].tolist() == prompt["token_type_ids"][0].tolist() + [0] * len(added)
        assert together["labels"][row][kept].tolist() == [IGNORE_INDEX] * (len(ids) - len(added)) + added
        assert (together["labels"][row][~kept] == IGNORE_INDEX).all()
        assert (together["input_ids"][row][~kept] == tokenizer.pad_token_id).all()


def test_a_newline_that_begins_an_answer_is_a_token_of_the_answer(model: TheWorld, tmp_path: Path) -> None:
    model.processor.tokenizer = merging(model.processor.tokenizer)
    model.prompts = PromptBuilder(model.processor)
    tokenizer = model.processor.tokenizer
    joined = tokenizer("model\n\nyes", add_special_tokens=False)["input_ids"]
    apart = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("model\n", "\nyes")]
    assert joined != apart[0] + apart[1], "this tokenizer merges across the boundary"
    prompt = model.prepare(None, "Hi")["input_ids"][0].tolist()
    inputs = model.prepare(None, "Hi", "\nyes")
    assert inputs["input_ids"][0].tolist() == prompt + apart[1] + [model.prompts.turns.end]
    learned = inputs["labels"][0] != IGNORE_INDEX
    assert inputs["labels"][0][learned].tolist() == apart[1] + [model.prompts.turns.end]
    assert model.forward(None, "Hi", labels="\nyes").loss.isfinite()
    ((logprob, _),) = ModelAnswerer(model).answer_logprobs([images(1)[0]], ["Hi"], ["\nyes"], ReplyInputs(0))
    assert torch.tensor(logprob).isfinite()
