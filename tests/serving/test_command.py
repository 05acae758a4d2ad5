"""`theworld serve` and `theworld doctor --serve`: options, and what is said before anything is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.serving.conftest import QUESTION
from theworld import TheWorld
from theworld.cli import app
from theworld.serving.listening import listen
from theworld.serving.server import Server
from theworld.serving.settings import KEY_VARIABLE, MIB


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    """Those that a command would have run."""
    made: list[Server] = []

    def note(server: Server) -> None:
        made.append(server)
        server._socket.close()

    monkeypatch.setattr(Server, "run", note)
    return made


def test_the_command_serves_a_folder(
    model: TheWorld, tmp_path: Path, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "mine")
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    options = ("--port", "0", "--host", "0.0.0.0", "--batch-size", "4", "--batch-wait", "5", "--max-body", "2")
    result = run("serve", tmp_path / "mine", *options, "--dtype", "float32", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "with an API key" in result.output
    assert "secret" not in result.output
    settings = servers[0].settings
    assert (settings.name, settings.api_key, settings.batch_wait) == ("mine", "secret", 0.005)
    assert (settings.batch_size, settings.max_body_bytes) == (4, 2 * MIB)
    loaded = servers[0].engine._load()
    arguments: dict[str, Any] = {"max_new_tokens": 4, "enable_world": False}
    assert loaded.generate(None, QUESTION, **arguments) == model.generate(None, QUESTION, **arguments)


def test_the_example_of_the_help(servers: list[Server]) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    result = run("serve", "nano", "--port", port)
    assert result.exit_code == 0, result.output
    assert (servers[0].url, servers[0].settings.name) == (f"http://127.0.0.1:{port}", "nano")
    assert "Example: theworld serve nano --port 8000" in run("serve", "--help").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "can be reached from other machines"),
        (("--api-key-file", "nothing-here"), "nothing-here, cannot be read"),
        (("--steps", "99"), "imagines at most 4 world steps"),
        (("--host", "999.1.1.1", "--force"), "Nothing can listen at 999.1.1.1:8000"),
    ],
)
def test_what_cannot_be_served_is_said_first(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    result = run("serve", "nano", *arguments)
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "theworld.serving.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("serve", "nano")
    assert result.exit_code == 1
    assert 'pip install "theworld[serve]"' in result.output.replace("\n", " ")


def test_doctor_checks_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr("theworld.inspection.machine.free_ram", lambda: 2**40)
    monkeypatch.setattr("theworld.inspection.machine.gpus", list)
    alone = json.loads(run("doctor", "nano", "--json").stdout)
    taken = []

    def fail(host: str, port: int) -> Any:
        taken.append((host, port))
        raise ValueError("Nothing can listen there.")

    with listen("127.0.0.1", 0) as free:
        monkeypatch.setattr("theworld.serving.listening.listen", lambda host, port: free.dup())
        content = json.loads(run("doctor", "nano", "--serve", "--json").stdout)
    assert content["works"]
    assert any(KEY_VARIABLE in finding["text"] for finding in content["findings"])
    assert content["memory"][0]["predicted"] > alone["memory"][0]["predicted"]
    monkeypatch.setattr("theworld.serving.listening.listen", fail)
    result = run("doctor", "nano", "--serve", "--json")
    assert (result.exit_code, taken) == (1, [("127.0.0.1", 8000)])
    assert "Nothing can listen there." in result.stdout
