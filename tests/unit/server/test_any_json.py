"""Whatever JSON a field holds, the answer is an answer or a refusal, and never a surprise."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.server.openai.schema import ChatBody, CompletionBody
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
_FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _fields(body: Any) -> st.SearchStrategy[dict[str, Any]]:
    names = [f.alias or name for name, f in body.model_fields.items()] + ["audio", "store", "metadata"]
    return st.dictionaries(st.sampled_from(names), JSON, max_size=3)


@_FEW
@given(fields=_fields(ChatBody))
def test_chat(server: Live, fields: dict[str, Any]) -> None:
    answer = server.chat(**({"max_tokens": 5} | fields))
    assert answer.status in (200, 400, 404), answer.body


@_FEW
@given(fields=_fields(CompletionBody))
def test_completions(server: Live, fields: dict[str, Any]) -> None:
    answer = server.complete(**({"prompt": "a", "max_tokens": 5} | fields))
    assert answer.status in (200, 400, 404), answer.body
