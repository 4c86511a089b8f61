"""Both languages say the same things."""

from __future__ import annotations

import dataclasses
import string

import pytest

from qwenkit.cli.commands import ALIASES
from qwenkit.cli.texts import EN, ZH, choose
from qwenkit.core.errors import InputError


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(EN) if f.name != "help"])
def test_same_placeholders(name: str) -> None:
    assert placeholders(getattr(EN, name)) == placeholders(getattr(ZH, name))


def test_help_covers_the_commands() -> None:
    assert set(EN.help) == set(ZH.help) == set(ALIASES)


@pytest.mark.parametrize(
    ("language", "environ", "expected"),
    [
        ("zh", {}, ZH),
        ("en", {"LANG": "zh_CN.UTF-8"}, EN),
        ("auto", {}, EN),
        ("auto", {"LANG": "zh_CN.UTF-8"}, ZH),
        ("auto", {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, EN),
        ("auto", {"LANG": "en_GB.UTF-8", "LC_MESSAGES": "zh_TW"}, ZH),
        ("auto", {"LC_ALL": "", "LANG": "zh_CN"}, ZH),
    ],
)
def test_choose(language: str, environ: dict[str, str], expected: object) -> None:
    assert choose(language, environ) is expected


def test_unknown_language() -> None:
    with pytest.raises(InputError, match="zh, en or auto"):
        choose("fr")
