"""A hub on the loopback address: repositories at commits, behind the hub's own protocol.

What huggingface_hub asks of https://huggingface.co is answered here from memory: a repository's
commit, its tree, and its files with their tags, sizes and ranges. Repositories can be moved to
another commit, gated behind a token, removed, or made to break off in the middle of a file.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretsecretsecretsecretsecret"


@dataclass
class Repository:
    """Files by path at each commit, and the commit each branch stands at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit on ``branch``; returns its hash."""
        digest = hashlib.sha1(branch.encode())
        for name in sorted(files):
            digest.update(name.encode() + b"\0" + files[name])
        self.commits[digest.hexdigest()] = files
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def push_folder(self, folder: Path, branch: str = "main") -> str:
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return self.push(files, branch)


class Hub(ThreadingHTTPServer):
    """The server; ``requests`` is what was asked for, ``METHOD path`` each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.authorized: list[bool] = []  # whether the request had the token
        self.cut: dict[str, int] = {}  # file name -> bytes after which the answer breaks off
        self.short: dict[str, int] = {}  # file name -> bytes left out of a complete answer

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, kind: str = "models") -> Repository:
        return self.repositories.setdefault((kind, name), Repository())

    def downloads(self) -> list[str]:
        """Files whose content was asked for."""
        return [r for r in self.requests if r.startswith("GET") and "/resolve/" in r]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Silence."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.server
        hub.requests.append(f"{self.command} {path}")
        has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        hub.authorized.append(has_token)
        parts = path.strip("/").split("/")
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        kind = "datasets" if parts[0] == "datasets" else "models"
        if parts[0] in ("datasets", "models"):
            parts = parts[1:]
        repository = hub.repositories.get((kind, "/".join(parts[:2])))
        if repository is None:
            return self._error(404 if has_token else 401, "RepoNotFound")
        if repository.gated and not has_token and not (is_api and parts[2:3] == ["revision"]):
            return self._error(401, "GatedRepo")
        if len(parts) == 2 and is_api:
            parts = [*parts, "revision", "main"]
        revision = parts[3] if len(parts) > 3 else ""
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._error(404, "RevisionNotFound")
        files = repository.commits[commit]
        if is_api and parts[2] == "revision":
            siblings = [{"rfilename": name} for name in files]
            name = "/".join(parts[:2])
            return self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})
        if is_api and parts[2] == "tree":
            return self._json([_entry(name, content) for name, content in files.items()])
        name = "/".join(parts[4:])
        if parts[2] != "resolve" or name not in files:
            return self._error(404, "EntryNotFound")
        return self._file(name, files[name], commit)

    def _file(self, name: str, content: bytes, commit: str) -> None:
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
        body = content[start:]
        missing = self.server.short.get(name, 0)
        sent = body[: len(body) - missing] if missing else body
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_blob(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(sent)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.cut.get(name)
        if limit is not None and start + len(sent) > limit:
            self.wfile.write(sent[: max(0, limit - start)])
            self.close_connection = True
            return
        self.wfile.write(sent)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "oid": _blob(content), "size": len(content)}
