"""What clients may come back to: by whom, how much, and what goes first."""

from __future__ import annotations

import pytest

from qwenkit.core.errors import InputError
from qwenkit.server.options import ServerOptions
from qwenkit.server.store import Store
from qwenkit.server.thoughts import seal, unseal


def test_each_owner_has_its_own() -> None:
    store: Store[str] = Store(10)
    store.put("a", b"one", "x", 1)
    assert store.get("a", b"one") == "x"
    assert store.get("a", b"two") is None
    assert store.get("a", None) is None
    assert store.pop("a", b"two") is None
    store.put("b", b"two", "y", 1)
    assert list(store.all_of(b"two")) == ["y"]
    assert store.pop("a", b"one") == "x"
    assert store.get("a", b"one") is None


def test_the_least_recently_used_goes_first() -> None:
    store: Store[str] = Store(2)
    assert store.put("a", None, "x", 1) == []
    store.put("b", None, "y", 1)
    store.get("a", None)
    assert store.put("c", None, "z", 1) == ["y"]
    assert list(store.all_of(None)) == ["z", "x"]


def test_bytes_are_limited() -> None:
    store: Store[str] = Store(10, max_bytes=10)
    store.put("a", None, "x", 6)
    assert store.put("a", None, "xx", 8) == []  # the same one, grown
    assert store.put("b", None, "y", 3) == ["xx"]
    assert store.put("c", None, "huge", 11) == ["y", "huge"]
    store.put("d", None, "z", 10)
    assert store.pop("d", None) == "z"
    assert store.put("e", None, "z", 10) == []


def test_nothing_is_kept_without_room() -> None:
    store: Store[str] = Store(0)
    assert not store.is_on
    assert store.put("a", None, "x", 1) == ["x"]


def test_a_number_that_makes_no_sense() -> None:
    with pytest.raises(InputError, match="store_responses=-1"):
        ServerOptions(store_responses=-1)


@pytest.mark.parametrize("text", ["", "a thought", "ü\ud800"])
def test_sealed_thoughts(text: str) -> None:
    assert unseal(seal(text)) == text.encode("utf-8", "replace").decode()
    assert unseal("kept:%%%") == unseal("ErUBCkYIAxgC") == ""
