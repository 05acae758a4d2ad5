"""Commands that tests start, each in a process of its own that is forked from one that has imported the libraries.

The imports of one command take a new Python about ten seconds, and a fork none. Everything else is as in a new process:
arguments, environment, working folder, standard streams, signals and exit code. Only variables that a library reads
when it is imported (`HF_HOME`, `OMP_NUM_THREADS`) have no effect; a test that sets one of these, or that is about
imports, starts a new Python.

The first test that needs it starts the process that forks (`python -m tests.commands serve SOCKET PID`); it ends with
the test session. `python tests/commands.py SOCKET …` has it run `python …`.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).parent.parent
FOLDER = "THEWORLD_TEST_COMMANDS"  # the environment variable that names the folder of a session
IMPORTED = (
    "theworld.cli", "theworld.inference.pipeline", "theworld.inference.latent_cache", "theworld.training.recipe",
    "theworld.evaluation.evaluator", "theworld.evaluation.results", "theworld.datasets.physics",
    "theworld.world_models.cosmos_predict2", "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.siglip.modeling_siglip", "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.models.transformers.transformer_cosmos", "diffusers.schedulers.scheduling_flow_match_euler_discrete",
    "datasets", "torch.utils.tensorboard", "matplotlib.pyplot", "rich.table", "tests.tiny",
)  # fmt: skip
LONGEST = 280.0  # seconds to wait for the imports, where every core is busy


# ------------------------------------------------------------------------------------------------------- in the tests


class Command:
    """A running Python command.

    Args:
        arguments: of `python`: `-m`, MODULE, … or `-c`, CODE, … or SCRIPT, ….
        stdin, stdout, stderr: file descriptors; the test's own by default.
        env, cwd: those of the test by default.

    Attributes:
        pid: of the command, which leads a session and a process group of its own.
    """

    def __init__(
        self,
        *arguments: object,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self._connection = connect(socket_of_session())
        request = {
            "arguments": [os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()),
        }
        self.pid = send(self._connection, request, [stdin, stdout, stderr])

    def wait(self) -> int:
        """The exit code; -N if signal N ended it."""
        return read_number(self._connection)

    def running(self) -> bool:
        return not select.select([self._connection], [], [], 0)[0]

    def kill(self) -> None:
        self._connection.close()  # which the process that forks answers by SIGKILL


def run(
    *arguments: object, cwd: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python …` to its end and captures its output."""
    command = [*client(), *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=LONGEST, check=False)


def start(function: Callable[..., Any], *arguments: Any) -> Command:
    """Starts a process that calls a function of a module."""
    code = f"import pickle; function, arguments = pickle.loads({pickle.dumps((function, arguments))!r})"
    return Command("-c", f"{code}; function(*arguments)")


def exit_code(function: Callable[..., Any], *arguments: Any) -> int:
    """The exit code of a process that calls a function of a module."""
    return start(function, *arguments).wait()


def programs() -> Path:
    """A folder with `python` and `theworld`, for `PATH` and for `make PYTHON=…`."""
    folder = socket_of_session().parent / "bin"
    if not (folder / "theworld").exists():
        folder.mkdir(exist_ok=True)
        start = " ".join(f"'{word}'" for word in client())
        for name, arguments in (("python", '"$@"'), ("theworld", '-m theworld.cli "$@"')):
            unfinished = folder / f".{name}-{os.getpid()}"
            unfinished.write_text(f"#!/bin/sh\nexec {start} {arguments}\n")
            unfinished.chmod(0o755)
            unfinished.rename(folder / name)
    return folder


def client() -> list[str]:
    return [sys.executable, "-I", "-S", __file__, str(socket_of_session())]


def socket_of_session() -> Path:
    """The socket of the process that forks, which is started if there is none yet."""
    from filelock import FileLock

    path = Path(os.environ[FOLDER]) / "socket"
    with FileLock(path.with_name("lock")):
        if not path.exists():
            command = [sys.executable, "-m", "tests.commands", "serve", str(path), os.environ[f"{FOLDER}_OWNER"]]
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
            with path.with_name("log").open("wb") as log:
                started = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            end = time.monotonic() + LONGEST
            while not path.exists():
                assert started.poll() is None, path.with_name("log").read_text()
                assert time.monotonic() < end, "importing the libraries took too long"
                time.sleep(0.05)
    return path


# ----------------------------------------------------------------------------------------------------------- messages


def connect(path: str | os.PathLike[str]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.fspath(path))
    return connection


def send(connection: socket.socket, request: Mapping[str, Any], files: Sequence[int | None]) -> int:
    """Has a request carried out with these files as standard streams (None is closed), and returns the process id."""
    content = json.dumps(request).encode()
    header = len(content).to_bytes(8, "big") + bytes(number is not None for number in files)
    socket.send_fds(connection, [header], [number for number in files if number is not None])
    connection.sendall(content)
    return read_number(connection)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int | None]]:
    header, found, _, _ = socket.recv_fds(connection, 11, 3)
    content = read(connection, int.from_bytes(header[:8], "big"))
    numbers = iter(found)
    return json.loads(content), [next(numbers) if given else None for given in header[8:]]


def read(connection: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = connection.recv(length - len(content))
        assert part, "the process that forks has ended"
        content += part
    return content


def read_number(connection: socket.socket) -> int:
    return int.from_bytes(read(connection, 8), "big", signed=True)


def write_number(connection: socket.socket, number: int) -> None:
    connection.sendall(number.to_bytes(8, "big", signed=True))


# ----------------------------------------------------------------------------------------------- python and theworld


def main(path: str, *arguments: str) -> NoReturn:
    """Has `python …` run by the process that forks, passes signals on to it, and ends as it ends."""
    if arguments[:1] not in (("-m",), ("-c",), ("-",)) and arguments[:1] and arguments[0].startswith("-"):
        os.execv(sys.executable, [sys.executable, *arguments])  # options of Python are for a new one
    streams = [number if is_open(number) else None for number in range(3)]  # before the connection takes a number
    connection = connect(path)
    request = {"arguments": arguments, "env": dict(os.environ), "cwd": os.getcwd()}
    pid = send(connection, request, streams)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    code = read_number(connection)
    if code < 0:
        with suppress(OSError):  # SIGKILL has no other handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


# ---------------------------------------------------------------------------------------------- the process that forks


def serve(path: str, owner: str) -> None:
    """Runs commands until the process `owner` has ended."""
    gc.disable()  # it would look at a million objects again and again
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork has one thread only"
    gc.collect()
    gc.freeze()
    gc.enable()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}-new")
    listener.listen(16)
    listener.settimeout(2)
    os.rename(f"{path}-new", path)  # it can be connected to from here on
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children vanish when they end
    while Path("/proc", owner).exists():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            attend(connection)
            os._exit(0)
        connection.close()


def attend(connection: socket.socket) -> None:
    """Carries out one request, and ends the command if the one who asked is gone."""
    connection.settimeout(None)
    request, files = receive(connection)
    pid = os.fork()
    if pid == 0:
        connection.close()
        execute(request, files)
    for number in files:
        if number is not None:
            os.close(number)
    write_number(connection, pid)
    ended = os.pidfd_open(pid)
    if connection in select.select([ended, connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    try:
        write_number(connection, os.waitstatus_to_exitcode(status))
    except BrokenPipeError:
        return  # it was killed by a test that does not wait for it


def execute(request: Mapping[str, Any], files: Sequence[int | None]) -> NoReturn:
    """Runs a command in this process, as `python …` does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes what it runs in the background ignore it
    files = [given if given is None else fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 10) for given in files]
    for number, given in enumerate(files):
        if given is None:
            os.close(number)
        else:
            os.dup2(given, number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    encoding = os.environ.get("PYTHONIOENCODING")
    sys.stdin = sys.__stdin__ = stream(0, "r", encoding)
    sys.stdout = sys.__stdout__ = stream(1, "w", encoding)
    sys.stderr = sys.__stderr__ = stream(2, "w", encoding, errors="backslashreplace")
    code = 0
    try:
        interpret(list(request["arguments"]))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - what no one catches is shown, as Python does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout and sys.stdout.flush()
    except OSError:
        code = 120  # as Python ends
    sys.stderr and sys.stderr.flush()
    os._exit(code)


def stream(number: int, mode: str, encoding: str | None, errors: str = "strict") -> Any:
    """A standard stream, or None if it is closed."""
    if not is_open(number):
        return None
    buffering = 1 if number == 2 or (mode == "w" and os.isatty(number)) else -1
    return open(number, mode, buffering, encoding=encoding or "utf-8", errors=errors, closefd=False)


def interpret(arguments: list[str]) -> None:
    """`-m MODULE …`, `-c CODE …`, `SCRIPT …`, or code on the standard input."""
    sys.path[:0] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    first = arguments[0] if arguments else "-"
    if first == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif first in ("-c", "-"):
        code, sys.argv = (arguments[1], ["-c", *arguments[2:]]) if first == "-c" else (sys.stdin.read(), arguments)
        sys.path.insert(0, "")
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
