"""The pages on serving and its protocols name every field, endpoint and metric."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwenkit.server.endpoints import chosen
from qwenkit.server.ollama import schema as ollama_schema
from qwenkit.server.ollama.schema import OllamaMessageBody, OllamaOptionsBody
from qwenkit.server.openai.fields import REFUSED
from qwenkit.server.openai.schema import ChatBody, CompletionBody, EmbeddingBody
from qwenkit.server.protocol import Protocol
from qwenkit.server.tgi.schema import TgiGrammarBody, TgiParametersBody
from qwenkit.server.vllm_demo import schema as vllm_demo_schema
from tests.support.http import Live

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("body", [ChatBody, CompletionBody, EmbeddingBody])
def test_every_field_is_named(body: type[ChatBody]) -> None:
    assert [name for name in body.model_fields if f"`{name}`" not in PAGE] == []


def test_every_refused_field_is_named() -> None:
    assert [name for name in REFUSED if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("protocol", chosen(()), ids=lambda protocol: protocol.name)
def test_every_field_of_a_page_is_named(protocol: Protocol) -> None:
    own = DOCS / f"protocol-{protocol.name}.md"
    if own.exists():
        page = own.read_text("utf-8")
        bodies = {endpoint.body for endpoint in protocol.endpoints if endpoint.body is not None}
        names = {f.alias or name for body in bodies for name, f in body.model_fields.items()}
        assert sorted(n for n in names if f"`{n}`" not in page and f"`{n}." not in page) == []


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("tgi", [*TgiParametersBody.model_fields, *TgiGrammarBody.model_fields]),
        ("vllm-demo", [*vllm_demo_schema.REFUSED]),
        ("ollama", [*OllamaOptionsBody.model_fields, *OllamaMessageBody.model_fields]),
        ("ollama", [*ollama_schema.REFUSED, *ollama_schema.REFUSED_OPTIONS, *ollama_schema.NEUTRAL_OPTIONS]),
    ],
)
def test_every_inner_and_refused_field_is_named(page: str, names: list[str]) -> None:
    text = (DOCS / f"protocol-{page}.md").read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("protocol", chosen(()), ids=lambda protocol: protocol.name)
def test_every_endpoint_is_named(protocol: Protocol) -> None:
    own = DOCS / f"protocol-{protocol.name}.md"
    page = own.read_text("utf-8") if own.exists() else PAGE
    paths = [e.path.replace("{model:path}", "{id}") for e in protocol.endpoints]
    assert [path for path in paths if path not in page] == []


def test_every_metric_is_named(server: Live) -> None:
    families = text_string_to_metric_families(server.ask("/metrics").body.decode())
    assert [f.name for f in families if f"`{f.name}" not in PAGE] == []
