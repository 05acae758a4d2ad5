"""What a server refuses: who may ask, how much, for how long, and which addresses it opens."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving.conftest import (
    HTTP,
    QUESTION,
    ask,
    data_address,
    frames_of,
    image_of,
    image_part,
    metric,
    serving,
    user,
    wait_until,
)  # fmt: skip
from tests.storage.test_downloads import PRIVATE, PUBLIC, ok
from tests.storage.test_downloads import Server as Web
from theworld import TheWorld
from theworld.serving.jobs import AnswerJob
from theworld.serving.media import MediaReader
from theworld.serving.server import Server
from theworld.serving.settings import KEY_VARIABLE, ServerSettings, read_key
from theworld.storage.downloads import Downloader, DownloadSettings

IMAGE = image_part(Image.new("RGB", (8, 8)))
EMPTY = {"model": "tiny", "messages": [user()]}
BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": None}, 400, "messages: Input should be a valid list."),
    ({"messages": []}, 400, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role is 'tool'; choose one of"),
    ({"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "asks nothing"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "asks nothing"),
    ({"messages": [user(), user()]}, 400, "messages[1].role is 'user', and 'assistant' is expected"),
    ({"messages": [user(), {"role": "assistant", "content": "yes"}]}, 400, "must be one of the user"),
    ({"messages": [user({"type": "image_url"})]}, 400, "messages[0].content[0].image_url: Field required."),
    ({"messages": [user({"type": "audio"})]}, 400, "messages[0].content[0].type is 'audio'; choose one of"),
    ({"messages": [user(image_part("file:///etc/hostname"))]}, 400, "give a data: address or an http(s) address"),
    ({"messages": [user(image_part("/etc/hostname"))]}, 400, "give a data: address"),
    ({"messages": [user(image_part("data:image/png;base64,@@"))]}, 400, "not a valid data: address"),
    ({"messages": [user(image_part("data:image/png;base64,AAAA"))]}, 400, "neither an image nor a video"),
    ({"messages": [user(image_part("data:image/png"))]}, 400, "it has no comma"),
    ({"messages": [user(image_part("http://127.0.0.1:1/x.png"))]}, 400, "leads to an address that is not public"),
    ({"messages": [user(image_part("http://[::1]:1/"))]}, 400, "leads to an address that is not public"),
    ({"messages": [user(image_part("http://169.254.169.254/latest"))]}, 400, "not public"),
    ({"model": "gpt-4"}, 404, "There is no model 'gpt-4' here; this server has 'tiny'."),
    ({"max_token": 3}, 400, "did you mean 'max_tokens'?"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "are the same; give one"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format.type: Input should be 'text'"),
    ({"n": 2}, 400, "n: Input should be less than or equal to 1."),
    ({"tools": [{}]}, 400, "tools: List should have at most 0 items"),
    ({"max_tokens": 5000}, 400, "max_tokens is 5,000; this server writes 1,024 at most."),
    ({"max_tokens": True}, 400, "max_tokens: Input should be a valid integer."),
    ({"temperature": "1"}, 400, "temperature: Input should be a valid number."),
    ({"top_logprobs": 2}, 400, "top_logprobs needs logprobs"),
    ({"num_world_steps": 2}, 400, "Nothing is imagined without an image"),
    ({"attachment": "gif"}, 400, "attachment needs 1 world step"),
    ({"messages": [user(IMAGE)], "num_world_steps": 9}, 400, "this model takes 0 to 3"),
    ({"messages": [user(IMAGE)], "num_world_steps": 0, "world_prompt": "it falls"}, 400, "world_prompt has no effect"),
    ({"messages": [user({"type": "frames", "frames": {"urls": []}})]}, 400, "at least 1 item"),
    ({"messages": [user(*[IMAGE] * 3)]}, 400, "has 3 images and videos, and this server takes 2"),
    ({"messages": [user(question="red " * 400)]}, 400, "this server takes 300 at most"),
    ({"messages": [user(question="red " * 2000)]}, 400, "characters: make it shorter"),
]  # fmt: skip


@pytest.fixture(scope="module")
def limited(model: TheWorld) -> Iterator[Server]:
    with serving(
        model, max_images=2, max_prompt_tokens=300, max_pixels=100**2, max_frames=4, max_body_bytes=2**18
    ) as it:
        yield it


@pytest.mark.parametrize(("fields", "status", "message"), BAD, ids=lambda value: str(value)[:60])
def test_bad_requests_are_refused_in_one_sentence(
    limited: Server, fields: dict[str, Any], status: int, message: str
) -> None:
    answer = HTTP.post(f"{limited.url}/v1/chat/completions", json={**EMPTY, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error.keys()) == (status, {"message", "type", "param", "code"})
    assert message in error["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "not valid JSON"),
        (b"", 400, "must be a JSON object"),
        (b"[1]", 400, "must be a JSON object"),
        (b"[" * 100_000, 400, ""),
        (b'{"model": ' + b"9" * 5000 + b"}", 400, ""),
        (b'{"model": "\\ud800", "messages": []}', 400, ""),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, ""),
        (b"\xff\xfe", 400, ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bodies_that_are_no_request(limited: Server, content: bytes, status: int, message: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = HTTP.post(f"{limited.url}/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text


def test_addresses_and_methods_that_there_are_not(limited: Server) -> None:
    statuses = [
        HTTP.get(f"{limited.url}/v1/nothing").status_code,
        HTTP.get(f"{limited.url}/v1/chat/completions").status_code,
        HTTP.post(f"{limited.url}/v1/chat/completions", content=b"{}").status_code,
        HTTP.get(f"{limited.url}/v1/models/other").status_code,
        HTTP.get(f"{limited.url}/health", headers={"Host": "page.test"}).status_code,
    ]
    assert statuses == [404, 405, 415, 404, 403]


def test_images_and_videos_have_limits(limited: Server) -> None:
    answer = ask(limited, image_part(Image.new("RGB", (200, 100))))
    assert "200 x 100 pixels, and this server takes 10,000" in answer.json()["error"]["message"]
    part = {"type": "frames", "frames": {"urls": [data_address(frame) for frame in frames_of(5)]}}
    assert "5 frames, and this server takes 4" in ask(limited, part).json()["error"]["message"]
    file = io.BytesIO()
    images = frames_of(9)
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=62)
    import base64

    url = f"data:image/gif;base64,{base64.b64encode(file.getvalue()).decode()}"
    answer = ask(limited, {"type": "video_url", "video_url": {"url": url}})
    assert "the video has 9 frames, and this server takes 4" in answer.json()["error"]["message"]


def test_large_bodies_are_refused_before_they_are_read(limited: Server) -> None:
    url, headers = f"{limited.url}/v1/chat/completions", {"Content-Type": "application/json"}
    assert HTTP.post(url, content=b" " * 2**19, headers=headers).status_code == 413
    chunks = iter([b" " * 2**17] * 4)  # without a length
    assert HTTP.post(url, content=chunks, headers=headers).status_code == 413


def test_a_body_must_arrive_in_time(model: TheWorld) -> None:
    with serving(model, body_timeout=0.2) as server:
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as slow:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert b" 408 " in slow.recv(1000)


def test_a_key_is_needed_where_one_is_set(model: TheWorld) -> None:
    with serving(model, api_key="right") as server:
        url = f"{server.url}/v1/models"
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "right"},
            {"Authorization": "Bearer é"},
        ):
            encoded = {name: value.encode() for name, value in headers.items()}
            assert HTTP.get(url, headers=encoded).json()["error"]["code"] == "invalid_api_key"
        assert HTTP.get(url, headers={"Authorization": "Bearer right", "Host": "proxy.test"}).status_code == 200
        assert HTTP.get(f"{server.url}/metrics").status_code == 401
        schema = HTTP.get(f"{server.url}/openapi.json", headers={"Authorization": "Bearer right"}).json()
        assert schema["security"] == [{"key": []}]


def test_only_this_machine_is_served_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can be reached from other machines"):
        ServerSettings(host="0.0.0.0")
    for host in ("127.0.0.1", "::1", "localhost"):
        ServerSettings(host=host)
    ServerSettings(host="0.0.0.0", api_key="key")
    ServerSettings(host="0.0.0.0", force=True)
    with pytest.raises(ValueError, match="batch_size is 0; it must be above 0"):
        ServerSettings(batch_size=0)
    file = tmp_path / "key"
    file.write_text("secret\n")
    assert read_key(file) == "secret"
    assert read_key(environment={KEY_VARIABLE: "other"}) == "other"
    assert read_key(environment={}) is None
    file.write_text(" \n")
    with pytest.raises(ValueError, match="holds no API key"):
        read_key(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_key(tmp_path / "none")


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Answers wait until the event is set."""
    free, work = threading.Event(), AnswerJob.work.__func__  # type: ignore[attr-defined]

    def wait(kind: type[AnswerJob], model: TheWorld, jobs: Sequence[AnswerJob]) -> None:
        assert free.wait(60)
        work(kind, model, jobs)

    monkeypatch.setattr(AnswerJob, "work", classmethod(wait))
    yield free
    free.set()


def test_a_full_queue_is_refused_and_says_when_to_come_back(model: TheWorld, blocked: threading.Event) -> None:
    with serving(model, max_requests=2) as server, ThreadPoolExecutor(2) as threads:
        accepted = [threads.submit(ask, server) for _ in range(2)]
        wait_until(lambda: metric(server, "theworld_requests_in_progress") == 2)
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        blocked.set()
        assert [each.result().status_code for each in accepted] == [200, 200]
        assert ask(server).status_code == 200


def test_an_answer_must_be_complete_in_time(model: TheWorld, blocked: threading.Event) -> None:
    with serving(model, timeout=0.3) as server:
        for stream in (False, True):
            answer = ask(server, stream=stream)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        blocked.set()


def test_files_are_fetched_from_public_addresses_only(model: TheWorld) -> None:
    web = Web()
    good = io.BytesIO()
    image_of(3).save(good, "PNG")
    answers = web.raw
    web.raw = lambda path: ok(good.getvalue()) if path == "image" else answers(path)  # type: ignore[method-assign]
    downloader = Downloader(
        DownloadSettings(timeout=5, attempts=1, max_bytes=100_000), allow=lambda address, port: address == PUBLIC
    )
    try:
        with serving(model, MediaReader(ServerSettings(), downloader)) as server:
            answer = ask(server, image_part(web.url("image")))
            assert answer.json()["choices"][0]["message"]["content"] == model.generate(
                image_of(3), QUESTION, max_new_tokens=8
            )
            for path in ("to-private", "to-localhost", "to-mapped", "to-decimal", "to-metadata", "to-file", "large"):
                error = ask(server, image_part(web.url(path))).json()["error"]
                assert error["code"] == "unreachable_file", path
            assert "could not be fetched" in error["message"]
        assert web.connections[PRIVATE] == 0
    finally:
        web.close()


def test_addresses_can_be_turned_off(model: TheWorld) -> None:
    with serving(model, downloads=False) as server:
        assert (
            "this server fetches no addresses" in ask(server, image_part("http://a.test/")).json()["error"]["message"]
        )


def test_the_description_has_no_status_422(limited: Server) -> None:
    schema = HTTP.get(f"{limited.url}/openapi.json").json()
    statuses = {status for path in schema["paths"].values() for call in path.values() for status in call["responses"]}
    assert {"200", "400", "401", "413", "429", "503", "504"} <= statuses
    assert "422" not in statuses
    assert "ValidationError" not in json.dumps(schema)
