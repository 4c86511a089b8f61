"""Ollama's protocol: each request that cannot be honoured gets that protocol's error, and never a 5xx."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.http import Answer, Live, live, scripted
from tests.support.raw_bodies import NOT_JSON, OTHER_TYPES

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather"}}
PATHS = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show")
# (fields over those of a good request, a telling word of the sentence)
BOTH: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "string"),
    ({"model": ""}, "at least 1"),
    ({"model": 5}, "string"),
    ({"stream": "no"}, "boolean"),
    ({"format": "xml"}, "json"),
    ({"format": 5}, "string"),
    ({"format": ["json"]}, "string"),
    ({"options": []}, "object"),
    ({"options": "temperature"}, "object"),
    ({"think": "deeply"}, "high"),
    ({"think": 5}, "boolean"),
    ({"keep_alive": []}, "string"),
    ({"keep_alive": True}, "string"),
    ({"logprobs": 3}, "boolean"),
    ({"logprobs": True, "top_logprobs": 21}, "20"),
    ({"logprobs": True, "top_logprobs": -1}, "20"),
    ({"top_logprobs": 2}, "logprobs=true"),
    ({"top_logprobs": "x"}, "integer"),
    ({"images": ["aGk="]}, "text only"),
    ({"suffix": "end"}, "suffix"),
    ({"template": "{{ .Prompt }}"}, "template"),
    ({"shift": True}, "done_reason"),
    ({"width": 512}, "pictures"),
    ({"steps": 5}, "pictures"),
    ({"_debug_render_only": True}, "not shown"),
]
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"num_predict": 0}, "num_predict=0"),
    ({"num_predict": -3}, "num_predict=-3"),
    ({"num_predict": "x"}, "integer"),
    ({"num_ctx": 4096}, "2048"),
    ({"num_ctx": 0}, "2048"),
    ({"num_ctx": -1}, "2048"),
    ({"num_ctx": "x"}, "integer"),
    ({"temperature": -1}, "options.temperature"),
    ({"temperature": "hot"}, "number"),
    ({"temperature": True}, "number"),
    ({"top_k": -2}, "options.top_k"),
    ({"top_k": 1.5}, "integer"),
    ({"top_p": 0}, "options.top_p"),
    ({"top_p": 2}, "options.top_p"),
    ({"min_p": 2}, "options.min_p"),
    ({"seed": 2**70}, "64 bits"),
    ({"seed": "x"}, "integer"),
    ({"stop": 5}, "string"),
    ({"stop": [5]}, "string"),
    ({"stop": [""]}, "options.stop"),
    ({"stop": ["x"] * 65}, "64"),
    ({"repeat_penalty": 0}, "options.repeat_penalty"),
    ({"repeat_penalty": "x"}, "number"),
    ({"presence_penalty": 3}, "options.presence_penalty"),
    ({"frequency_penalty": -3}, "options.frequency_penalty"),
    ({"repeat_last_n": 64, "repeat_penalty": 1.1}, "whole text"),
    ({"repeat_last_n": 64, "presence_penalty": 1.0}, "whole text"),
    ({"repeat_last_n": "x"}, "integer"),
    ({"typical_p": 0.7}, "typical"),
    ({"tfs_z": 0.5}, "tail-free"),
    ({"mirostat": 1}, "mirostat"),
    ({"penalize_newline": False}, "exceptions"),
]
CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": "hi"}, "list"),
    ({"messages": [5]}, "object"),
    ({"messages": [{"content": "hi"}]}, "missing"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "assistant"),
    ({"messages": [{"role": "user"}]}, "missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "string"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "string"),
    ({"messages": [USER | {"images": ["aGk="]}]}, "text only"),
    ({"messages": [USER | {"tool_calls": [{"function": {"name": "f"}}]}]}, "assistant"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "missing"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
        "object",
    ),
    ({"messages": [{"role": "tool", "content": "4"}]}, "answers no call"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "2048"),
    ({"tools": {}}, "list"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "function"),
    ({"tools": [{"type": "function"}]}, "missing"),
    ({"tools": [{"function": {}}]}, "missing"),
    ({"tools": [{"function": {"name": ""}}]}, "names"),
    ({"tools": [TOOL, TOOL]}, "its own"),
    ({"tools": [TOOL] * 129}, "128"),
    ({"tools": [{"function": {"name": "f", "parameters": "x"}}]}, "object"),
    ({"tools": [TOOL], "format": "json"}, "contradict"),
    ({"truncate": "x"}, "boolean"),
]
GENERATE: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 5}, "string"),
    ({"prompt": ["a"]}, "string"),
    ({"prompt": "x" * 5000}, "2048"),
    ({"system": 5}, "string"),
    ({"raw": "x"}, "boolean"),
    ({"raw": True, "system": "x"}, "system"),
    ({"raw": True, "context": [5]}, "context"),
    ({"raw": True, "think": True}, "think"),
    ({"context": "x"}, "list"),
    ({"context": [-1]}, "258"),
    ({"context": [999]}, "258"),
    ({"context": ["a"]}, "integer"),
    ({"truncate": True}, "truncated"),
]
OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("/api/embed", {"input": None}, "string"),
    ("/api/embed", {"input": 5}, "string"),
    ("/api/embed", {"input": [5]}, "string"),
    ("/api/embed", {"input": ["a", ""]}, "empty"),
    ("/api/embed", {"input": "a", "dimensions": 8}, "dimensions"),
    ("/api/embed", {"input": "a", "truncate": "x"}, "boolean"),
    ("/api/embeddings", {"prompt": 5}, "string"),
    ("/api/show", {"model": None}, "missing"),
    ("/api/show", {"model": 5}, "string"),
]


def check(answer: Answer, status: int, word: str) -> None:
    assert set(answer.json) == {"error"}, answer.json
    assert answer.status == status, answer.json
    assert word.lower() in answer.json["error"].lower(), answer.json


def ask(server: Live, path: str, **fields: Any) -> Answer:
    good: dict[str, Any] = {"model": "scripted"}
    if path == "/api/chat":
        good["messages"] = [USER]
    elif path == "/api/generate":
        good["prompt"] = "hi"
    return server.ask(path, good | fields)


@pytest.mark.parametrize(("fields", "word"), BOTH, ids=lambda v: json.dumps(v)[:60])
def test_fields_of_both(server: Live, fields: dict[str, Any], word: str) -> None:
    for path in ("/api/chat", "/api/generate"):
        check(ask(server, path, **fields), 400, word)


@pytest.mark.parametrize(("options", "word"), OPTIONS, ids=lambda v: json.dumps(v)[:60])
def test_options(server: Live, options: dict[str, Any], word: str) -> None:
    for path in ("/api/chat", "/api/generate"):
        check(ask(server, path, options=options), 400, word)


@pytest.mark.parametrize(("fields", "word"), CHAT, ids=lambda v: json.dumps(v)[:60])
def test_chats(server: Live, fields: dict[str, Any], word: str) -> None:
    check(ask(server, "/api/chat", **fields), 400, word)


@pytest.mark.parametrize(("fields", "word"), GENERATE, ids=lambda v: json.dumps(v)[:60])
def test_prompts(server: Live, fields: dict[str, Any], word: str) -> None:
    check(ask(server, "/api/generate", **fields), 400, word)


@pytest.mark.parametrize(("path", "fields", "word"), OTHERS, ids=lambda v: json.dumps(v)[:60])
def test_other_endpoints(server: Live, path: str, fields: dict[str, Any], word: str) -> None:
    check(ask(server, path, **fields), 400, word)


@pytest.mark.parametrize("path", PATHS)
def test_models_that_are_not_there(server: Live, path: str) -> None:
    check(ask(server, path, model="llama3", input="a"), 404, "'llama3' not found")


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda v: str(v)[:30])
def test_bodies_that_are_no_object_in_json(server: Live, body: bytes) -> None:
    for path in PATHS:
        check(server.ask(path, body), 400, "body")


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_content_types(server: Live, kind: str) -> None:
    # a page could send text without being asked whether it may; other clients call JSON so as well
    headers = {"content-type": kind} | ({"origin": "null"} if kind == "text/plain" else {})
    for path in PATHS:
        check(server.ask(path, {"model": "scripted"}, headers=headers), 415, "application/json")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", f"/api/{name}") for name in ("pull", "push", "create", "copy")] + [("DELETE", "/api/delete")],
)
def test_models_are_not_changed(server: Live, method: str, path: str) -> None:
    for body in ({"model": "scripted"}, b"{"):
        check(server.ask(path, body, method=method), 403, "not changed")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/chat", 405),
        ("DELETE", "/api/chat", 405),
        ("POST", "/api/tags", 405),
        ("POST", "/api/delete", 405),
        ("POST", "/api/blobs/sha256:00", 404),
        ("GET", "/api/nothing", 404),
        ("POST", "/api/", 404),
        ("GET", "/api/tags/", 404),
    ],
)
def test_paths_and_methods(server: Live, method: str, path: str, status: int) -> None:
    check(server.ask(path, method=method), status, "")


def test_missing_keys_and_bodies_that_are_too_large() -> None:
    with live(scripted("x"), max_body_bytes=100, api_keys=("secret",)) as server:
        for path in PATHS:
            check(ask(server, path), 401, "key")
        headers = {"authorization": "Bearer secret"}
        check(server.ask("/api/generate", {"prompt": "x" * 200}, headers=headers), 413, "larger")
