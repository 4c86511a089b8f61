"""Requests of the Responses protocol that cannot be honoured: each is refused with a sentence, and names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.http import Live, live, scripted

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
SCHEMA = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


def without(name: str) -> dict[str, Any]:
    return {"input": [{key: value for key, value in CALL.items() if key != name}]}


# (fields over those of a good request, a telling word of the sentence, the field at fault)
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"input": None}, "missing", "input"),
    ({"input": []}, "missing", "input"),
    ({"input": 5}, "string", "input"),
    ({"input": {"role": "user"}}, "list", "input"),
    ({"input": ["hi"]}, "object", "input[0]"),
    ({"input": [{}]}, "type is missing", "input[0].type"),
    ({"input": [{"type": "item_reference"}]}, "id is missing", "input[0].id"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "not kept", "input[0].id"),
    ({"input": [{"content": "hi"}]}, "type is missing", "input[0].type"),
    ({"input": [{"type": "message", "content": "hi"}]}, "role is missing", "input[0].role"),
    ({"input": [{"role": "robot", "content": "hi"}]}, "developer", "input[0].role"),
    ({"input": [{"role": "user"}]}, "content is missing", "input[0].content"),
    ({"input": [{"role": "user", "content": 5}]}, "string", "input[0].content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "missing",
        "input[0].content[0].text",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "text only",
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        "text only",
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "text only",
        "input[0].content[0].type",
    ),
    (without("call_id"), "call_id is missing", "input[0].call_id"),
    (without("name"), "name is missing", "input[0].name"),
    (without("arguments"), "arguments is missing", "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "output": "4"}]}, "missing", "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "missing", "input[0].output"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "4"}]}, "no open call", None),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "web_search_call", "input[0].type"),
    ({"input": [{"type": "computer_call_output", "id": "x"}]}, "computer_call_output", "input[0].type"),
    ({"input": [{"type": "mcp_call", "id": "x"}]}, "mcp_call", "input[0].type"),
    (
        {"input": [{"type": "reasoning", "summary": [{"type": "image"}]}]},
        "text only",
        "input[0].summary[0].type",
    ),
    ({"model": "gpt-9"}, "scripted", "model"),
    ({"model": 5}, "string", "model"),
    ({"instructions": ["x"]}, "string", "instructions"),
    ({"previous_response_id": "resp_none"}, "not kept", "previous_response_id"),
    ({"previous_response_id": 5}, "string", "previous_response_id"),
    ({"store": "yes"}, "boolean", "store"),
    ({"stream": 1}, "boolean", "stream"),
    ({"background": True, "store": False}, "store=true", "background"),
    ({"conversation": "conv_1"}, "previous_response_id", "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "instructions", "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "truncation", "context_management"),
    ({"moderation": {"model": "x"}}, "moderation", "moderation"),
    ({"personality": "friendly"}, "instructions", "personality"),
    ({"background_options": {"completion_window": "8h"}}, "at once", "background_options"),
    ({"service_tier": "priority"}, "service_tier", "service_tier"),
    ({"modalities": ["audio"]}, "text", "modalities"),
    ({"include": ["everything"]}, "message.output_text.logprobs", "include"),
    ({"include": "x"}, "list", "include"),
    ({"max_output_tokens": 0}, "from 1 up", "max_output_tokens"),
    ({"max_output_tokens": "many"}, "integer", "max_output_tokens"),
    ({"max_tool_calls": 0}, "from 1 up", "max_tool_calls"),
    ({"temperature": -1}, "temperature", "temperature"),
    ({"temperature": True}, "number", "temperature"),
    ({"top_p": 0}, "top_p", "top_p"),
    ({"top_k": -2}, "top_k", "top_k"),
    ({"top_logprobs": 21}, "20", "top_logprobs"),
    ({"seed": 2**70}, "64 bits", "seed"),
    ({"frequency_penalty": 3}, "-2", "frequency_penalty"),
    ({"stop": [""]}, "stop", "stop"),
    ({"truncation": "middle"}, "disabled", "truncation"),
    ({"metadata": {"a": 5}}, "string", "metadata.a"),
    ({"metadata": {"k" * 65: "v"}}, "64", "metadata"),
    ({"metadata": {str(n): "v" for n in range(17)}}, "16", "metadata"),
    ({"reasoning": {"effort": "huge"}}, "xhigh", "reasoning.effort"),
    ({"reasoning": {"summary": "long"}}, "concise", "reasoning.summary"),
    ({"reasoning": "high"}, "object", "reasoning"),
    ({"text": {"verbosity": "chatty"}}, "medium", "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "json_schema", "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema is missing", "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "name is missing", "text.format.name"),
    ({"text": {"format": {**SCHEMA, "name": "a b"}}}, "pattern", "text.format.name"),
    ({"text": {"format": SCHEMA}, "tools": [TOOL]}, "contradict", "text.format"),
    ({"tools": {}}, "list", "tools"),
    ({"tools": [{}]}, "type is missing", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "names", "tools"),
    ({"tools": [TOOL, TOOL]}, "each of its own", "tools"),
    ({"tools": [{"type": "web_search"}]}, "web_search", "tools[0].type"),
    ({"tools": [{"type": "file_search", "vector_store_ids": ["x"]}]}, "file_search", "tools[0].type"),
    ({"tools": [{"type": "code_interpreter", "container": "x"}]}, "code_interpreter", "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "mcp", "tools[0].type"),
    ({"tools": [{"type": "image_generation"}]}, "image_generation", "tools[0].type"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "custom", "tools[0].type"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "defer_loading", "tools[0].defer_loading"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "required", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "web_search", "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "wether"}}, "weather", "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}},
        "list",
        "tool_choice.tools",
    ),
    ({"tool_choice": "required"}, "needs tools", "tool_choice"),
]


@pytest.mark.parametrize(("fields", "word", "field"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_refused(server: Live, fields: dict[str, Any], word: str, field: str | None) -> None:
    answer = server.ask("/v1/responses", {"model": "scripted", "input": "hi"} | fields)
    error = answer.error
    assert answer.status in (400, 404), error
    assert word in error["message"], error
    assert error["param"] == field, error


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"\xff{}", 400),
        (b'{"input": "\\ud800"}', 400),
        (b'{"temperature": NaN}', 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        (b"x" * (17 * 2**20), 413),
    ],
    ids=range(8),
)
def test_broken_bodies(server: Live, body: bytes, status: int) -> None:
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        answer = server.ask(path, body, method="POST")
        assert answer.status == status
        assert answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/responses", 405),
        ("PUT", "/v1/responses/resp_1", 405),
        ("GET", "/v1/responses/resp_1", 404),
        ("DELETE", "/v1/responses/resp_1", 404),
        ("POST", "/v1/responses/resp_1/cancel", 404),
        ("GET", "/v1/responses/resp_1/input_items", 404),
        ("GET", "/v1/responses/resp_1/output_items", 404),
        ("POST", "/v1/responses/compact", 405),
        ("GET", "/v1/responses/", 404),
    ],
)
def test_paths_and_methods(server: Live, method: str, path: str, status: int) -> None:
    answer = server.ask(path, method=method)
    assert answer.status == status
    assert answer.error["message"]


@pytest.mark.parametrize(
    ("path", "method", "field"),
    [
        ("?stream=maybe", "GET", "stream"),
        ("?stream=true", "GET", "stream"),
        ("?starting_after=3", "GET", "starting_after"),
        ("?stream=true&starting_after=-1", "GET", "starting_after"),
        ("/input_items?order=up", "GET", "order"),
        ("/input_items?limit=0", "GET", "limit"),
        ("/input_items?limit=101", "GET", "limit"),
        ("/input_items?limit=x", "GET", "limit"),
        ("/input_items?after=x", "GET", "after"),
        ("/cancel", "POST", None),
    ],
)
def test_questions_about_one_that_is_kept(server: Live, path: str, method: str, field: str | None) -> None:
    id_ = server.ask("/v1/responses", {"input": "hi"}).json["id"]
    answer = server.ask(f"/v1/responses/{id_}{path}", method=method)
    assert answer.status == 400
    assert answer.error["param"] == field


def test_content_type_key_and_queue(server: Live) -> None:
    assert server.ask("/v1/responses", b"{}", headers={"content-type": "text/plain"}).status == 415
    with live(scripted(max_jobs=0), api_keys=("secret",)) as other:
        key = {"authorization": "Bearer secret"}
        for fields in ({}, {"stream": True}, {"background": True}):
            answer = other.ask("/v1/responses", {"input": "hi", **fields}, headers=key)
            assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
        for path in ("/v1/responses", "/v1/responses/resp_1", "/v1/responses/x/y/z"):
            assert other.ask(path).status == 401
