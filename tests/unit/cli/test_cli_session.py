"""The session loop, with a scripted model, typed lines from a list, and a screen that only records."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.cli.commands import Commands
from qwenkit.cli.interrupts import stoppable
from qwenkit.cli.meter import Meter
from qwenkit.cli.session import Session, stream_reply
from qwenkit.cli.texts import EN
from qwenkit.core.errors import PromptTooLongError
from qwenkit.core.types import Delta, SamplingParams
from qwenkit.llm import LLM, Chat


class Lines:
    def __init__(self, *lines: str) -> None:
        self._lines = list(lines)

    def read(self) -> str:
        if not self._lines:
            raise EOFError
        return self._lines.pop(0)


class View:
    def __init__(self) -> None:
        self.text = ""
        self.is_finished = False

    def feed(self, text: str) -> None:
        self.text += text

    def finish(self) -> None:
        self.is_finished = True


class Record:
    """What was shown: (kind, text) pairs."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []
        self.views: list[View] = []

    def __getattr__(self, kind: str) -> Callable[..., None]:
        return lambda text="": self.shown.append((kind, text))

    def open_view(self) -> View:
        self.views.append(View())
        return self.views[-1]

    def all(self, kind: str) -> list[str]:
        return [text for shown, text in self.shown if shown == kind]


def play(
    *lines: str, replies: tuple[str, ...] = ("one", "two", "three"), **options: Any
) -> tuple[Chat, Record]:
    llm = LLM.from_backend(ScriptedBackend(list(replies)))
    chat = Chat(llm, params=options.pop("params", None))
    record = Record()
    commands = Commands(chat, llm.info.defaults, EN, 2048)
    Session(chat, commands, Lines(*lines), record, EN, **options).run()  # type: ignore[arg-type]
    return chat, record


def test_turns_are_remembered() -> None:
    chat, record = play("hi", "", "again")
    assert [m.content for m in chat.messages] == ["hi", "one", "again", "two"]
    assert [v.text for v in record.views] == ["one", "two"]
    assert all(v.is_finished for v in record.views)


def test_exit_leaves_at_once() -> None:
    _, record = play("/q", "never sent")
    assert record.views == []
    assert record.all("say") == [EN.bye]


def test_commands_and_errors_are_shown() -> None:
    _, record = play("/seed 5", "/sed", "/regen", "/clear")
    assert record.all("say")[0] == EN.seed_set.format(seed=5)
    assert len(record.all("error")) == 2
    assert record.all("clear") == [""]


def test_regenerate_replaces_the_reply() -> None:
    chat, record = play("hi", ":regen")
    assert [m.content for m in chat.messages] == ["hi", "two"]
    assert record.views[1].text == "two"


def test_stats_and_cut_are_noted() -> None:
    _, record = play("hi", replies=("abcdef",), has_stats=True, params=SamplingParams(max_tokens=3))
    notes = record.all("note")
    assert notes[0] == EN.cut
    assert "3 generated" in notes[1]


def test_an_error_of_the_model_does_not_end_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Chat, text: str) -> Iterator[Delta]:
        raise PromptTooLongError("too long")

    monkeypatch.setattr(Chat, "stream", fail)
    _, record = play("hi", "/his")
    assert record.all("error") == ["too long"]
    assert record.all("say") == [EN.history_empty]


def interrupting(count: int, times: int = 1) -> Iterator[Delta]:
    for index in range(count):
        if index == 2:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        yield Delta(index=0, text=str(index), token_ids=(index,))


@pytest.mark.parametrize(("times", "shown"), [(1, "012"), (2, "01")])
def test_ctrl_c_stops_the_reply_only(times: int, shown: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    view = View()
    deltas = interrupting(9, times)
    assert stream_reply(deltas, view, Meter())
    assert view.text == shown
    assert view.is_finished
    assert list(deltas) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stopped_reply_stays_in_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedBackend, "stream", lambda self, requests: interrupting(9))
    chat, record = play("hi")
    assert [m.content for m in chat.messages] == ["hi", "012"]
    assert record.all("note") == [EN.stopped]


def test_errors_finish_the_view() -> None:
    def failing() -> Iterator[Delta]:
        yield Delta(index=0, text="a")
        raise PromptTooLongError("no")

    view = View()
    with pytest.raises(PromptTooLongError):
        stream_reply(failing(), view, Meter())
    assert view.is_finished


def test_stoppable_forces_at_the_second_press() -> None:
    with stoppable() as stop:
        stop.is_gentle = True
        signal.raise_signal(signal.SIGINT)
        assert stop.is_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_the_first_token_stops_at_once() -> None:
    def reading_a_long_prompt() -> Iterator[Delta]:
        signal.raise_signal(signal.SIGINT)
        yield Delta(index=0, text="too late")

    view = View()
    assert stream_reply(reading_a_long_prompt(), view, Meter())
    assert view.text == ""
