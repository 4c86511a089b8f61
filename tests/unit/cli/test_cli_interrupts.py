"""What signals do to the process as a whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from qwenkit.cli.interrupts import end_on_sigterm


@pytest.fixture
def sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize(("number", "is_handled"), [(1, True), (1234, False)])
def test_only_the_first_process_needs_a_handler(
    number: int, is_handled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: number)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_on_sigterm()
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler) == is_handled
    if callable(handler):
        handler(signal.SIGTERM, None)
    assert codes == ([143] if is_handled else [])
