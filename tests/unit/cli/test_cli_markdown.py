"""Streaming Markdown on an emulated 80x24 terminal: nothing lost, nothing doubled, nothing left behind."""

from __future__ import annotations

import io
import random
import re

import pyte
import pytest
from rich.console import Console

from qwenkit.cli import markdown
from qwenkit.cli.live import LiveRegion
from qwenkit.cli.markdown import MarkdownView, split_blocks

CODE = "\n".join(f"    x{i} = f({i})  # {i}" for i in range(40))
SAMPLES = {
    "prose": "# Title\n\nFirst *line*\nsecond **line**.\n\nLast.",
    "code": f"Before.\n\n```python\ndef g():\n{CODE}\n```\nAfter.",
    "list": "\n".join(f"{i}. item {i} " + "word " * 20 for i in range(1, 31)) + "\n\nEnd.",
    "nested": "- a\n\n  more\n  - b\n    - c\n\n1. x\n\n2. y\n",
    "table": "| 名称 | n |\n|---|--:|\n" + "\n".join(f"| 苹果{i} | {i} |" for i in range(40)) + "\n\nEnd.",
    "cjk": "今天天气很好，我们去公园散步吧。" * 60,
    "open fence": "```\nnever closed\n\nstill code",
    "html and latex": "a <b>bold</b> <div>\n\n<think-ish>\n\n\\(x_1\\) \\[y\\] [l](http://e.x/?a=b) ![i](u)\n\n[r]: http://r.x\n",
    "quote": "> one\n> two\n\n---\n\n* * *\ntext",
    "rules": "para\n#hash\n\nsetext\n======\n\nx\n-",
}


class Screen:
    """A terminal that remembers what scrolled away."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=5000)
        self.stream = pyte.Stream(self.screen)
        self.file = io.StringIO()
        self.console = Console(
            file=self.file,
            force_terminal=True,
            width=columns,
            height=lines,
            color_system="standard",
            _environ={},
        )

    def flush(self) -> None:
        self.stream.feed(self.file.getvalue().replace("\n", "\r\n"))
        self.file.seek(0)
        self.file.truncate()

    def text(self) -> str:
        self.flush()
        columns = self.screen.columns
        above = ["".join(row[x].data for x in range(columns)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()


def show(text: str, sizes: list[int], *, columns: int = 80, lines: int = 24, every_frame: bool = True) -> str:
    screen = Screen(columns, lines)
    ticks = iter(range(10**9))
    view = MarkdownView(screen.console, clock=(lambda: next(ticks) * 100.0) if every_frame else (lambda: 0.0))
    at = 0
    for size in sizes:
        view.feed(text[at : at + size])
        screen.flush()
        at += size
    view.feed(text[at:])
    view.finish()
    return screen.text()


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 6)])
def test_any_way_of_streaming_leaves_the_same_screen(name: str, columns: int, lines: int) -> None:
    text = SAMPLES[name]
    whole = show(text, [], columns=columns, lines=lines)
    rng = random.Random(name)
    for frames in (20, 50):
        longest = max(2, 2 * len(text) // frames)
        sizes = [rng.randint(1, longest) for _ in range(frames)]
        assert show(text, sizes, columns=columns, lines=lines) == whole


@pytest.mark.parametrize("name", SAMPLES)
def test_every_word_is_shown(name: str) -> None:
    shown = "".join(show(SAMPLES[name], []).split())
    for word in re.findall(r"\w+", SAMPLES[name]):
        if word != "python":
            assert word in shown


def test_replies_taller_than_the_screen_are_complete() -> None:
    lines = show(SAMPLES["code"], [7] * 200).splitlines()
    assert [line.strip() for line in lines if "= f(" in line] == [f"x{i} = f({i})  # {i}" for i in range(40)]


def test_what_is_final_is_not_written_again() -> None:
    screen = Screen()
    ticks = iter(range(10**9))
    view = MarkdownView(screen.console, clock=lambda: next(ticks) * 100.0)
    view.feed("First.\n\nSe")
    assert "First." in screen.file.getvalue()
    screen.flush()
    view.feed("cond.")
    view.finish()
    assert "First." not in screen.file.getvalue()


def test_line_breaks_latex_and_numbers_are_kept() -> None:
    assert show("one\ntwo", []) == "one\ntwo"
    assert show("\\(x\\) and \\[y\\]", []) == "\\(x\\) and \\[y\\]"
    assert show("7. a\n8. b", []) == " 7. a\n 8. b"


def test_escape_sequences_in_a_reply_are_harmless() -> None:
    assert show("a\x1b[2J\x1b]0;title\x07b", []) == "a[2J]0;titleb"


def test_thoughts_lose_their_tags() -> None:
    text = "<think>\nHm, **well**.\n</think>\n\nThe answer."
    assert show(text, [1] * len(text)) == "Hm, well.\n\nThe answer."


def test_a_tag_that_never_comes_is_text() -> None:
    assert show("a <thi", [3, 3]) == "a <thi"


def test_frames_are_rationed() -> None:
    screen = Screen()
    view = MarkdownView(screen.console, clock=lambda: 5.0)
    view.feed("a")
    written = screen.file.getvalue()
    view.feed("b")
    assert screen.file.getvalue() == written
    view.finish()
    assert screen.text() == "ab"


def test_split_blocks() -> None:
    assert [line for line, _ in split_blocks("a\n\n- b\n- c\n\n```\nd\n\ne\n```\nf")] == [0, 2, 5, 10]
    assert split_blocks("") == []


def test_live_region_rewrites_only_what_changed() -> None:
    out = io.StringIO()
    region = LiveRegion(out)
    region.draw([], ["same", "old"], 80)
    out.truncate(0)
    out.seek(0)
    region.draw([], ["same", "new"], 80)
    assert out.getvalue() == "\rnew\x1b[K"
    out.truncate(0)
    out.seek(0)
    region.draw([], ["same", "new"], 80)
    assert out.getvalue() == ""


def test_live_region_counts_broken_lines_after_a_resize() -> None:
    for reflows, rows in ((True, 3), (False, 1)):
        out = io.StringIO()
        region = LiveRegion(out, reflows=reflows)
        region.draw([], ["x" * 70, "y" * 70], 80)
        region.draw([], ["z"], 40)
        assert f"\r\x1b[{rows}Az" in out.getvalue()


def test_old_terminals_do_not_reflow() -> None:
    assert markdown.reflows({"TERM": "xterm-256color"})
    assert not markdown.reflows({"TERM": "xterm", "XTERM_VERSION": "XTerm(370)"})
    assert not markdown.reflows({"TERM": "linux"})
