"""Prompts of ``generate``, and completions in input order."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenkit.cli.generate import completions_in_order, read_prompts
from qwenkit.core.errors import InputError
from qwenkit.core.types import Delta, Usage


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("one\r\n\n  two \\n\n三".encode())
    assert read_prompts(path) == ["one", "  two \\n", "三"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\\nb", "id": 1}\n\n{"prompt": "c"}\n')
    assert read_prompts(path) == ["a\nb", "c"]


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "a"}', '{"prompt": 3}', '{"prompt": ""}'])
def test_json_errors_name_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        read_prompts(path)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.jsonl"):
        read_prompts(tmp_path / "p.csv")


def test_completions_come_in_order_as_early_as_possible() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    log: list[str] = []

    def deltas() -> object:
        for index, text in ((1, "b"), (0, "a"), (2, "c")):
            log.append(f"made {text}")
            yield Delta(index=index, text=text, finish_reason="stop", usage=usage)

    for index, completion in completions_in_order(deltas(), 3):  # type: ignore[arg-type]
        log.append(f"{index}{completion.text}")
    assert log == ["made b", "made a", "0a", "1b", "made c", "2c"]
