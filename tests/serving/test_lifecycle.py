"""A server's life: loading, clients that leave, failures of one request among others, and the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving.conftest import (
    HTTP,
    QUESTION,
    ask,
    data_address,
    image_of,
    image_part,
    metric,
    serving,
    user,
    wait_until,
)  # fmt: skip
from theworld import TheWorld
from theworld.serving import decoding
from theworld.serving import jobs as jobs_module
from theworld.serving.decoding import Decoding, Row
from theworld.serving.jobs import AnswerJob, ImagineJob, Job
from theworld.serving.listening import listen
from theworld.serving.server import Server
from theworld.serving.settings import ServerSettings

LONG = 1000  # tokens


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Tokens take 10 ms each; the rows that were written."""
    rows: list[Row] = []
    add = Row.add

    def slowly(row: Row, token: int) -> None:
        if not any(row is each for each in rows):
            rows.append(row)
        time.sleep(0.01)
        add(row, token)

    monkeypatch.setattr(decoding.Row, "add", slowly)
    return rows


def body_of(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [user()], "max_tokens": LONG, **fields}


def is_idle(server: Server) -> bool:
    return metric(server, "theworld_requests_in_progress") == metric(server, "theworld_jobs_running") == 0


@pytest.mark.parametrize("path", ["chat/completions", "videos/generate"])
def test_a_client_that_leaves_ends_its_rollout(model: TheWorld, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    steps: list[bool] = []  # of each denoising step, whether the client has left
    left, made = threading.Event(), jobs_module.stop_if_abandoned

    def slowly(jobs: Sequence[Job]) -> Callable[[int, int], None]:
        progress = made(jobs)

        def step(done: int, total: int) -> None:
            steps.append(jobs[0].cancelled)
            if len(steps) == 1:
                assert left.wait(60)
                wait_until(lambda: jobs[0].cancelled)
            progress(done, total)

        return step

    monkeypatch.setattr(jobs_module, "stop_if_abandoned", slowly)
    chat = {"messages": [user(image_part(image_of(21)))], "max_tokens": 4}
    body = {
        "model": "tiny",
        "num_world_steps": 3,
        **(chat if "chat" in path else {"image": data_address(image_of(21))}),
    }
    content = json.dumps(body).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(model) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: bool(steps))
        left.set()
        wait_until(lambda: is_idle(server))
    assert len(steps) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(model: TheWorld, slow: list[Row], stream: bool) -> None:
    with serving(model, max_requests=1) as server:
        url = f"{server.url}/v1/chat/completions"
        with httpx.Client(verify=False, timeout=60 if stream else 0.5) as client:
            if stream:
                with client.stream("POST", url, json=body_of(stream=True)) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(url, json=body_of())
        left = time.monotonic()
        wait_until(lambda: is_idle(server))
        assert time.monotonic() - left < 5  # benchmarks.serving_load measures it; at most 1 s if the cores are free
        assert slow[0].ended == "cancelled"
        assert 'path="/v1/chat/completions",status="499"} 1.0' in HTTP.get(f"{server.url}/metrics").text
        assert len(slow[0].ids) < LONG
        assert ask(server, max_tokens=2).status_code == 200


def test_a_request_that_waits_leaves_the_queue(model: TheWorld, slow: list[Row]) -> None:
    with serving(model, batch_size=1) as server, ThreadPoolExecutor(1) as threads:
        running = threads.submit(ask, server, max_tokens=60)
        wait_until(lambda: len(slow) == 1)
        with httpx.Client(verify=False, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{server.url}/v1/chat/completions", json=body_of())
        wait_until(lambda: metric(server, "theworld_jobs_waiting") == 0)
        assert running.result().json()["usage"]["completion_tokens"] <= 60
        assert len(slow) == 1


def test_one_request_that_fails_does_not_harm_its_batch(
    model: TheWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare, bad = model.prepare_generation, f"{QUESTION} no"

    def failing(images: Any, questions: Any, **arguments: Any) -> Any:
        if bad in questions:
            raise RuntimeError("secret detail")
        return prepare(images, questions, **arguments)

    expected = model.generate(None, QUESTION, max_new_tokens=8, enable_world=False)
    monkeypatch.setattr(model, "prepare_generation", failing)
    with serving(model) as server, ThreadPoolExecutor(4) as threads:
        questions = [QUESTION, bad, QUESTION, QUESTION]
        answers = list(threads.map(lambda question: ask(server, question=question), questions))
        assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
        assert answers[1].json()["error"]["code"] == "internal_error"
        assert "secret" not in answers[1].text
        assert "secret detail" in caplog.text
        assert answers[0].json()["choices"][0]["message"]["content"] == expected
        stream = ask(server, question=bad, stream=True)
        assert (stream.status_code, stream.json()["error"]["code"]) == (500, "internal_error")


def test_memory_that_is_used_up_is_said(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(model, "prepare_generation", failing)
    with serving(model) as server:
        answer = ask(server)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")


def test_an_error_in_a_stream_is_its_last_event(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Row.add

    def failing(row: Row, token: int) -> None:
        if len(row.ids) == 6:
            raise RuntimeError("secret")
        add(row, token)

    monkeypatch.setattr(decoding.Row, "add", failing)
    with serving(model) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        call: Any = body_of(stream=True)
        with pytest.raises(openai.APIError, match="The server failed to answer"):
            list(client.chat.completions.create(**call))


def test_the_model_is_loaded_while_the_server_listens(model: TheWorld) -> None:
    loaded = threading.Event()

    def load() -> TheWorld:
        assert loaded.wait(60)
        return model

    with serving(load) as server:
        wait_until(lambda: HTTP.get(f"{server.url}/health").status_code == 503)
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert refused.headers["Retry-After"] == "5"
        assert HTTP.get(f"{server.url}/v1/models").status_code == 503
        loaded.set()
        wait_until(lambda: HTTP.get(f"{server.url}/health").status_code == 200)
        assert ask(server).status_code == 200


def test_a_server_that_loads_can_be_stopped(model: TheWorld) -> None:
    loaded = threading.Event()

    def load() -> TheWorld:
        loaded.wait(60)
        return model

    with serving(load) as server:
        wait_until(lambda: HTTP.get(f"{server.url}/health").status_code == 503)
    assert not loaded.is_set()
    loaded.set()


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    def load() -> TheWorld:
        raise ValueError("its weights are damaged")

    with pytest.raises(ValueError, match="its weights are damaged"):
        Server(load, ServerSettings(port=0)).run()


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="Nothing can listen at"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_stopping_finishes_what_has_begun(model: TheWorld, slow: list[Row]) -> None:
    with serving(model, batch_size=1) as server, ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(ask, server, max_tokens=30, stream=stream) for stream in (True, False)]
        wait_until(lambda: slow and metric(server, "theworld_requests_in_progress") == 2)
        server.stop()
        streamed, whole = [answer.result() for answer in answers]
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert whole.json()["usage"]["completion_tokens"] > 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/health", verify=False)


def test_kinds_of_requests_do_not_share_batches(model: TheWorld) -> None:
    plan, other = model.plan(num_world_steps=1), model.plan(num_world_steps=2)
    image = image_of(0)
    jobs = [
        AnswerJob([image], plan),
        AnswerJob([image], other),
        AnswerJob([image], plan, seed=1),
        AnswerJob([image], plan, world_prompt="it falls"),
        AnswerJob([image], plan, num_past_steps=1),
        AnswerJob([image], plan, shows_rollout=True),
        ImagineJob([image], plan),
        AnswerJob([], plan),
    ]
    assert len({job.key for job in jobs}) == len(jobs)
    assert AnswerJob([image], plan, decoding=Decoding(3, 1.0)).key == jobs[0].key


class Letters:
    """A tokenizer of which each id is a byte."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(filter(None, ids)).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("  two words  ", (), "two words"),
        ("über", (), "über"),
        ("a stop b", ("stop",), "a"),
        ("a sto", ("stop",), "a sto"),
        ("stop", ("stop",), ""),
        ("ab\n\nc", ("\n\n",), "ab"),
        ("aab", ("ab",), "a"),
        ("x yz", ("q", " y"), "x"),
    ],
)
def test_pieces_are_never_taken_back(text: str, stop: tuple[str, ...], expected: str) -> None:
    pieces: list[str] = []
    tokenizer: Any = Letters()
    row = Row(Decoding(100, stop=stop), tokenizer, {0}, send=lambda piece, scores: pieces.append(piece))
    for byte in [*text.encode(), 0]:
        if row.ended is None:
            row.add(byte)
    assert row.ended == "stop"
    assert "".join(pieces) == row.text() == expected
    assert all(pieces)


@pytest.mark.slow
def test_sigterm_ends_the_command_after_its_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "theworld.cli", "serve", "nano", "--port", "0"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            wait_until(lambda: "Listening at " in Path(log.name).read_text(), 300)
            url = Path(log.name).read_text().partition("Listening at ")[2].partition("/v1")[0]
            wait_until(lambda: HTTP.get(f"{url}/health").status_code == 200, 300)
            body = {"model": "nano", "messages": [user(image_part(image_of(0)))]}
            with ThreadPoolExecutor(1) as threads:
                answer = threads.submit(HTTP.post, f"{url}/v1/chat/completions", json=body)
                wait_until(lambda: "in_progress 1.0" in HTTP.get(f"{url}/metrics").text)
                process.send_signal(signal.SIGTERM)
                assert answer.result().status_code == 200
            assert process.wait(60) == 0
        finally:
            process.kill()
