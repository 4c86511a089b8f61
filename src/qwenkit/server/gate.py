"""The outermost layer: request ids, keys, origins, a stopping server, log lines and surprises.

Plain ASGI, because anything heavier would cost time for every piece of a stream.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from qwenkit.server.errors import ApiError, ClientGone, describe, shutting_down
from qwenkit.server.exchange import CLIENT_GONE, SCOPE_KEY, Exchange, choose_request_id
from qwenkit.server.paths import Paths
from qwenkit.server.service import Service
from qwenkit.server.watch import Receive

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

_log = logging.getLogger("qwenkit.server")
_access_log = logging.getLogger("qwenkit.access")
OPEN_PATHS = frozenset({"/health", "/metrics"})
"""Answered without a key and while the server stops, so that supervisors can look."""
_EXPOSED = b"x-request-id, request-id, x-ignored-fields, retry-after"
_ID_HEADERS = (b"x-request-id", b"request-id")
"""Clients of OpenAI's protocol look for the first, those of Anthropic's for the second."""
_MAX_HEADER = 2000
_KEY_HEADER = b"x-api-key"
"""Where clients of Anthropic's protocol send theirs."""


class Gate:
    """Lets requests in, and tells of them.

    Args:
        app: what is behind.
        service: shared state of the server.
        paths: known paths, for counting (others count together) and for the shape of errors.
        open_paths: looked at without a key, in any state of the server, and without a line in the log.
    """

    def __init__(
        self, app: App, service: Service, paths: Paths, open_paths: Collection[str] = OPEN_PATHS
    ) -> None:
        self._app, self.service = app, service
        self._paths, self._open = paths, frozenset(open_paths)
        self._options = service.options
        self._keys = [key.encode() for key in service.options.api_keys]
        self._origins = frozenset(origin.encode() for origin in service.options.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))  # the first of several counts
        name, render = self._paths.find(scope["path"])
        request_id = choose_request_id(headers.get(b"x-request-id"))
        exchange = Exchange(request_id=request_id, render_error=render)
        scope[SCOPE_KEY] = exchange
        answer = _Answer(send, exchange, self._cors(headers.get(b"origin")))
        try:
            if _is_preflight(scope, headers):
                await self._preflight(headers, answer)
            elif (refusal := self._refusal(scope, headers, exchange)) is not None:
                await self._fail(refusal, answer)
            else:
                await self._app(scope, receive, answer)
        except ClientGone:
            exchange.status = CLIENT_GONE
        except Exception as error:
            _log.exception("request %s failed", exchange.request_id)
            if not exchange.status:
                await self._fail(describe(error), answer)
        finally:
            self._note(scope, exchange, name or "other")

    def render(self, error: ApiError) -> bytes:
        """The body of an error about a request whose path is not known."""
        return self._paths.find("")[1](error, "")

    def _is_open(self, scope: Scope) -> bool:
        """Looking is open, not posting: a protocol may have an endpoint at the path of a page."""
        return scope["path"] in self._open and scope["method"] in _LOOKING

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes], exchange: Exchange) -> ApiError | None:
        if self._is_open(scope):
            return None
        exchange.key = self._key_in(headers)
        if self._keys and exchange.key is None:
            message = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
            return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return shutting_down() if self.service.is_draining else None

    def _key_in(self, headers: dict[bytes, bytes]) -> bytes | None:
        """The key that a request shows; None where it shows no right one."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = [bearer.strip() if scheme.lower() == b"bearer" else b"", headers.get(_KEY_HEADER, b"")]
        # Every key is compared, so that time tells nothing about which one was nearly right.
        matches = [(hmac.compare_digest(each, key), key) for each in given for key in self._keys]
        return next((key for is_same, key in matches if is_same), None)

    def _cors(self, origin: bytes | None) -> list[Header]:
        if not self._origins:
            return []
        if b"*" in self._origins:
            allowed = b"*"
        elif origin in self._origins and origin is not None:
            allowed = origin
        else:
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        ]

    async def _preflight(self, headers: dict[bytes, bytes], answer: _Answer) -> None:
        if len(answer.extra) < 2:
            message = (
                "web pages of this origin may not call the server; start it with --cors-origin to allow them"
            )
            await self._fail(ApiError(403, message, code="origin_not_allowed"), answer)
            return
        wanted = headers.get(b"access-control-request-headers", b"*")
        allowed = [
            (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
        await answer({"type": "http.response.start", "status": 204, "headers": allowed})
        await answer({"type": "http.response.body", "body": b""})

    async def _fail(self, error: ApiError, answer: _Answer) -> None:
        body = answer.exchange.render_error(error, answer.exchange.request_id)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        await answer({"type": "http.response.start", "status": error.status, "headers": headers})
        await answer({"type": "http.response.body", "body": body})

    def _note(self, scope: Scope, exchange: Exchange, name: str) -> None:
        path = scope["path"]
        status = exchange.status or CLIENT_GONE
        seconds = time.perf_counter() - exchange.started
        if exchange.completion_tokens is not None:
            self.service.metrics.whole.observe(seconds)
        self.service.metrics.count_request(_METHODS.get(scope["method"], "other"), name, status)
        if self._options.has_access_log and not self._is_open(scope):
            client = scope.get("client") or ("-", 0)
            _access_log.info(
                "%s %s %s %s %d %.1fms prompt=%s completion=%s",
                exchange.request_id,
                client[0],
                scope["method"],
                # a line end in a path must not make another line
                path.encode("ascii", "backslashreplace").decode() if path.isprintable() else ascii(path),
                status,
                seconds * 1000,
                "-" if exchange.prompt_tokens is None else exchange.prompt_tokens,
                "-" if exchange.completion_tokens is None else exchange.completion_tokens,
            )


_LOOKING = frozenset({"GET", "HEAD"})
_METHODS = {name: name for name in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")}


def _is_preflight(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    return (
        scope["method"] == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers
    )


class _Answer:
    """Sends on what the application answers, with the headers every answer has."""

    def __init__(self, send: Send, exchange: Exchange, extra: list[Header]) -> None:
        self._send, self.exchange = send, exchange
        self.extra = extra

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            exchange = self.exchange
            exchange.status = message["status"]
            headers = [*message.get("headers", ()), *self.extra]
            headers += [(name, exchange.request_id.encode()) for name in _ID_HEADERS]
            if exchange.ignored_fields:
                headers.append((b"x-ignored-fields", _listed(exchange.ignored_fields)))
            message["headers"] = headers
        await self._send(message)


def _listed(names: list[str]) -> bytes:
    """Names as one header: ASCII, no control characters, cut where it would become too long."""
    shown = ", ".join(
        "".join(c if " " < c <= "~" and c != "," else "?" for c in name) for name in sorted(names)
    )
    return (shown if len(shown) <= _MAX_HEADER else shown[:_MAX_HEADER] + ", ...").encode()
