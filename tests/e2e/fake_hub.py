"""A model hub on the loopback interface that answers the calls huggingface_hub makes, and can misbehave on purpose."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/(?P<what>revision|tree)/(?P<revision>[^?]+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class FakeRepo:
    """One repository at one commit."""

    files: dict[str, bytes]
    gated: int | None = None
    """HTTP status for whoever comes without the token ``"good"``."""
    branches: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + data)
        return digest.hexdigest()


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    range: str | None


@dataclass
class FakeHub:
    """Serves ``repos`` while the ``with`` block runs."""

    repos: dict[str, FakeRepo] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    has_sizes: bool = True
    """Whether listings tell sizes."""
    cuts: int = 0
    """How many more downloads of weights break off half-way."""
    dies_on_cut: bool = False
    """Stop answering anything after the first cut."""
    status: int | None = None
    """Answer everything with this status."""
    stalled: threading.Event = field(default_factory=threading.Event)
    """Set once a stalling download has sent its first half."""
    stalls: bool = False
    wakes: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wakes.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def got(self, name: str, method: str = "GET") -> list[Seen]:
        """The requests of one file."""
        return [s for s in self.seen if s.method == method and s.path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake.seen.append(Seen(self.command, path, self.headers.get("Range")))
        if self.fake.status is not None:
            return self._fail(self.fake.status)
        for pattern, answer in ((_API, self._api), (_FILE, self._file)):
            match = pattern.fullmatch(path)
            if match is not None:
                return self._in_repo(match["repo"], match["revision"], match.groupdict(), answer)
        return self._fail(404)

    def _in_repo(self, name: str, revision: str | None, parts: dict[str, str], answer: Any) -> None:
        repo = self.fake.repos.get(name)
        if repo is None:  # the real hub does not tell strangers what does not exist
            return self._fail(401, "RepoNotFound")
        if revision is not None and revision not in (*repo.branches, repo.commit):
            return self._fail(404, "RevisionNotFound")
        if repo.gated and self.headers.get("Authorization") != "Bearer good":
            return self._fail(repo.gated, "GatedRepo")
        return answer(repo, parts)

    def _api(self, repo: FakeRepo, parts: dict[str, str]) -> None:
        def row(name: str, data: bytes) -> dict[str, Any]:
            return {"size": len(data)} if self.fake.has_sizes else {}

        if parts["what"] == "tree":
            listing: Any = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in repo.files.items()
            ]
        else:
            siblings = [{"rfilename": name, **row(name, data)} for name, data in repo.files.items()]
            listing = {
                "id": parts["repo"],
                "sha": repo.commit,
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
        self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: FakeRepo, parts: dict[str, str]) -> None:
        data = repo.files.get(parts["file"])
        if data is None:
            return self._fail(404, "EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": repo.commit}
        status, start = 200, 0
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        is_weight = parts["file"].endswith((".safetensors", ".gguf", ".bin"))
        return self._send(status, data[start:], headers, breakable=is_weight and self.command == "GET")

    def _fail(self, status: int, code: str | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, breakable: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        if breakable and self.fake.stalls:
            self.wfile.write(body[:half])
            self.wfile.flush()
            self.fake.stalled.set()
            self.fake.wakes.wait(30)
        elif breakable and self.fake.cuts:
            self.fake.cuts -= 1
            if self.fake.dies_on_cut:
                self.fake.status = 503
            self.wfile.write(body[:half])
            self.close_connection = True
        else:
            self.wfile.write(body)
