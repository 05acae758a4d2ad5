"""A Hub on the loopback interface, which lists and serves files, and refuses gated and unknown repositories.

In the same process: `with LoopbackHub(repositories) as hub: hub.use(monkeypatch, cache)`.
In a subprocess: `hub.environment(cache)`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import pytest

ACCEPTED = "hf_accepted"  # token of an account that has accepted all licences
OTHER_ACCOUNT = "hf_other"  # token of an account that has accepted none
BROKEN = object()  # a fault that breaks the connection
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a model folder as a repository."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class LoopbackHub:
    """Serves `repositories` (id -> file -> content); those in `gated` require the token ACCEPTED.

    The id of a dataset is `datasets/owner/name` here.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]], gated: tuple[str, ...] = ()) -> None:
        self.repositories = repositories
        self.gated = gated
        self.fetched: list[str] = []  # files whose content was requested
        self.sizes: dict[tuple[str, str], int] = {}  # sizes to report instead of the actual ones
        self.private: set[str] = set()  # names of private repositories
        self.commits: list[tuple[str, str, list[str]]] = []  # repository, message and files of each
        self.tokens: set[str | None] = set()  # that came with writing requests
        self.fault: Callable[[str], object] = lambda path: None  # of a writing request: a status, BROKEN, or None
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        try:
            socket.create_connection(self.server.server_address[:2], timeout=5).close()
        except OSError as error:  # a network namespace whose loopback interface is down
            self.server.server_close()
            import pytest  # not above, since scripts/smoke_test.py runs where it is not installed

            pytest.skip(f"this machine cannot reach itself: {error}")
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path, token: str | None = None) -> None:
        use_endpoint(monkeypatch, self.url, cache, token)

    def environment(self, cache: Path, token: str | None = None) -> dict[str, str]:
        values = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache)}
        return {**values, "HF_TOKEN": token} if token else values


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, token: str | None = None) -> None:
    """Points huggingface_hub, which reads its environment once, at another endpoint and cache."""
    from huggingface_hub import constants, file_download, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(cache / "hub"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        """Creating repositories and commits, as huggingface_hub asks for them; all files travel in the commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.tokens.add(self.token())
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if fault := self.hub.fault(self.path):
            if fault is BROKEN:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.refuse(int(fault), None, "try again")  # type: ignore[call-overload]
        elif self.token() != ACCEPTED:
            self.refuse(403, None, "this token may only read")
        elif parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
            if name in self.hub.repositories:
                self.send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
                return
            self.hub.repositories = {**self.hub.repositories, name: {}}
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.hub.private.add(name)
            self.send(200, {"url": f"{self.hub.url}/{name}"})
        elif parts == ["api", "validate-yaml"]:  # of a model card
            self.send(200, {"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self.send(200, {"files": files})
        elif parts[4:5] == ["commit"]:
            name, lines = "/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.hub.repositories = {**self.hub.repositories, name: {**self.hub.repositories[name], **files}}
            self.hub.commits.append((name, lines[0]["value"]["summary"], sorted(files)))
            self.send(
                200,
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}",
                    "hookOutput": "",
                    "pullRequestUrl": None,
                },
            )
        else:
            self.refuse(404, "RepoNotFound", "not found")

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            known = self.token() in (ACCEPTED, OTHER_ACCOUNT)
            self.send(200, {"name": "owner"}) if known else self.refuse(401, None, "Invalid credentials")
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self.listing("/".join(parts[2:4]), parts[4:])
        elif parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            self.listing("/".join(parts[1:4]), parts[4:])
        elif len(parts) >= 6 and parts[0] == "datasets" and parts[3] == "resolve":
            self.file("/".join(parts[:3]), "/".join(parts[5:]))
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self.refuse(404, "RepoNotFound", "not found")

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def listing(self, name: str, rest: list[str]) -> None:
        files = self.hub.repositories.get(name)
        if files is None:  # the Hub does not distinguish private from missing repositories
            self.refuse(401 if self.token() is None else 404, "RepoNotFound", "Repository not found")
            return
        sizes = {path: self.hub.sizes.get((name, path), len(content)) for path, content in files.items()}
        if rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": path, "size": size, "oid": "0"} for path, size in sizes.items()]
            self.send(200, entries)
            return
        siblings = [{"rfilename": path, "size": size, "blobId": "0"} for path, size in sizes.items()]
        gated = "manual" if name in self.hub.gated else False
        self.send(
            200, {"id": name, "sha": COMMIT, "gated": gated, "private": name in self.hub.private, "siblings": siblings}
        )

    def file(self, name: str, path: str) -> None:
        files = self.hub.repositories.get(name)
        if files is None:
            self.refuse(401 if self.token() is None else 404, "RepoNotFound", "Repository not found")
        elif name in self.hub.gated and self.token() != ACCEPTED:
            self.refuse(401 if self.token() is None else 403, "GatedRepo", f"Access to model {name} is restricted.")
        elif path not in files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            if self.command == "GET":
                self.hub.fetched.append(f"{name}/{path}")
            self.send(200, files[path], {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(files[path])}"'})

    def refuse(self, status: int, code: str | None, text: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": text} if code else {"X-Error-Message": text}
        self.send(status, {"error": text}, headers)

    def send(self, status: int, content: object, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {"Content-Type": "application/json"}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
