"""One server with the real model for all tests of clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer, live_server
from tests.support.process import QWENKIT


@pytest.fixture(scope="session")
def smollm2_server(smollm2_gguf: Path) -> Iterator[LiveServer]:
    """``qwenkit serve`` with SmolLM2 in float32, so that numbers can be compared closely."""
    options = ("--port", "0", "--dtype", "float32", "--max-context", "2048", "--cache-gb", "0.25")
    names = ("--served-model-name", "smollm2-135m", "--api-key", "secret")
    command = (QWENKIT, "serve", "-m", str(smollm2_gguf), *options, *names)
    with live_server(command, model="smollm2-135m", key="secret") as server:
        yield server
