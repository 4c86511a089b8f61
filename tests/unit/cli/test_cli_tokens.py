"""Token ids as people write them."""

from __future__ import annotations

import pytest

from qwenkit.cli.inspect_model import count, size
from qwenkit.cli.tokens import parse_ids
from qwenkit.core.errors import InputError


@pytest.mark.parametrize("text", ["1 2 30", "1,2,30", "[1, 2, 30]", " 1\n2 30\n"])
def test_parse_ids(text: str) -> None:
    assert parse_ids(text) == [1, 2, 30]


@pytest.mark.parametrize("text", ["", " ", "[]", "1 x", "-1", "1.5", '["1"]', "²"])
def test_parse_ids_refuses(text: str) -> None:
    with pytest.raises(InputError, match="token id"):
        parse_ids(text)


def test_sizes_and_counts() -> None:
    assert [size(n) for n in (5, 1536, 92 * 2**20)] == ["5 B", "1.5 KiB", "92.0 MiB"]
    assert [count(n) for n in (5, 134_515_008, 7_000_000_000)] == [
        "5",
        "134.5 M (134,515,008)",
        "7.0 B (7,000,000,000)",
    ]
