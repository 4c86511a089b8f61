"""One TCP connection: how long a client may take to say what it wants and to read what it asked for.

Uvicorn parses the requests; it has no such limits. Knows nothing of any protocol above HTTP.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qwenkit.server.errors import ApiError, shutting_down
from qwenkit.server.gate import Gate

_HEAD_SECONDS = 30.0
"""From the first byte of a request, or from the connection, to the end of its headers."""
_MAX_HEAD_BYTES = 2**16
_RESET = struct.pack("ii", 1, 0)


class Connection(HttpToolsProtocol):
    """A connection that a client cannot hold for ever without asking, sending or reading anything."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        gate: Gate = config.app
        self._patience, self._render = gate.service.options.stall_timeout, gate.render
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes = False, 0
        self._answered: Any = None
        """The request being answered; ``cycle`` is the last that came."""

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)
        # Uvicorn tells only the last of several pipelined requests.
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        was_in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._head_bytes = self._head_bytes + len(data) if was_in_head and self._in_head else 0
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, f"the headers hold more than {_MAX_HEAD_BYTES} bytes; send fewer")
        elif not self._is_answering:
            self._await_head()
        else:
            self._stop_reading_timer()
            if self.cycle.more_body:
                self._reading = self.loop.call_later(self._patience, self._body_is_late)

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn."""
        self._refuse(400, "this is not HTTP/1.1 as it should be; check method, path and headers")

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        self._watch_close()

    def timeout_keep_alive_handler(self) -> None:
        """See uvicorn."""
        super().timeout_keep_alive_handler()
        self._watch_close()

    def shutdown(self) -> None:
        """See uvicorn: the server stops, and does not wait for the rest of a request."""
        if self._is_answering and self.cycle.more_body and not self.pipeline:
            self._refuse(503, shutting_down().message)
        super().shutdown()

    def pause_writing(self) -> None:
        """See asyncio.Protocol: the client does not read as fast as the answer comes."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_writing_timer()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _await_head(self) -> None:
        """The limit is not moved by bytes that come one at a time."""
        if self._reading is None:
            self._reading = self.loop.call_later(_HEAD_SECONDS, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._in_head:
            self._refuse(408, f"the headers took longer than {_HEAD_SECONDS:g} s; send them at once")
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        self._reading = None
        if not self._is_answering:
            return
        if self.flow.read_paused or self.pipeline:  # it is we who do not read
            self._reading = self.loop.call_later(self._patience, self._body_is_late)
        else:
            self._refuse(408, f"nothing came of the body for {self._patience:g} s; send it at once")

    def _refuse(self, status: int, message: str) -> None:
        """Answers on behalf of the application, unless it is answering, and hangs up."""
        if self._is_answering and (self._answered is not self.cycle or self.cycle.response_started):
            self.transport.close()
            self._watch_close()
            return
        phrase = HTTPStatus(status).phrase
        body = self._render(ApiError(status, message, code=phrase.lower().replace(" ", "_")))
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
        self._watch_close()

    def _watch_close(self) -> None:
        """A closing connection ends once all is written, which a client that does not read would put off for ever."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._await_reader()

    def _await_reader(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self._patience, self._drop)

    def _drop(self) -> None:
        """Resets the connection: else the kernel would go on offering what nobody reads."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing_timer(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
