"""Folders and switches that come from environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenkit.core import environment
from qwenkit.core.errors import InputError

NAMES = (
    "QWENKIT_CACHE",
    "XDG_CACHE_HOME",
    "QWENKIT_HOME",
    "XDG_DATA_HOME",
    "QWENKIT_TRACEBACK",
    "QWENKIT_ISA",
    "QWENKIT_API_KEY",
    "OPENAI_API_KEY",
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"QWENKIT_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"QWENKIT_CACHE": "~/own"}, "/home/me/own"),
        ({"QWENKIT_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/qwenkit"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/qwenkit"),
        ({}, "/home/me/.cache/qwenkit"),
    ],
)
def test_cache_dir(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.cache_dir() == Path(expected)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"QWENKIT_HOME": "/q", "XDG_DATA_HOME": "/x"}, "/q"),
        ({"XDG_DATA_HOME": "/x"}, "/x/qwenkit"),
        ({"XDG_DATA_HOME": "relative"}, "/home/me/.local/share/qwenkit"),
        ({}, "/home/me/.local/share/qwenkit"),
    ],
)
def test_data_dir(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.data_dir() == Path(expected)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(InputError, match="set QWENKIT_CACHE to a folder"):
        environment.cache_dir()
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert environment.data_dir() == Path("/x/qwenkit")


def test_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not environment.wants_traceback()
    assert environment.forced_isa() is None
    monkeypatch.setenv("QWENKIT_TRACEBACK", "1")
    monkeypatch.setenv("QWENKIT_ISA", " AVX2 ")
    assert environment.wants_traceback()
    assert environment.forced_isa() == "avx2"


def test_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.api_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert environment.api_key() == "theirs"
    monkeypatch.setenv("QWENKIT_API_KEY", "ours")
    assert environment.api_key() == "ours"
    monkeypatch.setenv("QWENKIT_API_KEY", "")
    assert environment.api_key() == "theirs"


def test_keys_of_a_server_stand_between_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWENKIT_API_KEYS", raising=False)
    assert environment.server_api_keys() == ()
    monkeypatch.setenv("QWENKIT_API_KEYS", " one, two ,,")
    assert environment.server_api_keys() == ("one", "two")
