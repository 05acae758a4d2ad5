"""What OpenAI's clients, gateways and browsers send and expect, beyond the questions themselves."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

import openai
import pytest

from tests.serving.conftest import HTTP, ask, image_of, image_part, serving, user, wait_until
from theworld import TheWorld
from theworld.serving.jobs import AnswerJob
from theworld.serving.server import Server

ORIGIN = "https://page.test"


def test_fields_without_effect_are_ignored_and_named(server: Server) -> None:
    plain = ask(server, max_tokens=4).json()
    assert plain["warnings"] == []
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0, "n": 1, "stop": None}
    accepted = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "logit_bias": {}}
    both = ask(server, max_completion_tokens=4, max_tokens=4, **neutral, **accepted)
    assert (both.status_code, both.json()["warnings"]) == (200, [])
    assert both.json()["choices"] == plain["choices"]
    unknown: dict[str, Any] = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    message = user() | {"tool_call_id": None}
    answer = ask(server, max_tokens=4, **unknown, messages=[message])
    assert answer.json()["choices"] == plain["choices"]
    names = ("messages[0].tool_call_id", "reasoning_effort", "chat_template_kwargs")
    assert sorted(answer.json()["warnings"]) == sorted(f"There is no field '{name}'; it was ignored." for name in names)
    lines = ask(server, max_tokens=4, **unknown, stream=True).text.split("\n\n")
    (last,) = [json.loads(line[6:]) for line in lines if 'finish_reason": "' in line]
    assert len(last["warnings"]) == 2


@pytest.mark.parametrize("name", ["max_token", "temprature", "num_world_step", "stop_", "world_promt"])
def test_misspelled_fields_are_refused(server: Server, name: str) -> None:
    answer = ask(server, **{name: 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert "did you mean" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "field", [{"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.2}, {"ignore_eos": True}], ids=str
)
def test_fields_that_would_change_the_answer_are_refused(server: Server, field: dict[str, Any]) -> None:
    answer = ask(server, **field)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(field)))


@pytest.mark.parametrize("field", [{"temperature": 1.0, "top_p": 0.0}, {"temperature": 5e-324}], ids=str)
def test_the_smallest_nucleus_and_temperature_are_greedy(server: Server, field: dict[str, float]) -> None:
    assert ask(server, **field).json()["choices"] == ask(server).json()["choices"]


def test_chunks_have_a_usage_only_at_the_end(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    call: Any = {"model": "tiny", "messages": [user()], "max_tokens": 3, "stream": True}
    response = client.chat.completions.with_raw_response.create(**call, stream_options={"include_usage": True})
    events = [line[6:] for line in response.http_response.iter_lines() if line.startswith("data: {")]
    chunks = [json.loads(event) for event in events]
    assert all("usage" in chunk for chunk in chunks)
    assert [bool(chunk["usage"]) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"] == []
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**call))


def test_images_have_any_detail_and_messages_have_names(server: Server) -> None:
    part = image_part(image_of(1))
    plain = ask(server, part).json()["choices"]
    part["image_url"]["detail"] = "original"
    assert ask(server, part, messages=[user(part) | {"name": "me"}]).json()["choices"] == plain


def test_browsers_may_ask_from_pages_that_were_named(model: TheWorld, server: Server) -> None:
    asks = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    path = "/v1/chat/completions"
    refused = HTTP.options(f"{server.url}{path}", headers=asks)
    assert refused.status_code == 405
    assert "access-control-allow-origin" not in HTTP.get(f"{server.url}/v1/models", headers=asks).headers
    with serving(model, allow_origins=(ORIGIN,), api_key="key") as open_to_one:
        allowed = HTTP.options(f"{open_to_one.url}{path}", headers=asks)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
        other = HTTP.options(f"{open_to_one.url}{path}", headers={**asks, "Origin": "https://other.test"})
        assert "access-control-allow-origin" not in other.headers
        locked = HTTP.get(f"{open_to_one.url}/v1/models", headers={"Origin": ORIGIN})
        assert (locked.status_code, locked.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_load_balancers_may_ask_for_the_head(server: Server) -> None:
    assert (HTTP.head(f"{server.url}/health").status_code, HTTP.head(f"{server.url}/health").content) == (200, b"")
    assert HTTP.put(f"{server.url}/health").headers["allow"] == "GET"


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_connections_that_send_no_request_are_closed(model: TheWorld) -> None:
    with serving(model, body_timeout=0.3) as server:
        with connected(server) as silent, connected(server) as slow, connected(server) as later:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            later.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered = b""
            while not answered.endswith(b'{"status":"ready"}'):
                answered += later.recv(4096)
            later.sendall(b"GET /health HTTP/1.1\r\n")
            for each in (silent, slow, later):
                with contextlib.suppress(ConnectionResetError):
                    assert each.recv(4096) == b""
        assert HTTP.get(f"{server.url}/health").status_code == 200


def test_a_client_that_does_not_read_is_dropped(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    work = AnswerJob.work.__func__  # type: ignore[attr-defined]

    def long(kind: type[AnswerJob], model: TheWorld, jobs: list[AnswerJob]) -> None:
        for _ in range(64):
            jobs[0].row(model).send("a" * 2**20, [])  # type: ignore[misc]
        work(kind, model, jobs)

    monkeypatch.setattr(AnswerJob, "work", classmethod(long))
    body = json.dumps({"model": "tiny", "messages": [user()], "max_tokens": 2, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(model, body_timeout=0.3) as server, connected(server) as deaf:
        deaf.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: "in_progress 1.0" in HTTP.get(f"{server.url}/metrics").text)
        wait_until(lambda: "in_progress 0.0" in HTTP.get(f"{server.url}/metrics").text)


def test_stopping_in_time_is_said(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(AnswerJob, "work", classmethod(lambda kind, model, jobs: free.wait(60)))
    answers: list[Any] = []
    with serving(model, shutdown_timeout=1) as server:
        asking = threading.Thread(target=lambda: answers.append(ask(server)))
        asking.start()
        wait_until(lambda: "in_progress 1.0" in HTTP.get(f"{server.url}/metrics").text)
        server.stop()
        asking.join(60)
        free.set()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "stopping")
