"""Requests made of the OpenAPI description: no fault of the server, no traceback, and no private address is opened."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from tests.serving.conftest import IMAGE_URL, image_part, metric, serving, user
from tests.storage.test_downloads import PRIVATE, PUBLIC
from tests.storage.test_downloads import Server as Web
from theworld import TheWorld
from theworld.serving.media import MediaReader
from theworld.serving.settings import ServerSettings
from theworld.storage.downloads import Downloader, DownloadSettings

REQUESTS = int(os.environ.get("THEWORLD_FUZZED_REQUESTS", "1000"))
DOCUMENTED = {503, 504}  # of the 5xx; 500 is a fault of this program


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
    private = [web.url("good", host) for host in (PRIVATE, "localhost", "2130706433", "0x7f.1", f"[::ffff:{PRIVATE}]")]
    return [
        *map(web.url, paths),
        *private,
        "file:///etc/hostname",
        "data:,",
        "data:image/png;base64,AAAA",
        *[IMAGE_URL] * 8,
    ]


def filled(value: Any, urls: list[str], draw: Any) -> Any:
    """A generated body with the served model's name and addresses that lead somewhere, most of the time."""
    if isinstance(value, list):
        return [filled(each, urls, draw) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: (
            "tiny"
            if key == "model" and draw(st.integers(0, 9)) > 0
            else (
                draw(st.sampled_from(urls))
                if key in ("url", "image") and isinstance(item, str)
                else filled(item, urls, draw)
            )
        )
        for key, item in value.items()
    }


def deeper(body: dict[str, Any], draw: Any) -> dict[str, Any]:
    """A generated body that more often passes the first checks: fewer fields, and half of the time a valid chat."""
    kept = {key: value for key, value in body.items() if key in ("model", "messages") or draw(st.integers(0, 3)) == 0}
    if "messages" in body and draw(st.booleans()):
        parts = draw(st.lists(st.just(image_part("an address")), max_size=2))
        kept["messages"] = [user(*parts, question=draw(st.text(max_size=30)) + "?")]
    elif "messages" not in body and draw(st.booleans()):
        kept = {**{key: kept[key] for key in kept if key not in ("video", "frames")}, "image": "an address"}
    return kept


@pytest.mark.slow
def test_fuzzed_requests(model: TheWorld) -> None:
    web = Web()
    limits = DownloadSettings(timeout=2, attempts=1, max_bytes=100_000)
    reader = MediaReader(ServerSettings(), Downloader(limits, allow=lambda address, port: address == PUBLIC))
    statuses: Counter[tuple[str, int]] = Counter()
    try:
        with serving(model, reader, max_new_tokens=16, max_prompt_tokens=256, timeout=60, batch_wait=0.001) as server:
            schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
            operations = [each.ok() for each in schema.get_all_operations()]
            urls = addresses(web)
            for operation in operations:
                for mode in GenerationMode:
                    if operation.method != "post" and mode.is_negative:
                        continue  # it has no parameters
                    strategy = operation.as_strategy(generation_mode=mode)

                    @seed(0)
                    @settings(
                        max_examples=REQUESTS // 4 if operation.method == "post" else 10,  # there are two of these
                        deadline=None,
                        phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck),
                        database=None,
                    )
                    @given(strategy, st.data())
                    def request(case: Case, data: st.DataObject) -> None:
                        if isinstance(case.body, dict):
                            case.body = filled(deeper(case.body, data.draw), urls, data.draw)
                        answer = case.call(timeout=120)
                        statuses[case.path, answer.status_code] += 1
                        assert answer.status_code < 500 or answer.status_code in DOCUMENTED, answer.text
                        assert "Traceback" not in answer.text
                        if answer.status_code >= 400:
                            assert answer.json()["error"]["message"], answer.text

                    request()
            assert metric(server, "theworld_requests_in_progress") == 0
        assert web.connections[PRIVATE] == 0
        assert web.connections[PUBLIC] > 0
        print(sum(statuses.values()), dict(statuses))
        assert {status for _, status in statuses} >= {200, 400, 404}
    finally:
        web.close()
