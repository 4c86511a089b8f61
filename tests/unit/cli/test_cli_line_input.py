"""The input line, typed at through a pipe."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwenkit.cli.line_input import CommandCompleter, LineInput, open_history
from qwenkit.cli.texts import EN


def typed(keys: str) -> str:
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        return LineInput(EN, InMemoryHistory(), input=pipe, output=DummyOutput()).read()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', '"""one\ntwo"""'),
        ("\x1b[200~a\nb\n\x1b[201~\r", "a\nb\n"),
        ("wrong\x03right\r", "right"),
        ("中文\r", "中文"),
    ],
)
def test_typing(keys: str, text: str) -> None:
    assert typed(keys) == text


def test_leaving() -> None:
    with pytest.raises(EOFError):
        typed("\x04")
    with pytest.raises(KeyboardInterrupt):
        typed("\x03")


def completions(text: str) -> list[str]:
    return [c.text for c in CommandCompleter(EN).get_completions(Document(text), CompleteEvent())]


def test_completion(tmp_path: Path) -> None:
    assert completions("/he") == ["help"]
    assert completions(":s") == ["seed", "system", "save"]
    assert completions("he") == []
    assert completions("/seed 1") == []
    (tmp_path / "talk.json").touch()
    assert completions(f"/load {tmp_path}/ta") == ["lk.json"]


def test_history_is_kept_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    open_history(folder).store_string("first\nsecond")
    path = folder / "chat_history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert list(open_history(folder).load_history_strings()) == ["first\nsecond"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_that_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert isinstance(open_history(tmp_path / "file"), InMemoryHistory)
    assert "history" in capsys.readouterr().err
