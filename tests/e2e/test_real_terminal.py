"""A conversation with the real default model at a pseudo-terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.process import QWENKIT, environment
from tests.support.terminal import Terminal

ANSWER = r"The answer to this classic math problem is 4\."
Open = Callable[..., Terminal]


@pytest.fixture
def open_chat(smollm2_gguf: Path, tmp_path: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Terminal:
            environ = environment(TERM="xterm-256color", LANG="C.UTF-8", QWENKIT_HOME=str(tmp_path / "home"))
            terminal = Terminal([QWENKIT, "chat", "--greedy", *arguments], environ)
            stack.callback(terminal.process.close, force=True)
            return terminal

        yield start


def test_a_conversation_and_its_next_day(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
    chat.wait_for_prompt(1, seconds=40)
    chat.send("What is 2+2?\r")
    chat.wait_for(ANSWER)
    chat.wait_for_prompt(2)
    chat.send("/regen\r")
    chat.wait_for(rf"(?s){ANSWER}.*{ANSWER}")
    chat.wait_for_prompt(3)
    chat.send("/tokens\r")
    chat.wait_for(r"\d\d of 8192 tokens are in use")
    chat.send("/undo\r")
    chat.wait_for(r"Removed: What is 2\+2\?")
    chat.send("/his\r")
    chat.wait_for("The history is empty")
    chat.send("What is 2+2?\r")
    chat.wait_for_prompt(7)
    chat.send(f"/save {tmp_path}/talk.json\r")
    chat.wait_for(r"Saved 2 messages to")
    chat.send("Write a long story about a ship.\r")
    chat.wait_for_prompt(8)  # the line just typed
    chat.wait_for(r"(?s)ship\.\n+\S+ \S+ \S+")
    chat.send("\x03")
    chat.wait_for(r"\[stopped\]")
    chat.wait_for_prompt(9)
    chat.send("\x04")
    assert chat.exit_code() == 0

    chat = open_chat()
    chat.wait_for_prompt(1, seconds=40)
    chat.send(f"/load {tmp_path}/talk.json\r")
    chat.wait_for("Loaded 2 messages from")
    chat.send("/his\r")
    chat.wait_for(rf"You: What is 2\+2\?\n\nAssistant: {ANSWER}")
    chat.send("/q\r")
    assert chat.exit_code() == 0
