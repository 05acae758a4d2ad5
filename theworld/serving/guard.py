"""What every request passes before it is read: the key, the number of requests, and limits of size and time."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from theworld.serving.engine import ARRIVAL, Arrival, Engine
from theworld.serving.errors import RequestError
from theworld.serving.listening import host_of, is_loopback
from theworld.serving.metrics import Metrics
from theworld.serving.settings import MIB, ServerSettings

OPEN = ("/health",)  # to everybody, for load balancers
PATHS = ("/v1/chat/completions", "/v1/videos/generate", "/v1/models", "/health", "/metrics", "/openapi.json")


LEFT = 499  # the status of requests whose clients left early, in metrics


class Guard:
    """ASGI middleware that refuses requests before their bodies are read, and counts all of them."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, engine: Engine, metrics: Metrics) -> None:
        self.app, self.settings, self.engine, self.metrics = app, settings, engine, metrics
        self.in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, path, status, complete = time.perf_counter(), scope["path"], 0, False
        path = path if path in PATHS else "other"

        async def noting(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._checked(scope, receive, noting)
        except asyncio.CancelledError:  # the time for stopping is up
            if not status:
                stopping = RequestError(
                    503, "The server is stopping.", code="stopping", headers={"Connection": "close"}
                )
                await stopping.response()(scope, receive, noting)
        finally:
            self.metrics.requests.labels(path, status if complete else LEFT).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except RequestError as error:
            await error.response()(scope, receive, send)
            return
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self.in_progress += 1
        arrival = Arrival(self.engine)
        ARRIVAL.set(arrival)  # of the task of this request
        self.metrics.in_progress.set(self.in_progress)
        try:
            await self.app(scope, self._limited(receive), send)
        finally:
            arrival.end()
            self.in_progress -= 1
            self.metrics.in_progress.set(self.in_progress)

    def _check(self, scope: Scope) -> None:
        """Raises a RequestError for a request that must not be read."""
        headers, settings = Headers(scope=scope), self.settings
        unlocked = settings.api_key is None and is_loopback(settings.host)
        if unlocked and not is_loopback(host_of(headers.get("host", "localhost"))):
            # a page of the web whose name leads here could use the browser of this machine
            raise RequestError(403, f"This server answers requests to {settings.host} alone.", code="wrong_host")
        if settings.api_key is not None and scope["path"] not in OPEN:
            given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given[2].strip().encode(), settings.api_key.encode())
            if given[0].lower() != "bearer" or not right:
                message = "The API key is missing or wrong: send it as `Authorization: Bearer KEY`."
                raise RequestError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if scope["method"] != "POST":
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > settings.max_body_bytes:
            raise too_large(settings)
        if self.engine.model is None:
            raise RequestError(503, "The model is being loaded.", code="loading", headers={"Retry-After": "5"})
        if self.in_progress >= settings.max_requests:
            seconds = max(1, math.ceil(self.engine.seconds_per_job * self.in_progress / 2))
            raise RequestError(
                429,
                f"{self.in_progress} requests wait or run already; ask again in {seconds} s.",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )

    def _limited(self, receive: Receive) -> Receive:
        """`receive` with the limits of a body's size and time."""
        received, complete = 0, False
        end = asyncio.get_running_loop().time() + self.settings.body_timeout

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message: dict[str, Any] = dict(await receive())
            except TimeoutError:
                raise RequestError(
                    408, f"The request did not arrive completely within {self.settings.body_timeout:g} s."
                ) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.settings.max_body_bytes:
                raise too_large(self.settings)
            return message

        return limited


def too_large(settings: ServerSettings) -> RequestError:
    return RequestError(413, f"The request is larger than {settings.max_body_bytes / MIB:g} MiB.", code="too_large")
