"""Requests that Schemathesis makes from the server's own description, valid ones and broken ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from qwenkit.server.endpoints import chosen
from tests.support.http import live, scripted

# Rules between fields, as that of prompt and messages only one may be given, are no part of the description.
_LEFT_OUT = "positive_data_acceptance"


def test_every_answer_is_as_described(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("schemathesis"))
    options = ("--checks", "all", "--exclude-checks", _LEFT_OUT, "--phases", "coverage,fuzzing")
    limits = ("--seed", "1", "--max-examples", "8", "--no-shrink", "--request-timeout", "20")
    with live(scripted("Hello, world!"), api_keys=("secret",)) as server:
        done = subprocess.run(
            [
                program,
                "run",
                f"{server.url}/openapi.json",
                "--header",
                "Authorization: Bearer secret",
                *options,
                *limits,
                "--suppress-health-check",
                "all",  # they are about time, which a busy machine has little of
                "--continue-on-failure",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        cases = re.search(r"(\d+) generated, \1 passed", done.stdout)
        assert cases, done.stdout[-2000:]
        count = len({(e.path, e.method) for protocol in chosen(()) for e in protocol.endpoints})
        assert int(cases[1]) > 40 * count
        assert f"{count} passed" in done.stdout  # every operation
        assert server.ask("/health").status == 200  # it is still there
