"""A small HTTP server on the loopback that answers as a test scripts it, well or badly."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 512}]}


@dataclass(kw_only=True)
class Answer:
    """One scripted answer; ``pieces`` are written one after the other."""

    status: int = 200
    kind: str = "text/event-stream"
    pieces: Sequence[bytes] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    is_cut: bool = False
    """Close the connection without the end that the framing promises."""
    has_length: bool = False
    """Announce the whole length instead of sending chunks."""
    pause: Callable[[int], None] = lambda at: None
    """Called before each piece with its number."""


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


def event(data: Any) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def chat_chunk(delta: Mapping[str, Any], *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """An event of a streamed chat completion."""
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def chat_events(*texts: str, usage: tuple[int, int] | None = (7, 3), finish: str = "stop") -> list[bytes]:
    """A whole streamed answer, a text a chunk."""
    pieces = [chat_chunk({"role": "assistant", "content": ""}), *(chat_chunk({"content": t}) for t in texts)]
    pieces.append(chat_chunk({}, finish=finish))
    if usage:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        pieces.append(event({"choices": [], "usage": counts}))
    return [*pieces, event("[DONE]")]


def as_json(body: Any, status: int = 200, **headers: str) -> Answer:
    """A JSON answer."""
    return Answer(
        status=status,
        kind="application/json",
        pieces=[json.dumps(body).encode()],
        headers={k.replace("_", "-"): v for k, v in headers.items()},
    )


def error(status: int, message: str, **headers: str) -> Answer:
    """An OpenAI error."""
    return as_json({"error": {"message": message, "type": "invalid_request_error"}}, status, **headers)


class SseServer:
    """Answers /v1/models with ``models`` and everything else with the next of ``answers``; the last one repeats."""

    def __init__(self) -> None:
        self.models: Answer = as_json(MODELS)
        self.answers: list[Answer] = [Answer(pieces=chat_events("Hel", "lo"))]
        self.reply: Callable[[Seen], Answer] | None = None
        """Chooses the answer from the request, instead of ``answers``."""
        self.seen: list[Seen] = []
        self.hung_up = threading.Event()
        """Set when a client has gone before its answer was whole."""
        self.url = ""
        self._lock = threading.Lock()

    @property
    def asked(self) -> list[Seen]:
        """Requests other than for the list of models."""
        return [s for s in self.seen if not s.path.endswith("/models")]

    def answer(self, seen: Seen) -> Answer:
        """Takes note of a request and chooses its answer."""
        with self._lock:
            self.seen.append(seen)
            if seen.path.endswith("/models"):
                return self.models
            if self.reply is not None:
                return self.reply(seen)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: SseServer

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._serve(json.loads(data))

    def _serve(self, body: Any) -> None:
        answer = self.script.answer(Seen(self.command, self.path, dict(self.headers.items()), body))
        try:
            self._write(answer)
        except (BrokenPipeError, ConnectionResetError):
            self.script.hung_up.set()
            self.close_connection = True

    def _write(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.has_length:
            self.send_header("Content-Length", str(sum(map(len, answer.pieces))))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at, piece in enumerate(answer.pieces):
            answer.pause(at)
            self.wfile.write(piece if answer.has_length else b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()
        if answer.is_cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif not answer.has_length:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def sse_server(tls: ssl.SSLContext | None = None) -> Iterator[SseServer]:
    """Runs a scripted server."""
    script = SseServer()
    handler = type("Handler", (_Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust it
    script.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def tls_server(folder: Path) -> Iterator[tuple[SseServer, Path]]:
    """The same over TLS; also gives the file of the certificate to trust, which is for localhost."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with sse_server(context) as script:
        yield script, certificate
