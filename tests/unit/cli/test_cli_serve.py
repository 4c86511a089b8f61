"""What the flags of ``qwenkit serve`` mean for the server."""

from __future__ import annotations

import pytest

from qwenkit.cli.serve import HttpOptions
from qwenkit.core.errors import InputError


def test_flags_reach_the_server() -> None:
    flags = HttpOptions(store_responses=5, protocols="anthropic, responses", api_key=["one", "two", "one"])
    options = flags.to_server_options(has_access_log=False)
    assert options.store_responses == 5
    assert options.protocols == ("anthropic", "responses")
    assert options.api_keys == ("one", "two")
    assert HttpOptions().to_server_options(has_access_log=True).store_responses == 1000


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"store_responses": -1}, "store_responses=-1"),
        ({"protocols": "antropic"}, "did you mean 'anthropic'"),
        ({"max_body_mb": 0}, "--max-body-mb"),
    ],
)
def test_flags_that_are_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        HttpOptions(**flags).to_server_options(has_access_log=False)  # type: ignore[arg-type]
