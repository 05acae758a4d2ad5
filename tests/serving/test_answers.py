"""Answers of a server: those of `TheWorld.generate`, whole or in pieces, alone or in a batch."""

from __future__ import annotations

import openai
import pytest

from tests.serving.conftest import QUESTION, image_of, image_part, user
from theworld import TheWorld
from theworld.serving.server import Server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_the_official_client_gets_the_answer_of_generate(client: openai.OpenAI, model: TheWorld) -> None:
    image = image_of(1)
    expected = model.generate(image, QUESTION, max_new_tokens=8)
    answer = client.chat.completions.create(
        model="tiny", messages=[user(image_part(image))], max_completion_tokens=8  # type: ignore[list-item]
    )
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.choices[0].finish_reason == "length"
    prompt = model.prepare(image, QUESTION)["input_ids"]
    assert answer.usage.prompt_tokens == prompt.shape[1]
