"""Commands of the chat session: parsing and what they do to a chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.cli.commands import ALIASES, Command, Commands, Outcome, help_text, is_unfinished, parse_line
from qwenkit.cli.texts import EN, ZH, Texts
from qwenkit.core.types import SamplingParams
from qwenkit.llm import LLM, Chat


def make(
    replies: tuple[str, ...] = ("one", "two"), params: SamplingParams | None = None, texts: Texts = EN
) -> tuple[Chat, Commands]:
    llm = LLM.from_backend(ScriptedBackend(list(replies)))
    chat = Chat(llm, params=params)
    return chat, Commands(chat, llm.info.defaults, texts, llm.info.context_length)


def run(commands: Commands, line: str) -> Outcome:
    command = parse_line(line)
    assert isinstance(command, Command), command
    return commands.run(command)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hello", "hello"),
        ("  spaced  ", "spaced"),
        ("", ""),
        ("/help", Command("help")),
        (":h", Command("h")),
        ("：h", Command("h")),
        ("/seed 7", Command("seed", "7")),
        ("/seed  7 ", Command("seed", "7")),
        ("/save! a b.json", Command("save", "a b.json", True)),
        ("/system two\nlines", Command("system", "two\nlines")),
        ("/etc/passwd is what?", Command("etc/passwd", "is what?")),
        ("//etc/passwd", "/etc/passwd"),
        ("::q", ":q"),
        (" /etc/passwd", "/etc/passwd"),
        (":)", ":)"),
        (":-( why", ":-( why"),
        ("/", "/"),
        ("// a comment", "// a comment"),
        ("1/2", "1/2"),
        ('"""one\ntwo"""', "one\ntwo"),
        ('"""\none\ntwo\n"""', "one\ntwo"),
        ('""""""', ""),
    ],
)
def test_parse_line(line: str, expected: Command | str) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", False),
        ('"""', True),
        ('"""a\nb', True),
        ('"""a\nb"""', False),
        ('  """x', True),
        ('a """', False),
    ],
)
def test_is_unfinished(text: str, expected: bool) -> None:
    assert is_unfinished(text) is expected


@pytest.mark.parametrize("name", [n for name, aliases in ALIASES.items() for n in (name, *aliases)])
@pytest.mark.parametrize("prefix", ["/", ":"])
def test_every_spelling_is_known(prefix: str, name: str) -> None:
    _, commands = make()
    assert EN.unknown_command.format(name=name) not in run(commands, prefix + name).text


@pytest.mark.parametrize("texts", [EN, ZH])
def test_help_names_every_command(texts: Texts) -> None:
    text = help_text(texts)
    assert all(f"/{name}" in text for name in ALIASES)
    assert max(map(len, text.splitlines())) < 80


def test_unknown_command_suggests() -> None:
    outcome = run(make()[1], "/hisory")
    assert outcome.is_error
    assert "'history'" in outcome.text
    assert "//" in outcome.text
    assert run(make()[1], "/home/me/x.py fails").is_error
    assert run(make()[1], "/help!").is_error


def test_bare_commands_refuse_arguments() -> None:
    chat, commands = make()
    chat.send("hi")
    assert run(commands, "/clh now").is_error
    assert len(chat.messages) == 2


def test_actions() -> None:
    _, commands = make()
    assert run(commands, ":q").action == "exit"
    assert run(commands, ":cl").action == "clear_screen"
    assert run(commands, "/regen").action == "regenerate"


def test_history_and_clear() -> None:
    chat, commands = make()
    assert run(commands, "/his").text == EN.history_empty
    chat.system = "be brief"
    chat.send("hi")
    assert run(commands, "/his").text == "System: be brief\n\nYou: hi\n\nAssistant: one"
    run(commands, "/clh")
    assert chat.messages == []


def test_seed() -> None:
    chat, commands = make()
    assert run(commands, "/seed").text == EN.seed_none
    assert "42" in run(commands, "/seed 42").text
    assert chat.params.seed == 42
    assert "42" in run(commands, "/seed").text
    for wrong in ("x", "-1", "1.5"):
        assert run(commands, f"/seed {wrong}").is_error
    assert chat.params.seed == 42
    run(commands, "/seed none")
    assert chat.params.seed is None


def test_conf_shows_defaults_and_own_values() -> None:
    _, commands = make(params=SamplingParams(top_k=5))
    lines = {line.split()[0]: line for line in run(commands, "/conf").text.splitlines()}
    assert EN.conf_default in lines["temperature"]
    assert "0.0" in lines["temperature"]
    assert lines["top_k"].endswith(" 5")


def test_conf_sets_and_resets() -> None:
    chat, commands = make(params=SamplingParams(top_k=5))
    assert not run(commands, "/conf temperature=0.5 top_p=0.9 stop='a b'").is_error
    assert chat.params == SamplingParams(top_k=5, temperature=0.5, top_p=0.9, stop=("a b",))
    run(commands, "/reset-conf")
    assert chat.params == SamplingParams(top_k=5)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/conf temprature=1", "'temperature'"),
        ("/conf temperature", "key=value"),
        ("/conf temperature=hot", "a number"),
        ("/conf top_k=1.5", "a whole number"),
        ("/conf top_p=7", "top_p=7.0"),
        ("/conf top_k=3 top_p=7", "top_p=7.0"),
        ("/conf ignore_eos=maybe", "true or false"),
    ],
)
def test_conf_errors_change_nothing(line: str, part: str) -> None:
    chat, commands = make()
    outcome = run(commands, line)
    assert outcome.is_error
    assert part in outcome.text
    assert chat.params == SamplingParams()


def test_system() -> None:
    chat, commands = make()
    assert run(commands, "/system").text == EN.system_none
    run(commands, "/system You are terse.")
    assert chat.system == "You are terse."
    assert run(commands, "/system").text == "You are terse."
    run(commands, '/system ""')
    assert chat.system == ""


def test_undo() -> None:
    chat, commands = make()
    assert run(commands, "/undo").is_error
    chat.send("hello there")
    assert "hello there" in run(commands, "/undo").text
    assert chat.messages == []


def test_tokens() -> None:
    chat, commands = make()
    chat.send("hi")
    assert "2048" in run(commands, "/tokens").text


def test_save_refuses_to_overwrite(tmp_path: Path) -> None:
    chat, commands = make()
    chat.send("hi")
    path = tmp_path / "a chat.json"
    assert not run(commands, f"/save {path}").is_error
    before = path.read_text()
    chat.send("again")
    refused = run(commands, f"/save {path}")
    assert refused.is_error
    assert "/save!" in refused.text
    assert path.read_text() == before
    assert not run(commands, f"/save! {path}").is_error
    run(commands, "/clh")
    assert "4" in run(commands, f"/load {path}").text
    assert [m.content for m in chat.messages] == ["hi", "one", "again", "two"]


@pytest.mark.parametrize(
    "line", ["/save", "/load", "/load /no/such/file.json", "/save /no/such/folder/x.json"]
)
def test_file_errors_are_told(line: str) -> None:
    assert run(make()[1], line).is_error


def test_messages_come_in_the_chosen_language() -> None:
    assert run(make(texts=ZH)[1], "/his").text == "对话历史为空。"


@pytest.mark.parametrize(
    "line", ["/save ~nosuchuser/x", "/load ~nosuchuser/x", "/save a\0b", "/conf stop=" + "[" * 100_000 + "]"]
)
def test_what_python_itself_refuses_is_told(line: str) -> None:
    _, commands = make()
    assert run(commands, line).is_error
