"""Where a server listens, under which names it is asked, and how long it runs."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; a ValueError if that is not possible."""
    try:
        family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Nothing can listen at {host}:{port} ({reason}); choose another host or port.") from error


def url_of(host: str, listening: socket.socket) -> str:
    """The address of a server that listens at `host`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def host_of(header: str) -> str:
    """The host of a Host header, without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


def run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Answers requests until `server.should_exit` or, in the main thread, SIGTERM or SIGINT; closes the socket."""
    is_main = threading.current_thread() is threading.main_thread()
    # uvicorn raises the signal again at the end, which would end the process by it
    before = {each: signal.signal(each, ignore) for each in (signal.SIGTERM, signal.SIGINT)} if is_main else {}
    try:
        server.run(sockets=[listening])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        listening.close()


def ignore(number: int, frame: object) -> None:
    """Does nothing."""
