"""Listening: one process that loads a model, answers requests, and on SIGTERM finishes what it has begun."""

from __future__ import annotations

from collections.abc import Callable

import uvicorn

from theworld.inference.pipeline import TheWorld
from theworld.serving.app import create_app
from theworld.serving.connection import connection_class
from theworld.serving.engine import Engine
from theworld.serving.listening import listen, run, url_of
from theworld.serving.media import MediaReader
from theworld.serving.metrics import Metrics
from theworld.serving.settings import ServerSettings


class Server:
    """A server of one model.

    Args:
        load: loads the model; called while the server already answers `/health`.
        settings: where it listens, and its limits.
        media: replaces the reader of images and videos, for tests.

    Attributes:
        url: where it listens.

    Raises:
        ValueError: if it cannot listen there.
    """

    def __init__(
        self, load: Callable[[], TheWorld], settings: ServerSettings, media: MediaReader | None = None
    ) -> None:
        self.settings = settings
        self._socket = listen(settings.host, settings.port)
        self.url = url_of(settings.host, self._socket)
        metrics = Metrics()
        self.engine = Engine(
            load, metrics, batch_size=settings.batch_size, batch_wait=settings.batch_wait, ended=self.stop
        )
        config = uvicorn.Config(
            create_app(self.engine, settings, metrics, media),
            http=connection_class(settings.body_timeout),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Answers requests until `stop` or, in the main thread, SIGTERM or SIGINT.

        Raises:
            ValueError, OSError, RuntimeError: why the model could not be loaded.
        """
        run(self._server, self._socket)
        if self.engine.failure is not None:
            raise self.engine.failure

    def stop(self) -> None:
        """Ends `run` after the requests that have begun; callable from any thread."""
        self._server.should_exit = True
