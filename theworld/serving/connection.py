"""HTTP connections that do not stay open for clients that stopped sending or reading."""

from __future__ import annotations

import asyncio
from typing import Literal

from uvicorn.protocols.http.h11_impl import H11Protocol


def connection_class(seconds: float) -> type[H11Protocol]:
    """The class of connections for uvicorn, which itself limits only the time between two requests.

    Args:
        seconds: in which the head of a request must have arrived, and in which a client must read some of its answer.
    """

    class Connection(H11Protocol):
        head_timer: asyncio.TimerHandle | None = None
        read_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self.stop("head_timer")
            elif self.head_timer is None:
                self.wait_for_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.wait_for_reading(self.transport.get_write_buffer_size())

        def resume_writing(self) -> None:
            super().resume_writing()
            self.stop("read_timer")

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.stop("head_timer")
            self.stop("read_timer")

        def stop(self, name: Literal["head_timer", "read_timer"]) -> None:
            timer: asyncio.TimerHandle | None = getattr(self, name)
            if timer is not None:
                timer.cancel()
            setattr(self, name, None)

        def wait_for_head(self) -> None:
            self.head_timer = self.loop.call_later(seconds, self.transport.abort)

        def wait_for_reading(self, size: int) -> None:
            """Checks after some time that fewer bytes than `size` wait to be read."""
            self.read_timer = self.loop.call_later(seconds, self.check_reading, size)

        def check_reading(self, size: int) -> None:
            left = self.transport.get_write_buffer_size()
            if left < size:
                self.wait_for_reading(left)
            else:
                self.transport.abort()

    return Connection
