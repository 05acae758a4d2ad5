"""Serves the page, in one process, to this machine alone unless another address is chosen."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from theworld.demo.page import Page, theme
from theworld.demo.rendering import SCRIPT, STYLE
from theworld.serving.listening import host_of, is_loopback, run

MAX_UPLOAD = 32 * 2**20  # bytes of a file
SHUTDOWN_SECONDS = 2  # an open page holds its connection as long as it is open

# The browser loads nothing from, and sends nothing to, another host, whatever Gradio's scripts try.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SameHost:
    """ASGI middleware: answers only under a name of this machine if it listens there alone, and sends HEADERS."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if is_loopback(self.host) and not is_loopback(host_of(Headers(scope=scope).get("host", "localhost"))):
            # a page of the web whose name leads here could use the browser of this machine
            await PlainTextResponse(f"This page is served to {self.host} alone.\n", 403)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


def serve(page: Page, listening: socket.socket, host: str, ready: Callable[[], None] = lambda: None) -> None:
    """Serves a page until SIGTERM or SIGINT; files of visitors are deleted at the end.

    Args:
        listening: a socket at `host`, which is closed at the end.
        ready: called when the page can be opened.
    """
    with tempfile.TemporaryDirectory(prefix="theworld-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the only way to choose where Gradio keeps files
        run(server_of(page, host, Path(folder), ready), listening)


def server_of(page: Page, host: str, folder: Path, ready: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """The server of a page, not running yet."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(SameHost, host=host)
    app.router.on_startup.append(ready)
    gr.mount_gradio_app(
        app,
        page.build(folder),
        path="/",
        allowed_paths=[str(folder)],
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(),
        css=STYLE,
        head=f"<script>{SCRIPT}</script>",
    )
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    return uvicorn.Server(config)
