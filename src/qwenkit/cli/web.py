"""``qwenkit web``: the chat page in the browser of this machine, with a server of its own behind it."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.cli.options import ModelOptions, SpeculativeOptions, spread
from qwenkit.cli.serve import (
    EngineOptions,
    HttpOptions,
    check_extra,
    describe,
    listening,
    opened,
    serve_backend,
)
from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    from qwenkit.backends.base import Backend

_HOST, _USUAL_PORT = "127.0.0.1", 8000
_IN_THE_TERMINAL = frozenset({"www-browser", "links", "elinks", "lynx", "w3m"})
"""Browsers that would take the terminal and run no scripts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """Where the page is, and whether a browser goes there."""

    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            "-p",
            metavar="N",
            help="0 takes any free one; without it 8000, or any free one if that is taken.",
            rich_help_panel="Server",
        ),
    ] = None
    no_browser: Annotated[
        bool,
        typer.Option("--no-browser", help="Only say the address; open no browser.", rich_help_panel="Server"),
    ] = False


@spread
def web(
    *,
    model: ModelOptions,
    speculation: SpeculativeOptions,
    engine: EngineOptions,
    listen: WebOptions,
    http: HttpOptions,
) -> None:
    """Chat with a model in the browser. Only this machine can reach the page; Ctrl-C ends it."""
    check_extra()
    options = http.to_server_options(has_access_log=False)

    def announce(backend: Backend, url: str) -> None:
        print(f"{describe(backend.info)}\nchat page: {url}/", flush=True)
        if not listen.no_browser:
            # Some browsers return only when they are closed.
            threading.Thread(target=open_browser, args=(f"{url}/",), daemon=True).start()

    with _listening(listen.port) as listener, opened(model, speculation, engine) as backend:
        serve_backend(backend, options, listener, has_page=True, on_start=announce)


@contextlib.contextmanager
def _listening(port: int | None) -> Iterator[socket.socket]:
    """The given port, or the usual one: browsers keep conversations for each address, so it should stay the same."""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(listening(_HOST, _USUAL_PORT if port is None else port))
        except InputError:
            if port is not None:
                raise
            print(f"port {_USUAL_PORT} is taken; another has its own conversations", file=sys.stderr)
            listener = stack.enter_context(listening(_HOST, 0))
        yield listener


def open_browser(url: str) -> None:
    """Opens the user's browser; where there is none with windows, asks the user to."""
    try:
        browser = webbrowser.get()
        is_open = getattr(browser, "name", "") not in _IN_THE_TERMINAL and browser.open(url)
    except webbrowser.Error:
        is_open = False
    if not is_open:
        print("no browser could be opened here; open the address yourself", file=sys.stderr, flush=True)
