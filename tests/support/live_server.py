"""A server process on a free port of this machine: started, waited for, and stopped as an operator would."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class LiveServer:
    """Where a running server is, and what it asks for."""

    url: str
    model: str
    key: str

    @property
    def base_url(self) -> str:
        """What OpenAI's clients want."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def live_server(command: Sequence[str], *, model: str, key: str = "none") -> Iterator[LiveServer]:
    """Runs a command that prints its address as the end of a line, until the block is left.

    Raises:
        AssertionError: it did not start, or SIGTERM did not end it with exit code 0.
    """
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would stop the server
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment()
        )
        try:
            address = _address(process)
            assert address, _text(errors)
            yield LiveServer(address, model, key)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, _text(errors)
        finally:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    """Empty where the process ended before it listened."""
    assert process.stdout is not None
    return next((line.split()[-1] for line in process.stdout if "http://" in line), "")


def _text(file: tempfile._TemporaryFileWrapper[str]) -> str:
    file.seek(0)
    return file.read()[-4000:]
