"""One HTTP request to a server, its answer as JSON or as server-sent events, and a sentence for all that goes wrong.

Knows nothing of models or messages. The standard library's client is used because the socket must be at hand from
the first moment: only cutting it ends a request whose answer has not begun.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, unquote

from qwenkit.backends.event_stream import DONE, EventDecoder
from qwenkit.backends.remote_server import (
    Server,
    StatusError,
    excerpt,
    is_too_long,
    message_of,
    message_of_body,
    parse_retry_after,
    proxy_of,
    refusal,
    status_sentence,
    transport_sentence,
)
from qwenkit.core.errors import RemoteError

_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 60.0  # seconds that a server may ask to wait before the one retry
_LARGEST_EVENT = 16 << 20
_READ_SIZE = 1 << 16


class Aborted(Exception):
    """The request was ended from this side."""


class Exchange:
    """One request and its answer, on a connection of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._aborted = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._socket: socket.socket | None = None
        self.has_ended = False
        """Whether the stream came to its end without ``[DONE]``, and not by being cut."""

    def abort(self) -> None:
        """Cuts the connection; whoever reads gets ``Aborted``. Safe from any thread, at any time."""
        self._aborted.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Past the TLS layer, whose state another thread may be using.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def send(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Sends and reads the head of the answer. A server that is too busy is asked once more.

        Args:
            path: below that of the API, such as "models".
            body: sent as JSON with POST; None: GET.

        Raises:
            RemoteError: the server is not reached or answers with an error.
            PromptTooLongError: it says that the prompt does not fit.
            Aborted: the request was ended meanwhile.
        """
        wait: float | None = 0.0
        for is_last in (False, True):
            response = self._attempt(path, body)
            wait = None if is_last else _seconds_to_wait(response)
            if wait is None:
                break
            self.close()
            if self._aborted.wait(wait):
                raise Aborted
        if response.status >= 300:
            try:
                raise self._status_error(response, path)
            finally:
                self.close()

    def _attempt(self, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        try:
            target = self._connect()
            headers = self._server.headers() | _proxy_headers(self._server)
            data = None
            if body is not None:
                data = json.dumps(body, ensure_ascii=False).encode("utf-8", errors="replace")
                headers["Content-Type"] = "application/json"
            assert self._connection is not None
            self._connection.request(
                "GET" if body is None else "POST",
                f"{target}{self._server.api.root}/{path}",
                data,
                {**headers, "Connection": "close"},
            )
            self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException, Aborted) as error:
            self.close()
            raise self._transport_error(error) from None
        return self._response

    def _connect(self) -> str:
        """Opens the connection; returns what stands before the API's path in the request line."""
        server = self._server
        proxy = proxy_of(server)
        host, port = (server.host, server.port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
        connection: http.client.HTTPConnection
        if server.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=server.tls)
            if proxy is not None:
                connection.set_tunnel(server.host, server.port, _proxy_authorization(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
        self._connection = connection
        connection.connect()
        self._socket = connection.sock
        connection.sock.settimeout(server.timeout)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._aborted.is_set():
            raise Aborted
        return server.url if proxy is not None and server.scheme == "http" else server.base

    def json(self) -> Any:
        """The whole answer.

        Raises:
            RemoteError: it is cut off or not JSON.
        """
        assert self._response is not None
        try:
            data = self._response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._transport_error(error) from None
        finally:
            self.close()
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._not_an_api(f"with what is not JSON: {excerpt(data)}") from None

    def events(self) -> Iterator[Any]:
        """The JSON objects of an event stream; ends after ``[DONE]`` or, without it, raises.

        Raises:
            RemoteError: another kind of answer, malformed events, or a stream that breaks off.
            Aborted: the request was ended from this side.
        """
        assert self._response is not None
        kind = self._response.headers.get_content_type()
        if kind != "text/event-stream":
            raise self._not_an_api(f"with {kind} where a stream of events was asked for")
        decoder = EventDecoder()
        while chunk := self._read():
            for data in decoder.feed(chunk):
                if data == DONE:
                    return
                yield self._event(data)
            if decoder.held_size > _LARGEST_EVENT:
                raise self._not_an_api(f"with an event of more than {_LARGEST_EVENT} bytes")
        if decoder.flush() == [DONE]:  # the blank line after it is easily forgotten
            return
        if self._aborted.is_set():
            raise Aborted
        self.has_ended = not self._response.length
        raise RemoteError(
            f"the answer of {self._server.url} broke off before its end; see the server's log, then ask again"
        )

    def _read(self) -> bytes:
        assert self._response is not None
        try:
            return self._response.read1(_READ_SIZE)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._transport_error(error) from None

    def _event(self, data: bytes) -> Any:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise self._not_an_api(f"with an event that is not JSON: {excerpt(data)}") from None
        if not isinstance(event, dict):
            raise self._not_an_api(f"with an event that is no object: {excerpt(data)}")
        error = event.get("error") or (event.get("message") and event.get("code"))
        if error:
            raise refusal(self._server, message_of(event) or str(error), "ended the answer with an error")
        return event

    def close(self) -> None:
        """Frees the connection. Harmless when it is closed."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()

    def _not_an_api(self, what: str) -> RemoteError:
        return RemoteError(
            f"{self._server.url} answered {what}; is it the address of {self._server.api.name}?"
        )

    def _transport_error(self, error: Exception) -> Exception:
        if self._aborted.is_set():
            return Aborted()
        return RemoteError(transport_sentence(error, self._server))

    def _status_error(self, response: http.client.HTTPResponse, path: str) -> Exception:
        try:
            data = response.read(1 << 16)
        except (OSError, http.client.HTTPException):
            data = b""
        if 300 <= response.status < 400:
            place = response.headers.get("Location", "elsewhere")
            return RemoteError(f"{self._server.url} sends requests on to {place}; give that address instead")
        message = message_of_body(data)
        if is_too_long(message):
            return refusal(self._server, message, "")
        again = response.headers.get("Retry-After")
        sentence = status_sentence(response.status, message, self._server, path, again)
        return StatusError(sentence, response.status)


def _proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _proxy_headers(server: Server) -> dict[str, str]:
    proxy = proxy_of(server) if server.scheme == "http" else None
    return {} if proxy is None else _proxy_authorization(proxy)


def _seconds_to_wait(response: http.client.HTTPResponse) -> float | None:
    """How long to wait before asking again; None: not at all."""
    asked = response.headers.get("Retry-After")
    if response.status != 429 and not (response.status == 503 and asked):
        return None
    seconds = 1.0 if asked is None else parse_retry_after(asked)
    return seconds if seconds is not None and seconds <= _LONGEST_WAIT else None
