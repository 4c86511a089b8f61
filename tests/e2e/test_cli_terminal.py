"""The chat at a real pseudo-terminal of 80x24, read back through a terminal emulator."""

from __future__ import annotations

import contextlib
import json
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

LAUNCHER = Path(__file__).with_name("cli_launcher.py")
LONG = "Start.\n\n" + "\n".join(f"{i}. item number {i}" for i in range(1, 41)) + "\n\nThe end."


class Terminal:
    """A process at a terminal; ``text`` is everything it ever showed, scrolled away or not."""

    def __init__(self, arguments: list[str], environ: dict[str, str]) -> None:
        self.process = pexpect.spawn(sys.executable, arguments, env=environ, dimensions=(24, 80), timeout=20)
        self.screen = pyte.HistoryScreen(80, 24, history=5000, ratio=0.01)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def pump(self) -> bool:
        """Takes what has come; False at the end."""
        try:
            data = self.process.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        # The input line asks where the cursor is, as a terminal would tell it.
        for _ in range(data.count(b"\x1b[6n")):
            self.process.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        self.raw += data
        self.stream.feed(data)
        return True

    @property
    def text(self) -> str:
        above = ["".join(row[x].data for x in range(80)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    def wait_for(self, pattern: str, seconds: float = 15) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            alive = self.pump()
            if re.search(pattern, self.text):
                return self.text
            if not alive:
                break
        raise AssertionError(f"{pattern!r} was not shown:\n{self.text}")

    def wait_for_prompt(self, count: int) -> str:
        """Waits for the count-th input line; the first one is 1."""
        end = time.monotonic() + 15
        while time.monotonic() < end:
            self.pump()
            lines = self.text.split("\n")
            if len(re.findall(r"^>", self.text, re.MULTILINE)) >= count and lines[-1].strip() == ">":
                return self.text
        raise AssertionError(f"no input line:\n{self.text}")

    def send(self, keys: str) -> None:
        self.process.send(keys)

    def exit_code(self) -> int | None:
        end = time.monotonic() + 15
        while self.pump() and time.monotonic() < end:
            pass
        self.process.close()
        return self.process.exitstatus


Open = Callable[..., Terminal]


@pytest.fixture
def open_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **script: Any) -> Terminal:
            path = tmp_path / "script.json"
            path.write_text(json.dumps({"replies": ["**Hello** you.", "Second *one*."], **script}))
            environ = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
            environ |= {"QWENKIT_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
            terminal = Terminal([str(LAUNCHER), str(path), "chat", *arguments], environ)
            stack.callback(terminal.process.close, force=True)
            return terminal

        yield start


def test_a_conversation(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat("--stats")
    first = chat.wait_for_prompt(1)
    assert first.splitlines()[0].startswith("scripted · none · none · context 2048")
    assert "/help" in first
    chat.send("hi there\r")
    chat.wait_for(r"\nHello you\.\n.*tokens/s")
    chat.wait_for_prompt(2)
    chat.send("/his\r")
    chat.wait_for(r"You: hi there\n\nAssistant: \*\*Hello\*\* you\.")
    chat.send("\x04")
    assert chat.exit_code() == 0
    history = tmp_path / "home" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "hi there" in history.read_text()


def test_history_comes_back_in_the_next_run(open_chat: Open) -> None:
    chat = open_chat()
    chat.wait_for_prompt(1)
    chat.send("remember me\r")
    chat.wait_for_prompt(2)
    chat.send("/q\r")
    assert chat.exit_code() == 0
    chat = open_chat()
    chat.wait_for_prompt(1)
    chat.send("\x1b[A\x1b[A")
    chat.wait_for("> remember me")
    chat.send("\r")
    chat.wait_for(r"Hello you\.")


def test_ctrl_c_stops_the_reply_then_clears_then_leaves(open_chat: Open) -> None:
    chat = open_chat(replies=["one two three four five six " * 50, "fresh"], chunk=4, delay=0.03)
    chat.wait_for_prompt(1)
    chat.send("go\r")
    chat.wait_for("one two three")
    chat.send("\x03")
    chat.wait_for(r"\[stopped\]")
    chat.wait_for_prompt(2)
    assert "^C" not in chat.text
    chat.send("/his\r")
    chat.wait_for("Assistant: one two three")
    chat.send("half a line")
    chat.wait_for("> half a line")
    chat.send("\x03")
    chat.wait_for_prompt(3)
    chat.send("\x03")
    assert chat.exit_code() == 0


def test_several_lines(open_chat: Open) -> None:
    chat = open_chat()
    chat.wait_for_prompt(1)
    chat.send("one\x1b\rtwo\r")
    chat.wait_for_prompt(2)
    chat.send('"""three\r')
    chat.send('four"""\r')
    chat.wait_for_prompt(3)
    chat.send("/his\r")
    chat.wait_for(r"You: one\ntwo\n\n[\s\S]*You: three\nfour\n")


def test_a_long_reply_stays_whole_in_the_scrollback(open_chat: Open) -> None:
    chat = open_chat("-n", "9999", replies=[LONG], chunk=5, delay=0.002)
    chat.wait_for_prompt(1)
    chat.send("go\r")
    chat.wait_for(r"The end\.")
    text = chat.wait_for_prompt(2)
    items = re.findall(r"^ (\d+)\. item number \1$", text, re.MULTILINE)
    assert items == [str(i) for i in range(1, 41)]
    assert text.count("Start.") == text.count("The end.") == 1


def test_keys_typed_meanwhile_wait_for_the_next_line(open_chat: Open) -> None:
    chat = open_chat(replies=["slow words " * 10, "done"], delay=0.02)
    chat.wait_for_prompt(1)
    chat.send("go\r")
    chat.wait_for("slow words")
    chat.send("typed early")
    text = chat.wait_for("> typed early")
    assert text.count("typed early") == 1


def test_commands_in_chinese(open_chat: Open) -> None:
    chat = open_chat("--lang", "zh")
    chat.wait_for_prompt(1)
    chat.send(":h\r")
    chat.wait_for("清除对话历史")
    chat.send("/nonsense x\r")
    chat.wait_for("没有命令 /nonsense")
    chat.send(":exit\r")
    chat.wait_for("再见。")
    assert chat.exit_code() == 0


def test_completion_of_commands(open_chat: Open) -> None:
    chat = open_chat()
    chat.wait_for_prompt(1)
    chat.send("/hi")
    chat.wait_for("show the conversation")
    chat.send("\t\r")
    chat.wait_for("The history is empty")


def test_one_answer_at_a_terminal_is_markdown(open_chat: Open) -> None:
    chat = open_chat("hi")
    chat.wait_for(r"^Hello you\.")
    assert chat.exit_code() == 0
    assert "**" not in chat.text
    assert b"\x1b[" in chat.raw
