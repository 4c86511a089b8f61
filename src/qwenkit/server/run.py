"""Runs a server in this process: binds, serves, and stops on signals after running requests have ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from qwenkit.core.errors import InputError
from qwenkit.server.connection import Connection
from qwenkit.server.gate import Gate

_log = logging.getLogger("qwenkit.server")
_BACKLOG = 1024
_MAX_FILES = 65536
_KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than clients and proxies keep theirs, so that theirs end first."""
_SWITCH_INTERVAL = 0.0005
"""Seconds the event loop may keep Python to itself while the engine's thread wants it (Python's own 5 ms would be
a tenth of a step of a small model)."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        InputError: the address is taken, not of this machine, or not an address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError):
        raise InputError(
            f"host {host!r} is not known; use an address of this machine, such as 127.0.0.1"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        hint = "use another --port, or 0 for any free one" if port else "use another --host"
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror}); {hint}") from None
    except BaseException:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Uvicorn that drains: the first signal lets running requests end, the second exits at once.

    Args:
        app: what is served.
        on_start: called once requests are taken.
    """

    def __init__(self, app: Gate, *, on_start: Callable[[], None] | None = None) -> None:
        self._app, self._on_start = app, on_start
        self._draining: asyncio.Task[None] | None = None
        # After our own limit, requests have been ended; what is left then are connections nobody reads.
        patience = int(app.service.options.drain_timeout) + 5
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                loop="uvloop",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=patience,
                timeout_keep_alive=_KEEP_ALIVE,
                backlog=_BACKLOG,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; ends what runs too long."""
        self._draining = asyncio.ensure_future(self._app.service.drain())
        try:
            await super().shutdown(sockets)
        finally:
            self._draining.cancel()
            self._app.service.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """See uvicorn; signals are not raised again at the end, because stopping on one is success."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        if self.should_exit:
            os._exit(128 + sig)
        count = self._app.service.num_live
        if count:
            seconds = self._app.service.options.drain_timeout
            _log.warning("stopping after %d running requests, in %g s at the latest", count, seconds)
        self.should_exit = True


def serve(app: Gate, listener: socket.socket, *, on_start: Callable[[], None] | None = None) -> None:
    """Serves until a signal says to stop.

    Args:
        app: what is served.
        listener: from ``bind``.
        on_start: called once requests are taken.
    """
    # Uvicorn's own complaints are about clients; ours are logged where they arise.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    _allow_connections()
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        Server(app, on_start=on_start).run(sockets=[listener])
    finally:
        sys.setswitchinterval(before)


def _allow_connections() -> None:
    """Each connection is an open file, of which processes may often have just 1,024 unless they ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
