"""A reverse proxy as careless operators set it up: another path, whole answers held back until they end, lines that break."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OWN = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "server", "date"}
)


class Proxy:
    """A running proxy.

    Args:
        target: port of the server behind.
        prefix: the path it is served below, such as ``/deep/chat``.
        is_buffering: answers come whole, as nginx does it unless told otherwise.
    """

    def __init__(self, target: int, prefix: str, *, is_buffering: bool) -> None:
        self.target, self.prefix, self.is_buffering = target, prefix, is_buffering
        self.break_after: int | None = None
        """Bytes of an event stream after which the line breaks; None: never."""
        self.is_down = False
        """Whether connections are closed at once."""
        self.is_alone = False
        """Whether the server behind it is gone, as far as it knows."""
        self.num_refused = 0
        """Connections that were."""
        self.server = _Listener(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{prefix}/"


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # a browser comes with many connections at once


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_GET(self) -> None:
        self._pass_on()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        self.close_connection = True
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if length else None
        if self.proxy.is_down:
            self.proxy.num_refused += 1
            return
        if self.proxy.is_alone:
            self.send_error(502, "Bad Gateway", "<b>nobody</b> is behind")
            return
        if not self.path.startswith(f"{self.proxy.prefix}/"):
            self.send_error(404)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
        behind = http.client.HTTPConnection("127.0.0.1", self.proxy.target, timeout=30)
        with contextlib.closing(behind), contextlib.suppress(OSError):
            behind.request(self.command, self.path.removeprefix(self.proxy.prefix), body, headers)
            response = behind.getresponse()
            if self.proxy.is_buffering:
                self._answer_whole(response)
            else:
                self._answer_in_pieces(response)

    def _begin(self, response: http.client.HTTPResponse, **extra: str) -> None:
        self.send_response(response.status)
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _OWN]
        for name, value in [*headers, ("Connection", "close"), *extra.items()]:
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _answer_whole(self, response: http.client.HTTPResponse) -> None:
        whole = response.read()
        self._begin(response, Content_Length=str(len(whole)))
        self.wfile.write(whole)

    def _answer_in_pieces(self, response: http.client.HTTPResponse) -> None:
        self._begin(response)
        is_stream = response.headers.get_content_type() == "text/event-stream"
        sent = 0
        while piece := response.read1(65536):
            self.wfile.write(piece)
            self.wfile.flush()
            sent += len(piece)
            limit = self.proxy.break_after
            if self.proxy.is_down or (is_stream and limit is not None and sent > limit):
                return


@contextlib.contextmanager
def proxied(target: int, prefix: str = "", *, is_buffering: bool = False) -> Iterator[Proxy]:
    """Runs a proxy in a thread."""
    proxy = Proxy(target, prefix, is_buffering=is_buffering)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join(10)
