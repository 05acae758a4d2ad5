"""Answers of a server: those of `TheWorld.generate`, whole or in pieces, alone or in a batch."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from tests.serving.conftest import HTTP, QUESTION, ask, data_address, frames_of, image_of, image_part, metric, user
from theworld import TheWorld
from theworld.inference.options import RolloutOptions
from theworld.inference.prompting import Chat
from theworld.media.export import encode_rollout
from theworld.media.inputs import LoadedImages
from theworld.media.video import Video, load_video
from theworld.serving.latents import LatentCache
from theworld.serving.server import Server

OTHER = "Is the red ball on the left?"


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def test_the_official_client_gets_the_answer_of_generate(client: openai.OpenAI, model: TheWorld) -> None:
    image = image_of(1)
    messages: Any = [user(image_part(image))]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=8)
    assert answer.choices[0].message.content == model.generate(image, QUESTION, max_new_tokens=8)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens == model.prepare(image, QUESTION)["input_ids"].shape[1]
    assert [each.id for each in client.models.list()] == ["tiny"]


@pytest.mark.parametrize("further", [{}, {"temperature": 1.5, "seed": 3}, {"stop": ["e ", "\n"]}], ids=str)
def test_streaming_equals_not_streaming(client: openai.OpenAI, further: dict[str, Any]) -> None:
    call: dict[str, Any] = {
        "model": "tiny",
        "messages": [user(image_part(image_of(2)))],
        "max_tokens": 24,
        "logprobs": True,
        "top_logprobs": 2,
        **further,
    }
    whole = client.chat.completions.create(**call)
    assert whole.usage is not None
    chunks = list(client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True}))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert len(choices) > 3 or "stop" in further
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    assert whole.choices[0].logprobs is not None
    assert tokens == whole.choices[0].logprobs.content
    assert len(tokens) == whole.usage.completion_tokens - (
        whole.choices[0].finish_reason == "stop" and "stop" not in further
    )


def test_greedy_tokens_are_the_most_probable_ones(server: Server, model: TheWorld) -> None:
    image = image_of(2)
    answer = ask(server, image_part(image), logprobs=True, top_logprobs=1).json()["choices"][0]
    tokens = answer["logprobs"]["content"]
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] < 0 for token in tokens)
    inputs = model.prepare(image, QUESTION)
    first = model.model(**inputs).logits[0, -1].float().log_softmax(-1).max().detach()
    assert tokens[0]["logprob"] == pytest.approx(float(first), abs=1e-4)
    assert bytes(tokens[0]["bytes"]).decode() == tokens[0]["token"]


def test_requests_share_batches_and_answers_are_not_mixed(server: Server, model: TheWorld) -> None:
    questions = [f"{QUESTION} {'red ' * number}" for number in range(8)]
    images = [image_of(number) for number in range(8)]
    lengths = [4 + number for number in range(8)]
    before = metric(server, "theworld_batch_size_count")

    def answered(number: int) -> httpx.Response:
        part = image_part(images[number])
        return ask(server, part, question=questions[number], max_tokens=lengths[number])

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(answered, range(8)))
    assert metric(server, "theworld_batch_size_count") - before < 8
    for answer, image, question, length in zip(answers, images, questions, lengths, strict=True):
        assert text_of(answer) == model.generate(image, question, max_new_tokens=length)
        assert answer.json()["usage"]["completion_tokens"] <= length


def test_an_image_is_imagined_once(server: Server, model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    imagine = model.runner.imagine_from

    def noted(inputs: Any, *arguments: Any) -> Any:
        rows.append(len(inputs["world_frames"]))
        return imagine(inputs, *arguments)

    image, fields = image_of(11), {"num_world_steps": 2, "seed": 9}
    expected = {question: model.generate(image, question, max_new_tokens=8, **fields) for question in (QUESTION, OTHER)}
    monkeypatch.setattr(model.runner, "imagine_from", noted)
    for question, text in expected.items():
        assert text_of(ask(server, image_part(image), question=question, **fields)) == text
    assert rows == [1]
    assert ask(server, image_part(image), num_world_steps=2, seed=10).status_code == 200
    assert ask(server, image_part(image), num_world_steps=1, seed=9).status_code == 200
    assert rows == [1, 1, 1]
    cache, (size, images) = LatentCache(), (3, [image_of(number) for number in (1, 2, 1)])
    latents = cache.imagine(model, images, 2, 0, None, lambda done, total: None)
    assert (rows[-1], len(latents)) == (2, size)
    assert torch.equal(latents[0], latents[2])
    torch.testing.assert_close(latents, model.imagine(images, 2))
    assert not cache._kept
    cache.max_bytes = 2 * latents[0].nbytes
    for number in (1, 2, 3):
        cache.imagine(model, [image_of(number)], 2, 0, None, lambda done, total: None)
    assert (len(cache._kept), cache.size) == (2, cache.max_bytes)


def test_samples_depend_on_their_own_seed(server: Server) -> None:
    def sampled(seed: int) -> str:
        return text_of(ask(server, temperature=1.5, top_p=0.9, seed=seed, max_tokens=12))

    alone = [sampled(seed) for seed in range(4)]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(sampled, range(4))) == alone


def test_chats_have_turns_and_a_system_message(server: Server, model: TheWorld) -> None:
    image = image_of(3)
    messages = [
        {"role": "system", "content": "model"},
        {"role": "user", "content": [{"type": "text", "text": OTHER}, image_part(image)]},
        {"role": "assistant", "content": "yes", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    body = {"model": "tiny", "messages": messages, "max_tokens": 8}
    chat = Chat(
        [
            {"role": "system", "content": "model"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": OTHER}]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        ]
    )
    inputs = model.prepare_generation(LoadedImages([[image]]), [chat], rollout=RolloutOptions())
    ids = model.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = model.processor.decode(ids, skip_special_tokens=True).strip()
    assert text_of(HTTP.post(f"{server.url}/v1/chat/completions", json=body)) == expected


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"mode": "frames", "num_world_steps": 2}, {"mode": "frames", "num_world_steps": 2}),
        ({"mode": "off"}, {"enable_world": False}),
        ({"num_world_steps": 3, "seed": 5}, {"num_world_steps": 3, "seed": 5}),
        ({"num_world_steps": 0}, {"num_world_steps": 0}),
    ],
    ids=str,
)
def test_fields_of_world_models(
    server: Server, model: TheWorld, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    image = image_of(4)
    answer = ask(server, image_part(image), **fields)
    assert text_of(answer) == model.generate(image, QUESTION, max_new_tokens=8, **arguments)
    world = answer.json()["world"]
    assert world["mode"] == fields.get("mode", "tokens")
    assert world["num_world_steps"] == fields.get("num_world_steps", 0)
    assert world["seed"] == fields.get("seed", 0)


def test_a_question_without_an_image(server: Server, model: TheWorld) -> None:
    answer = ask(server)
    assert text_of(answer) == model.generate(None, QUESTION, max_new_tokens=8, enable_world=False)
    assert answer.json()["world"]["mode"] == "off"


def test_videos_as_files_and_as_frames(server: Server, model: TheWorld) -> None:
    frames = frames_of(9)
    expected = model.generate(video=Video(frames, fps=16), question=QUESTION, max_new_tokens=8)
    urls = [data_address(frame) for frame in frames]
    part = {"type": "frames", "frames": {"urls": urls, "fps": 16}}
    assert text_of(ask(server, part)) == expected
    content = encode_rollout(np.stack([np.asarray(frame) for frame in frames]), ".gif", 16, scale=1, hold=0)
    url = f"data:image/gif;base64,{base64.b64encode(content).decode()}"
    expected = model.generate(video=load_video(content), question=QUESTION, max_new_tokens=8)
    assert text_of(ask(server, {"type": "video_url", "video_url": {"url": url}})) == expected


def test_what_was_imagined_is_attached(server: Server, model: TheWorld) -> None:
    image = image_of(5)
    plain = text_of(ask(server, image_part(image), num_world_steps=2))
    answer = ask(server, image_part(image), num_world_steps=2, attachment="gif")
    assert text_of(answer) == plain
    attachment = answer.json()["world"]["attachment"]
    frames = model.decode(model.imagine(image, 2))[0]
    assert base64.b64decode(attachment["data"]) == encode_rollout(frames, ".gif", 16.0)
    assert (attachment["num_frames"], attachment["mime_type"]) == (len(frames), "image/gif")
    with HTTP.stream(
        "POST",
        f"{server.url}/v1/chat/completions",
        json={
            "model": "tiny",
            "messages": [user(image_part(image))],
            "max_tokens": 2,
            "num_world_steps": 2,
            "attachment": "gif",
            "stream": True,
        },
    ) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["world"]["attachment"] == attachment


def test_videos_are_imagined_without_a_question(server: Server, model: TheWorld) -> None:
    image, frames = image_of(6), frames_of(9)
    body: dict[str, Any] = {"model": "tiny", "num_world_steps": 2, "seed": 4}
    answer = HTTP.post(f"{server.url}/v1/videos/generate", json={**body, "image": data_address(image)})
    assert answer.status_code == 200, answer.text
    expected = encode_rollout(model.decode(model.imagine(image, 2, seed=4))[0], ".gif", 16.0)
    assert base64.b64decode(answer.json()["video"]["data"]) == expected
    urls = [data_address(frame) for frame in frames]
    body |= {"frames": {"urls": urls, "fps": 16}, "format": "mp4"}
    video = HTTP.post(f"{server.url}/v1/videos/generate", json=body).json()["video"]
    assert (video["num_past_frames"], video["num_frames"]) == (8, 17)
    assert len(load_video(base64.b64decode(video["data"])).frames) >= 17


def test_an_image_may_have_any_format(server: Server, model: TheWorld) -> None:
    file = io.BytesIO()
    image_of(7).save(file, "WEBP", lossless=True)
    url = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    expected = model.generate(Image.open(file), QUESTION, max_new_tokens=8)
    assert text_of(ask(server, image_part(url))) == expected


def test_several_futures_give_the_most_frequent_answer_and_the_shares_of_all(server: Server, model: TheWorld) -> None:
    images = [image_of(number) for number in (11, 12, 13)]
    fields: dict[str, Any] = {"futures": 3, "seed": 4, "max_tokens": 6}
    with ThreadPoolExecutor() as pool:  # they share batches
        answers = list(pool.map(lambda image: ask(server, image_part(image), **fields), images))
    for image, answer in zip(images, answers, strict=True):
        alone = [model.generate(image, QUESTION, max_new_tokens=6, seed=seed) for seed in (4, 5, 6)]
        shares = {each["answer"]: each["share"] for each in answer.json()["world"]["futures"]}
        assert shares == pytest.approx({text: alone.count(text) / 3 for text in alone})
        assert text_of(answer) == max(alone, key=alone.count)
        assert answer.json()["usage"]["completion_tokens"] == 18
    assert ask(server, image_part(images[0])).json()["world"]["futures"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": True}, "cannot be streamed"),
        ({"num_world_steps": 0}, "need an image and 1 world step"),
        ({"mode": "off"}, "need an image and 1 world step"),
        ({"futures": 17}, "less than or equal to 16"),
    ],
)
def test_futures_that_cannot_be_used_are_refused(server: Server, fields: dict[str, Any], message: str) -> None:
    answer = ask(server, image_part(image_of(11)), **{"futures": 2, **fields})
    assert answer.status_code in (400, 422)
    assert message in answer.text
