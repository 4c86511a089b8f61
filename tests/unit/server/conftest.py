"""One live server that most tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.http import Live, live, scripted


@pytest.fixture(scope="package")
def server() -> Iterator[Live]:
    """Says "Hello, world!" to everything."""
    with live(scripted("Hello, world!")) as running:
        yield running


@pytest.fixture(scope="package")
def thinker() -> Iterator[Live]:
    """Has a template with thoughts and tools; tests give its backend a script."""
    with live(scripted(thinking=True)) as running:
        yield running
