"""Text that comes in through pipes and goes out to terminals."""

from __future__ import annotations

import io

import pytest

from qwenkit.cli.pipes import PlainView, clean_argument, decode, join_prompt, without_controls


@pytest.mark.parametrize(
    ("prompt", "piped", "expected"),
    [
        ("sum up", "text\nmore\n", "sum up\n\ntext\nmore"),
        ("sum up", "", "sum up"),
        ("sum up", "\n", "sum up"),
        ("", "hi\n", "hi"),
        ("", "  indented\n", "  indented"),
        ("", "", ""),
        ("  ", " \n", ""),
    ],
)
def test_join_prompt(prompt: str, piped: str, expected: str) -> None:
    assert join_prompt(prompt, piped) == expected


def test_decode_replaces_invalid_bytes_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    assert decode(b"ab\xffc", "stdin") == "ab\ufffdc"
    assert "stdin is not valid UTF-8 (byte 2)" in capsys.readouterr().err
    assert decode("\ufeff中".encode(), "stdin") == "中"
    assert capsys.readouterr().err == ""


def test_clean_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert clean_argument("中文") == "中文"
    assert clean_argument("a\udcffb") == "a\ufffdb"
    assert "argument" in capsys.readouterr().err


def test_controls_never_reach_the_terminal() -> None:
    assert without_controls("a\x1b[2Jb\r\n\tc\x07\x9b1m") == "a[2Jb\n\tc1m"


def test_plain_view_is_exact_in_a_pipe_and_ends_the_line() -> None:
    out = io.StringIO()
    view = PlainView(out)
    view.feed("a\x1b")
    view.feed("")
    view.feed("b")
    view.finish()
    view.finish()
    assert out.getvalue() == "a\x1bb\n"
