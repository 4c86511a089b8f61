"""Runs the real command line on a scripted backend: ``python cli_launcher.py SCRIPT.json ARGUMENTS...``.

The script is an object: replies (texts), chunk (characters a delta), delay (seconds before each delta).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.cli import loading
from qwenkit.cli.main import run
from qwenkit.core.types import Delta, Request


class SlowBackend(ScriptedBackend):
    """Waits a little before each delta, as a model does."""

    def __init__(self, replies: Sequence[str], *, chunk: int, delay: float) -> None:
        super().__init__(replies, chunk=chunk)
        self._delay = delay

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        for delta in super().stream(requests):
            time.sleep(self._delay)
            yield delta


def main() -> None:
    script = json.loads(Path(sys.argv[1]).read_text())

    def open_scripted(options: Any, **_: Any) -> Any:
        from qwenkit.llm import LLM

        return LLM.from_backend(
            SlowBackend(script["replies"], chunk=script.get("chunk", 3), delay=script.get("delay", 0.0))
        )

    loading.open_llm = open_scripted
    sys.argv = ["qwenkit", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()
