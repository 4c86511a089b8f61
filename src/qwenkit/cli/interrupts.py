"""Ctrl-C while a reply streams: the first press asks to stop, the second one forces it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType


class Stop:
    """Whether stopping was asked for."""

    def __init__(self, on_first: Callable[[], None] | None) -> None:
        self._on_first = on_first
        self.is_asked = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler.

        Raises:
            KeyboardInterrupt: the second time.
        """
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        if self._on_first is not None:
            self._on_first()


@contextlib.contextmanager
def stoppable(on_first: Callable[[], None] | None = None) -> Iterator[Stop]:
    """Turns Ctrl-C into a wish to stop that the loop inside looks at; calls ``on_first`` at once."""
    stop = Stop(on_first)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for jobs that a shell starts in the background
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Keeps keys typed meanwhile (Ctrl-C included) from being written into the reply; they are read afterwards."""
    try:
        import termios

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield
        return
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
