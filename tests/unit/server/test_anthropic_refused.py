"""Requests of Anthropic's protocol that cannot be honoured: each error has its shape and names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.http import Answer, Live, live, scripted

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "weather", "input_schema": {"type": "object"}}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
USED = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": list(blocks)}, USER]}


# (fields over those of a good request, telling words of the sentence)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens=-1"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "at least 1"),
    ({"messages": "hi"}, "list"),
    ({"messages": ["hi"]}, "messages[0] must be an object"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role is missing"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "user, assistant, system"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content is empty"),
    (user({"text": "hi"}), "type is missing"),
    (user({"type": "text"}), "text is missing"),
    (user({"type": "text", "text": 5}), "text"),
    (
        user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}),
        "text only",
    ),
    (user({"type": "document", "source": {"type": "base64", "data": "x"}}), "base64"),
    (user({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}), "url"),
    (user({"type": "document", "source": {"type": "file", "file_id": "f"}}), "file"),
    (user({"type": "document"}), "source is missing"),
    (user({"type": "document", "source": {"type": "text"}}), "data is missing"),
    (
        user({"type": "document", "source": {"type": "text", "data": "x"}, "citations": {"enabled": True}}),
        "citations",
    ),
    (user({"type": "search_result", "source": "x", "title": "y"}), "content is missing"),
    (user({"type": "container_upload", "file_id": "f"}), "container_upload"),
    (user({"type": "tool_result", "content": "4"}), "tool_use_id is missing"),
    (user({"type": "tool_result", "tool_use_id": "call_9", "content": "4"}), "answers no open call"),
    (user({"type": "text", "text": "a"}, {"type": "tool_result", "tool_use_id": "call_1"}), "first"),
    (
        user({"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}),
        "content[0] is 'image'",
    ),
    (user(USED), "tool_use"),
    (user({"type": "thinking", "thinking": "x", "signature": "y"}), "thinking"),
    (assistant({"type": "tool_use", "name": "f", "input": {}}), "id is missing"),
    (assistant({"type": "tool_use", "id": "a", "input": {}}), "name is missing"),
    (assistant({"type": "tool_use", "id": "a", "name": "f"}), "input is missing"),
    (assistant({"type": "tool_use", "id": "a", "name": "f", "input": "x"}), "input"),
    (assistant({"type": "thinking", "signature": "x"}), "thinking is missing"),
    (assistant({"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}}), "server_tool_use"),
    (
        assistant({"type": "web_search_tool_result", "tool_use_id": "a", "content": []}),
        "web_search_tool_result",
    ),
    ({"messages": [USER, {"role": "assistant", "content": [USED]}]}, "calls tools"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "nothing to answer"),
    ({"messages": [{"role": "assistant", "content": []}]}, "nothing to answer"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system[0] is 'image'"),
    ({"model": "gpt-9"}, "scripted"),
    ({"model": 5}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": ["x"] * 65}, "64"),
    ({"temperature": -1}, "temperature=-1"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"seed": 2**70}, "64 bits"),
    ({"thinking": "yes"}, "thinking"),
    ({"thinking": {}}, "thinking.type is missing"),
    ({"thinking": {"type": "deep"}}, "adaptive"),
    ({"thinking": {"type": "enabled"}}, "budget_tokens is missing"),
    ({"thinking": {"type": "adaptive", "display": "big"}}, "thinking.display"),
    ({"output_config": {"effort": "huge"}}, "effort"),
    ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "json_schema"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "schema is missing"),
    ({"output_config": {"format": SCHEMA}, "output_format": SCHEMA}, "only one"),
    ({"output_config": {"format": SCHEMA}, "tools": [TOOL]}, "contradict"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name is missing"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema is missing"),
    ({"tools": [TOOL, TOOL]}, "each of its own"),
    ({"tools": [TOOL] * 129}, "128"),
    ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "web_search_20260318"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
    ({"tools": [{"type": "computer_toolset_20260801", "name": "computer"}]}, "computer_toolset_20260801"),
    ({"tools": [{"type": "code_execution_20260521", "name": "code_execution"}]}, "code_execution_20260521"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "defer_loading"),
    ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20260521"]}]}, "allowed_callers"),
    ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "maybe"}}, "auto, any, tool, none"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "wether"}}, "weather"),
    ({"tool_choice": {"type": "any"}}, "needs tools"),
    ({"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "x"}]}, "mcp|MCP"),
    ({"container": "c"}, "container"),
    ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "compact_20260112"),
    ({"context_management": {"edits": [{}]}}, "type is missing"),
    ({"context_management": []}, "object"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"speed": "fast"}, "speed"),
    ({"inference_geo": "eu"}, "inference_geo"),
    ({"compaction": {"enabled": True}}, "compaction"),
]


def assert_error(answer: Answer, status: int, kind: str, words: str = "") -> None:
    """The answer is an error in this protocol's shape."""
    value = answer.json
    assert answer.status == status, value
    assert set(value) == {"type", "error", "request_id"}
    assert value["type"] == "error"
    assert value["request_id"] == answer.headers["request-id"]
    assert set(value["error"]) == {"type", "message"}
    assert value["error"]["type"] == kind
    assert any(word in value["error"]["message"] for word in words.split("|")), value


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_refused(server: Live, fields: dict[str, Any], words: str) -> None:
    asked = {"model": "scripted", "max_tokens": 20, "messages": [USER]} | fields
    status, kind = (
        (404, "not_found_error") if fields == {"model": "gpt-9"} else (400, "invalid_request_error")
    )
    assert_error(server.ask("/v1/messages", asked), status, kind, words)
    assert server.ask("/v1/messages", {**asked, "stream": True} | fields).status == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b"\xff\xfe{}", 400),
        (b'{"max_tokens": NaN}', 400),
        (b'{"max_tokens": 1e999}', 400),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        (b'{"max_tokens": 1, "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b"x" * (17 * 2**20), 413),
    ],
    ids=range(12),
)
def test_broken_bodies(server: Live, body: bytes, status: int) -> None:
    kind = "request_too_large" if status == 413 else "invalid_request_error"
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        assert_error(server.ask(path, body, method="POST"), status, kind)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("DELETE", "/v1/messages", 405, "invalid_request_error"),
        ("PUT", "/v1/messages/count_tokens", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/messages/batches/msgbatch_1/results", 404, "not_found_error"),
        ("GET", "/v1/messages/", 404, "not_found_error"),
        ("POST", "/v1/messages/count_token", 404, "not_found_error"),
    ],
)
def test_paths_and_methods(server: Live, method: str, path: str, status: int, kind: str) -> None:
    assert_error(server.ask(path, method=method), status, kind)


def test_content_types(server: Live) -> None:
    asked = json.dumps({"max_tokens": 5, "messages": [USER]}).encode()
    for kind in ("text/plain", "multipart/form-data; boundary=x"):
        answer = server.ask("/v1/messages", asked, headers={"content-type": kind})
        assert_error(answer, 415, "invalid_request_error", "application/json")


def test_a_prompt_that_is_too_long(server: Live) -> None:
    long = {"max_tokens": 5, "messages": [{"role": "user", "content": "x" * 3000}]}
    assert_error(server.ask("/v1/messages", long), 400, "invalid_request_error", "2048")


def test_a_full_queue_and_a_missing_key() -> None:
    asked = {"max_tokens": 5, "messages": [USER]}
    with live(scripted(max_jobs=0), api_keys=("secret",)) as server:
        answer = server.ask("/v1/messages", asked, headers={"x-api-key": "secret"})
        assert_error(answer, 429, "rate_limit_error")
        assert answer.headers["retry-after"]
        assert_error(server.ask("/v1/messages", asked), 401, "authentication_error")


def test_threads_are_refused_in_the_words_that_clients_know(server: Live) -> None:
    asked = {"max_tokens": 5, "messages": [USER], "thread": {"type": "create"}}
    answer = server.ask("/v1/messages", asked)
    assert answer.status == 400
    assert answer.json["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert "whole conversation" in answer.json["error"]["message"]
