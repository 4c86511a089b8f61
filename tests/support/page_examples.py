"""The examples of a page of docs/, and running them as they stand there against a server of the test's own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import LiveServer

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "127.0.0.1:8000"
"""Where the pages say that the server is."""


def examples(language: str, *pages: str) -> list[Any]:
    """Those in one language, as parameters of a test; every page must have one."""
    found = []
    for page in pages:
        text = (DOCS / page).read_text(encoding="utf-8")
        blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert blocks, f"{page} has no example in {language}"
        assert all(ADDRESS in block for block in blocks), page
        found += [pytest.param(block, id=f"{page}-{n}") for n, block in enumerate(blocks)]
    return found


def run_shell(script: str, server: LiveServer, folder: Path) -> str:
    """What a script prints; curl finds the server, and shows the key, by its settings."""
    (folder / ".curlrc").write_text(
        f'connect-to = "{ADDRESS}:127.0.0.1:{server.port}"\n'
        f'header = "Authorization: Bearer {server.key}"\n'
        "fail-with-body\n"
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "HOME": str(folder), "CURL_HOME": str(folder), "no_proxy": "*"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


def run_program(program: str, server: LiveServer) -> dict[str, Any]:
    """The names that a program leaves behind; it must print something."""
    there = program.replace(ADDRESS, f"127.0.0.1:{server.port}").replace('"any"', repr(server.key))
    assert there != program
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(there, "docs", "exec"), names)
    assert said.getvalue().strip()
    return names
