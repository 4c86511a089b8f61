"""HTTP/1.1 connections that read event streams at the least cost, so that measuring does not slow what is measured.

Knows requests as bytes and answers as events with the time they came; nothing of models. Proxies are not used.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, cast

from qwenkit.backends.event_stream import DONE, EventDecoder
from qwenkit.backends.remote_server import Server, message_of_body

OnEvent: TypeAlias = Callable[[float, bytes], None]
"""Gets the time an event came (time.perf_counter) and its data."""

_CONNECT_SECONDS = 10.0
_BUFFER_SIZE = 1 << 15
_LARGEST_HEAD = 1 << 16
_LARGEST_ERROR = 1 << 16


class ExchangeError(Exception):
    """A request that got no whole answer.

    Args:
        kind: a few words, the same for failures of the same kind.
        detail: what the server said, or nothing.
    """

    def __init__(self, kind: str, detail: str = "", *, is_stale: bool = False) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail
        self.is_stale = is_stale
        """A kept connection turned out to be closed, before a byte of the answer came."""


class Connection(asyncio.BufferedProtocol):
    """One connection, which carries one request after the other.

    A buffer of its own saves asyncio a fresh one of 256 KiB for every few bytes.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        # Under TLS asyncio slices it and writes to the slice, so a bytearray itself would not do.
        self._received = memoryview(bytearray(_BUFFER_SIZE))
        self._done: asyncio.Future[None] | None = None
        self._on_event: OnEvent = lambda at, data: None
        self.is_open = False
        self.has_served = False
        self._reset()

    def _reset(self) -> None:
        self._buffer = b""
        self._events = EventDecoder()
        self._status = 0  # 0: the head has not come
        self._kind = ""
        self._is_chunked = False
        self._left: int | None = None  # bytes of the body to come; None: until the server closes
        self._is_kept = True
        self._has_ended = False  # the last event has come
        self._error_body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BufferedProtocol."""
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BufferedProtocol."""
        self.is_open = False
        if self._done is None or self._done.done():
            return
        if self._status and self._left is None and not self._is_chunked:
            self._end()  # such a body ends with the connection
        elif self._has_ended:
            self._succeed()
        else:
            is_stale = self.has_served and not self._status and not self._buffer
            self._fail(ExchangeError("connection closed by the server", is_stale=is_stale))

    async def exchange(self, request: bytes, on_event: OnEvent, timeout: float) -> None:
        """Sends a request and hands on the events of its answer until it is whole.

        Raises:
            ExchangeError: it is not.
        """
        assert self._transport is not None
        self._reset()
        self._on_event = on_event
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        self._transport.write(request)
        alarm = loop.call_later(timeout, self._fail, ExchangeError("timeout"))
        try:
            await self._done
            self.has_served = True
        finally:
            alarm.cancel()
            if not self._is_kept or self._done.cancelled() or self._done.exception() is not None:
                self.close()

    def close(self) -> None:
        """Hangs up. Harmless when that is done."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self.data_received(bytes(self._received[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Takes bytes of the answer."""
        if self._done is None or self._done.done():
            self.close()  # nothing was asked
            return
        now = time.perf_counter()
        try:
            if not self._status:
                data = self._read_head(self._buffer + data)
                if not self._status:
                    return
            if self._is_chunked:
                self._read_chunks(now, data)
            else:
                self._read_plain(now, data)
        except ExchangeError as error:
            self._fail(error)
        except ValueError:
            self._fail(ExchangeError("malformed HTTP"))

    def _read_head(self, data: bytes) -> bytes:
        """Takes the status and headers once they are whole; returns what follows them."""
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not blank:
            if len(data) > _LARGEST_HEAD:
                raise ExchangeError("malformed HTTP")
            self._buffer = data
            return b""
        self._buffer = b""
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ExchangeError("malformed HTTP")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        self._kind = headers.get("content-type", "").partition(";")[0].lower()
        self._is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        self._left = None if self._is_chunked or length is None else int(length)
        said = headers.get("connection", "").lower()
        self._is_kept = (
            "close" not in said and version != "HTTP/1.0" and (self._is_chunked or length is not None)
        )
        self._status = int(status[:3])
        return rest

    def _read_chunks(self, now: float, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at = 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            size = int(buffer[at:end].partition(b";")[0], 16)
            if size == 0:
                if buffer.find(b"\r\n\r\n", end) >= 0:  # trailers, if there are any, are over
                    self._end()
                    return
                break
            start, stop = end + 2, end + 2 + size
            if len(buffer) < stop + 2:
                break
            self._take(now, buffer[start:stop])
            at = stop + 2
        self._buffer = buffer[at:]

    def _read_plain(self, now: float, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)
        if data:
            self._take(now, data)
        if self._left is not None and self._left <= 0:
            self._end()

    def _take(self, now: float, body: bytes) -> None:
        if self._status != 200 or self._kind != "text/event-stream":
            self._error_body = (self._error_body + body)[:_LARGEST_ERROR]
            return
        for data in self._events.feed(body):
            if data == DONE:
                self._has_ended = True
            else:
                self._on_event(now, data)

    def _end(self) -> None:
        """The body is over: was it what was asked for?"""
        if self._status != 200:
            self._fail(ExchangeError(f"HTTP {self._status}", message_of_body(self._error_body)))
        elif self._kind != "text/event-stream":
            self._fail(ExchangeError("not an event stream", self._kind))
        elif self._has_ended or self._events.flush() == [DONE]:
            self._succeed()
        else:
            self._fail(ExchangeError("stream cut before its end"))

    def _succeed(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: ExchangeError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class Pool:
    """Connections to one server, opened when needed and kept for the next request.

    Args:
        server: where they lead.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._free: deque[Connection] = deque()

    def request(self, path: str, body: bytes) -> bytes:
        """A POST of JSON, as bytes to send."""
        server = self._server
        port = "" if server.port == (443 if server.scheme == "https" else 80) else f":{server.port}"
        host = f"[{server.host}]" if ":" in server.host else server.host
        headers = {"Host": host + port, **server.headers(), "Content-Type": "application/json"}
        headers["Content-Length"] = str(len(body))
        lines = [
            f"POST {server.base}/v1/{path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def exchange(self, request: bytes, on_event: OnEvent) -> None:
        """See Connection.exchange; a kept connection that the server has closed meanwhile is replaced once.

        Raises:
            ExchangeError: no connection, or no whole answer.
        """
        while True:
            connection = await self._take()
            try:
                await connection.exchange(request, on_event, self._server.timeout)
            except ExchangeError as error:
                if error.is_stale:
                    continue
                raise
            if connection.is_open:
                self._free.append(connection)
            return

    async def _take(self) -> Connection:
        while self._free:
            # The one used last is the least likely to have been closed.
            if (connection := self._free.pop()).is_open:
                return connection
        server = self._server
        opening = asyncio.get_running_loop().create_connection(
            Connection,
            server.host,
            server.port,
            ssl=server.tls,
            server_hostname=server.host if server.tls else None,
        )
        try:
            _, opened = await asyncio.wait_for(opening, _CONNECT_SECONDS)
        except asyncio.TimeoutError:
            raise ExchangeError("connection timeout") from None
        except ConnectionRefusedError:
            raise ExchangeError("connection refused") from None
        except OSError as error:  # TLS errors are of this kind, too
            raise ExchangeError("no connection", error.strerror or str(error)) from None
        return opened

    def close(self) -> None:
        """Hangs up what is kept."""
        while self._free:
            self._free.pop().close()
