"""The installed command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

QWENKIT = str(Path(sys.executable).with_name("qwenkit"))
Done = subprocess.CompletedProcess[str]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment in UTF-8 and on one thread, with changes; None removes a variable.

    Threads of processes that run side by side would wait for each other.
    """
    out = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    for name, value in changes.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = value
    return out


def qwenkit(
    *arguments: str, stdin: str | bytes = "", env: dict[str, str] | None = None, **options: Any
) -> Done:
    """Runs ``qwenkit ARGUMENTS`` to its end."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run(
        [QWENKIT, *arguments],
        input=data,
        capture_output=True,
        env=env or environment(),
        timeout=90,
        check=False,
        **options,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def together(*commands: tuple[str, ...]) -> list[Done]:
    """Several commands, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda command: qwenkit(*command), commands))


def assert_one_sentence(done: Done) -> str:
    """An error as users see it: exit code 2, nothing on stdout, one line on stderr; returns the line."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("qwenkit: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr
