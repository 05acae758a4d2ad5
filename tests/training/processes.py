"""Runs of several processes on this machine, as torchrun starts them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from tests import commands


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def be_rank(rank: int, num_processes: int, port: int) -> None:
    """Makes this process one of several that train together, as torchrun does."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def start(function: Callable[..., Any], num_processes: int, *arguments: Any) -> list[commands.Command]:
    """Starts `function(rank, *arguments)` in each of several processes."""
    port = free_port()
    return [commands.start(call, function, rank, num_processes, port, *arguments) for rank in range(num_processes)]


def call(function: Callable[..., Any], rank: int, num_processes: int, port: int, *arguments: Any) -> None:
    be_rank(rank, num_processes, port)
    function(rank, *arguments)


def run(function: Callable[..., Any], num_processes: int, *arguments: Any) -> None:
    """Runs `function(rank, *arguments)` in each of several processes, all of which end with exit code 0."""
    started = start(function, num_processes, *arguments)
    assert [process.wait() for process in started] == [0] * num_processes
