"""A server of a tiny model that reads images and videos, in a thread of the test's process."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from tests.tiny import TINY_SIZE, tiny_bases
from tests.world_models.tiny import tiny_frames
from theworld import TheWorld
from theworld.media.images import to_pixels
from theworld.serving.media import MediaReader
from theworld.serving.server import Server
from theworld.serving.settings import ServerSettings

QUESTION = "Which bin will the ball land in?"
PAST = 2
HTTP = httpx.Client(verify=False, timeout=60)  # one for all, since reading certificates takes long


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def model(folder: Path) -> TheWorld:
    bases = tiny_bases(folder)
    built = TheWorld(
        bases["vlm_name_or_path"],
        cosmos_model_name=bases["world_name_or_path"],
        num_world_steps=1,
        max_world_steps=3,
        max_past_steps=PAST,
        world_image_size=TINY_SIZE,
        reads_world_tokens=True,
        device="cpu",
    )
    with torch.no_grad():  # moments differ, as those of a trained model
        built.model.projector.temporal.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return built


@contextmanager
def serving(
    load: TheWorld | Callable[[], TheWorld], media: MediaReader | None = None, **settings: Any
) -> Iterator[Server]:
    """A running server, ready unless `load` is a function."""
    values = {"name": "tiny", "port": 0, "batch_wait": 0.05, **settings}
    server = Server(load if not isinstance(load, TheWorld) else lambda: load, ServerSettings(**values), media)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        if isinstance(load, TheWorld):
            wait_until(lambda: HTTP.get(f"{server.url}/health").status_code == 200)
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(model: TheWorld) -> Iterator[Server]:
    with serving(model) as running:
        yield running


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def image_of(seed: int) -> Image.Image:
    return frames_of(1, seed)[0]


def frames_of(count: int, seed: int = 0) -> list[Image.Image]:
    """Smooth random frames."""
    return [Image.fromarray(frame) for frame in to_pixels(tiny_frames(1, count, seed))[0]]


def data_address(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


IMAGE_URL = data_address(Image.new("RGB", (8, 8), "red"))


def image_part(image: Image.Image | str) -> dict[str, Any]:
    url = image if isinstance(image, str) else data_address(image)
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: dict[str, Any], question: str = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def ask(server: Server, *parts: dict[str, Any], question: str = QUESTION, **fields: Any) -> httpx.Response:
    """Posts one question."""
    body = {"model": "tiny", "messages": [user(*parts, question=question)], "max_tokens": 8, **fields}
    return HTTP.post(f"{server.url}/v1/chat/completions", json=body)


def metric(server: Server, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = HTTP.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)
