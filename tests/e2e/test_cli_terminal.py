"""The chat at a real pseudo-terminal of 80x24, read back through a terminal emulator."""

from __future__ import annotations

import contextlib
import json
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.terminal import Terminal

LAUNCHER = Path(__file__).with_name("cli_launcher.py")
LONG = "Start.\n\n" + "\n".join(f"{i}. item number {i}" for i in range(1, 41)) + "\n\nThe end."


Open = Callable[..., Terminal]


@pytest.fixture
def open_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **script: Any) -> Terminal:
            path = tmp_path / "script.json"
            path.write_text(json.dumps({"replies": ["**Hello** you.", "Second *one*."], **script}))
            environ = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
            environ |= {"QWENKIT_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
            terminal = Terminal([sys.executable, str(LAUNCHER), str(path), "chat", *arguments], environ)
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
