"""The small parts of ``qwenkit quantize``: sizes, times, and what is shown on the way."""

from __future__ import annotations

import io
import sys

import pytest

from qwenkit.cli import quantize as command
from qwenkit.core.errors import InputError
from qwenkit.quantize.progress import Clock, Progress


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5 kb", 1500), ("70000", 70000), ("2g", 2 * 10**9)],
)
def test_sizes(text: str, expected: int) -> None:
    assert command.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "5TBB", "five"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is not possible; use a number with KB, MB or GB"):
        command.parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3605, "1 h 0 min")]
)
def test_times(seconds: float, expected: str) -> None:
    assert command.duration(seconds) == expected


def made_up(linear: str | None) -> Progress:
    return Progress(
        layer=1,
        num_layers=3,
        linear=linear,
        error=0.0123,
        seconds=10.0,
        remaining=75.0,
        rate=1234.5,
        memory=2**29,
    )


def test_a_line_per_block_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with command._progress() as show:
        show(made_up("attn.qkv"))
        show(made_up(None))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "layer 2 of 3: error 1.23e-02, 1234 tokens/s, 1 min 15 s left, 512.0 MiB\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with command._progress() as show:
        show(made_up("ffn.gate_up"))
    for part in ("layer 2 of 3", "ffn.gate_up", "error 1.23e-02", "1 min 15 s left", "512.0 MiB"):
        assert part in screen.getvalue()


def test_the_clock_counts_only_what_this_run_does() -> None:
    seen: list[Progress] = []
    clock = Clock(10, 100, seen.append)
    clock.tell(3, None, 0.1)  # nothing has begun
    clock.begin(4)
    clock.tell(4, "attn.qkv", 0.1)
    clock.tell(4, None, 0.2)
    assert [p.remaining is None for p in seen] == [True, False]
    last = seen[-1]
    assert last.rate is not None
    assert last.remaining == pytest.approx(5 * 100 / last.rate)
