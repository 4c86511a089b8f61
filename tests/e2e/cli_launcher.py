"""Runs the real command line on a scripted backend: ``python cli_launcher.py SCRIPT.json ARGUMENTS...``.

The script is an object: replies (texts), chunk (characters a delta), delay (seconds before each delta).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.cli import loading, tokens
from qwenkit.cli.main import run


class ByteTokenizer:
    """Every byte is a token; enough of a tokenizer for raw completion."""

    vocab_size = 256
    bos_token_id = None
    add_bos = False
    special_tokens: ClassVar[dict[str, int]] = {}

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Iterable[int], **_: Any) -> str:
        return bytes(token_ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


class SlowBackend(ScriptedBackend):
    """Waits a little before each delta, as a model does, and has a tokenizer."""

    def __init__(self, replies: Sequence[str], *, chunk: int, delay: float) -> None:
        tokenizer: Any = ByteTokenizer()
        super().__init__(replies, chunk=chunk, tokenizer=tokenizer, delay=delay)

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        time.sleep(self._delay)
        return super().logprobs(token_ids)


def main() -> None:
    script = json.loads(Path(sys.argv[1]).read_text())

    def open_scripted(options: Any, **_: Any) -> Any:
        from qwenkit.llm import LLM

        return LLM.from_backend(
            SlowBackend(script["replies"], chunk=script.get("chunk", 3), delay=script.get("delay", 0.0))
        )

    loading.open_llm = open_scripted
    tokens.load_tokenizer = lambda model: ByteTokenizer()  # type: ignore[assignment,return-value]
    sys.argv = ["qwenkit", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()
