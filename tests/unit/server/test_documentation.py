"""The page on serving names every field, endpoint and metric."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwenkit.server.endpoints import ENDPOINTS
from qwenkit.server.openai_fields import REFUSED
from qwenkit.server.openai_schema import ChatBody, CompletionBody, EmbeddingBody
from tests.support.http import Live

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("body", [ChatBody, CompletionBody, EmbeddingBody])
def test_every_field_is_named(body: type[ChatBody]) -> None:
    assert [name for name in body.model_fields if f"`{name}`" not in PAGE] == []


def test_every_refused_field_is_named() -> None:
    assert [name for name in REFUSED if f"`{name}`" not in PAGE] == []


def test_every_endpoint_is_named() -> None:
    paths = [e.path.replace("{model:path}", "{id}") for e in ENDPOINTS]
    assert [path for path in paths if path not in PAGE] == []


def test_every_metric_is_named(server: Live) -> None:
    families = text_string_to_metric_families(server.ask("/metrics").body.decode())
    assert [f.name for f in families if f"`{f.name}" not in PAGE] == []
