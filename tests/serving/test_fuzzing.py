"""Requests made of the OpenAPI description: no fault of the server, no traceback, and no private address is opened."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.conftest import IMAGE_URL, data_address, frames_of, image_part, metric, serving, user
from tests.storage.test_downloads import PRIVATE, PUBLIC
from tests.storage.test_downloads import Server as Web
from theworld import TheWorld
from theworld.serving.media import MediaReader
from theworld.serving.settings import ServerSettings
from theworld.storage.downloads import Downloader, DownloadSettings

REQUESTS = int(os.environ.get("THEWORLD_FUZZED_REQUESTS", "1000"))
PARTS_OF_RUN = 4
DOCUMENTED = {503, 504}  # of the 5xx; 500 is a fault of this program
CONFORMANCE = [content_type_conformance, response_schema_conformance, status_code_conformance]

IMAGES = [IMAGE_URL, data_address(frames_of(1)[0])]
FRAMES = {"type": "frames", "frames": {"urls": [data_address(frame) for frame in frames_of(5)], "fps": 16}}


def addresses(web: Web) -> list[str]:
    """Addresses that lead to private places, and some that do not."""
    paths = (
        "to-private",
        "to-localhost",
        "to-mapped",
        "to-decimal",
        "to-metadata",
        "to-file",
        "good",
        "cut",
        "endless",
    )
    hosts = (PRIVATE, "localhost", "2130706433", "0x7f.1", f"[::ffff:{PRIVATE}]", "[::1]", "0.0.0.0", "169.254.169.254")
    return [
        *map(web.url, paths),
        *[web.url("good", host) for host in hosts],
        "file:///etc/hostname",
        "data:,",
        "data:image/png;base64,AAAA",
    ]


def filled(value: Any, urls: list[str], draw: Callable[..., Any]) -> Any:
    """A generated body with the served model's name and addresses that lead somewhere, most of the time."""
    if isinstance(value, list):
        return [filled(each, urls, draw) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        if key == "model" and draw(st.integers(0, 9)) < 9:
            found[key] = "tiny"
        elif key in ("url", "image") and isinstance(item, str):
            found[key] = draw(st.sampled_from(urls))
        elif key == "urls" and isinstance(item, list):
            found[key] = draw(st.lists(st.sampled_from(urls), max_size=3))
        else:
            found[key] = filled(item, urls, draw)
    return found


TEXTS = st.text(max_size=30).map(lambda text: f"{text}?")
PARTS = st.one_of(st.just([FRAMES]), st.lists(st.sampled_from([image_part(url) for url in IMAGES]), max_size=2))
TURN = st.builds(lambda parts, text: user(*parts, question=text), PARTS, TEXTS)
CHATS = st.builds(
    lambda system, turns, last: [
        *system,
        *[each for question, answer in turns for each in (question, {"role": "assistant", "content": answer})],
        last,
    ],
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": TEXTS}), max_size=1),
    st.lists(st.tuples(TURN, TEXTS), max_size=1),
    TURN,
)
CHAT_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 4),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "stop": st.one_of(st.text(min_size=1, max_size=3), st.lists(st.text(min_size=1, max_size=3), max_size=4)),
    "stream": st.booleans(),
    "logprobs": st.booleans(),
    "num_world_steps": st.integers(0, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "mode": st.sampled_from(["tokens", "frames", "off"]),
    "attachment": st.sampled_from(["gif", "mp4"]),
    "user": st.text(max_size=9),
    "reasoning_effort": st.text(max_size=9),
    "metadata": st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2),
}
VIDEO_SOURCES = st.one_of(
    st.sampled_from(IMAGES).map(lambda url: {"image": url}), st.just({"frames": FRAMES["frames"]})
)
VIDEO_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "num_world_steps": st.integers(1, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "format": st.sampled_from(["gif", "mp4"]),
}


def meant(path: str, body: dict[str, Any], draw: Callable[..., Any]) -> dict[str, Any]:
    """A body that the server is likely to answer, with some of the fields of a generated one."""
    chat = path.endswith("completions")
    fields = CHAT_FIELDS if chat else VIDEO_FIELDS
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    found: dict[str, Any] = {"messages": draw(CHATS), "max_tokens": 2} if chat else dict(draw(VIDEO_SOURCES))
    found |= {name: draw(fields[name]) for name in chosen} | {"model": "tiny"}
    if found.get("stream") and draw(st.booleans()):
        found["stream_options"] = {"include_usage": draw(st.booleans())}
    if "attachment" in found:
        found["num_world_steps"] = draw(st.integers(1, 3))
    if found.get("logprobs"):
        found["top_logprobs"] = draw(st.integers(0, 20))
    further = sorted(set(body) - set(found) - {"image", "video", "frames"})
    if further and draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(further))
        found[name] = body[name]
    return found


@contextmanager
def connections() -> Iterator[Counter[tuple[str, int]]]:
    """Counts the addresses that any socket of this process is connected to."""
    counted: Counter[tuple[str, int]] = Counter()
    noting = True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if noting and event == "socket.connect" and isinstance(arguments[1], tuple):
            counted[arguments[1][:2]] += 1

    sys.addaudithook(note)  # stays for the life of the process
    try:
        yield counted
    finally:
        noting = False


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS_OF_RUN))  # so that several processes can share the run
def test_fuzzed_requests(model: TheWorld, part: int) -> None:
    web = Web()
    limits = DownloadSettings(timeout=2, attempts=1, max_bytes=100_000)
    reader = MediaReader(ServerSettings(), Downloader(limits, allow=lambda address, port: address == PUBLIC))
    statuses: Counter[tuple[str, int]] = Counter()
    limited = {"max_new_tokens": 16, "max_prompt_tokens": 256, "timeout": 60, "batch_wait": 0.001}
    try:
        with connections() as opened, serving(model, reader, **limited) as server:
            schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
            urls = [*addresses(web), *IMAGES * 4]
            for operation in [each.ok() for each in schema.get_all_operations()]:
                posts = operation.method == "post"  # there are two of these
                for mode in GenerationMode if posts else (GenerationMode.POSITIVE,):
                    strategy = operation.as_strategy(generation_mode=mode)
                    share = 0.35 if mode.is_positive else 0.15

                    @seed(part)
                    @settings(
                        max_examples=round(REQUESTS * share / PARTS_OF_RUN) if posts else 10,
                        deadline=None,
                        phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck),
                        database=None,
                    )
                    @given(strategy, st.data())
                    def request(case: Case, data: st.DataObject) -> None:
                        if isinstance(case.body, dict):
                            kind = data.draw(st.integers(0, 7)) if case.meta.generation.mode.is_positive else 7
                            if kind < 7:
                                case.body = meant(case.path, case.body, data.draw)
                            if kind > 5:
                                case.body = filled(case.body, urls, data.draw)
                        answer = case.call(timeout=120)
                        statuses[case.path, answer.status_code] += 1
                        assert answer.status_code < 500 or answer.status_code in DOCUMENTED, answer.text
                        assert "Traceback" not in answer.text
                        case.validate_response(answer, checks=CONFORMANCE)
                        if answer.status_code >= 400:
                            assert answer.json()["error"]["message"], answer.text

                    request()
            assert metric(server, "theworld_requests_in_progress") == 0
            own = int(server.url.rpartition(":")[2])
        print(sum(statuses.values()), "requests", dict(statuses))
        print("connections", dict(opened))
        assert web.connections[PRIVATE] == 0
        assert web.connections[PUBLIC] > 0
        assert set(opened) == {(PRIVATE, own), (PUBLIC, web.port)}  # the first one is that of this test
        for path in ("/v1/chat/completions", "/v1/videos/generate"):
            posted = {status: count for (each, status), count in statuses.items() if each == path}
            assert posted[200] > 0.3 * sum(posted.values())
        assert {status for _, status in statuses} >= {200, 400, 404}
    finally:
        web.close()
