"""Ctrl-C while a reply streams: before the first token it stops at once, later after the token being made.

A second press always stops at once. Also what SIGTERM does to the first process of a container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether stopping was asked for."""

    def __init__(self) -> None:
        self.is_asked = False
        self.is_gentle = False
        """Set once something looks at ``is_asked`` often; until then the first press raises, too."""

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler.

        Raises:
            KeyboardInterrupt: the second time, or when nothing looks yet.
        """
        if self.is_asked or not self.is_gentle:
            raise KeyboardInterrupt
        self.is_asked = True


def end_on_sigterm() -> None:
    """Gives SIGTERM its usual meaning also where this is the first process of a container.

    The kernel does nothing to such a process on a signal that it has no handler for, so stopping a container that still
    loads its model would take until it is killed.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _exit)


def _exit(signum: int, frame: FrameType | None) -> None:
    # At once, as elsewhere; an exception could be swallowed by whatever is being imported.
    os._exit(128 + signum)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Turns Ctrl-C into a wish to stop that the loop inside looks at."""
    stop = Stop()
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
