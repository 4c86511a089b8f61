"""Whatever JSON a field holds, the answer is an answer or a refusal, and never a surprise."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.server.bodies import Body
from qwenkit.server.endpoints import chosen
from tests.support.http import Live

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["auto", "required", "json_object", "function", "user", "text", "name", "type"]),
)
_NAMES = st.sampled_from(
    ["type", "name", "function", "role", "content", "text", "json_schema", "schema", "regex", "x"]
)
JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)
_FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _fields(body: Any) -> st.SearchStrategy[dict[str, Any]]:
    names = [f.alias or name for name, f in body.model_fields.items()] + ["audio", "store", "metadata"]
    return st.dictionaries(st.sampled_from(names), JSON, max_size=3)


def _endpoints() -> list[Any]:
    """All that read a body, with the body."""
    found = {e.path: e.body for protocol in chosen(()) for e in protocol.endpoints if e.body is not None}
    return [pytest.param(path, body, id=path) for path, body in found.items() if "{" not in path]


BASE: dict[str, Any] = {
    "prompt": "a",
    "inputs": "a",
    "input": "a",
    "messages": [{"role": "user", "content": "a"}],
    "max_tokens": 5,
    "tokens": [1],
    "model": "scripted",
    "parameters": {"max_new_tokens": 5},
}
"""What some endpoint cannot do without."""


@pytest.mark.parametrize(("path", "body"), _endpoints())
def test_every_endpoint(server: Live, path: str, body: Any) -> None:
    known = {name: value for name, value in BASE.items() if name in body.model_fields}

    @_FEW
    @given(fields=_fields(body), deep=_deep(body))
    def ask(fields: dict[str, Any], deep: dict[str, Any]) -> None:
        answer = server.ask(path, known | fields | deep)
        assert answer.status < 500, (known | fields | deep, answer.body)

    ask()


def _deep(body: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Fields that are objects of their own, with anything in them."""
    inner = {
        name: kind
        for name, field in body.model_fields.items()
        for kind in get_args(field.annotation) or (field.annotation,)
        if isinstance(kind, type) and issubclass(kind, Body)
    }
    if not inner:
        return st.just({})
    return st.dictionaries(st.sampled_from(sorted(inner)), st.just(None), max_size=1).flatmap(
        lambda chosen_: st.fixed_dictionaries({name: _fields(inner[name]) for name in chosen_})
    )
