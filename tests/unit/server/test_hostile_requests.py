"""Requests that cannot be honoured: each is refused with a sentence that helps, and names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.http import Answer, Live, live, scripted

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}

# (fields over those of a good request, a telling word of the sentence, the field at fault)
CHAT: list[tuple[dict[str, Any], str, str | None]] = [
    ({"messages": None}, "list", "messages"),
    ({"messages": []}, "at least 1", "messages"),
    ({"messages": "hi"}, "list", "messages"),
    ({"messages": ["hi"]}, "object", "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "missing", "messages[0].role"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "assistant", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing", "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "missing", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "string", "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"text": "hi"}}]}, "string", "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "text only",
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "text only",
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "missing", "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "missing", "messages[0].content[0].type"),
    ({"messages": [{"role": "tool", "content": "4"}]}, "tool_call_id", "messages[0].tool_call_id"),
    ({"messages": [{"role": "function", "content": "4"}]}, "name", "messages[0].name"),
    (
        {"messages": [{**USER, "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]},
        "assistant",
        "messages[0].tool_calls",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
        "missing",
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"type": "custom", "function": {"name": "f", "arguments": ""}}],
                }
            ]
        },
        "function",
        "messages[0].tool_calls[0].type",
    ),
    (
        {"messages": [{"role": "assistant", "content": "a", "audio": {"id": "x"}}]},
        "audio",
        "messages[0].audio",
    ),
    ({"model": "gpt-9"}, "scripted", "model"),
    ({"model": 5}, "string", "model"),
    ({"temperature": -1}, "temperature", "temperature"),
    ({"temperature": "hot"}, "number", "temperature"),
    ({"temperature": True}, "number", "temperature"),
    ({"top_p": 0}, "top_p", "top_p"),
    ({"top_p": 1.5}, "top_p", "top_p"),
    ({"top_k": -2}, "top_k", "top_k"),
    ({"min_p": 2}, "min_p", "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty"),
    ({"frequency_penalty": 3}, "-2", "frequency_penalty"),
    ({"presence_penalty": -3}, "-2", "presence_penalty"),
    ({"n": 0}, "from 1", "n"),
    ({"n": 1000}, "128", "n"),
    ({"n": 1.5}, "integer", "n"),
    ({"max_tokens": 0}, "from 1", "max_tokens"),
    ({"max_tokens": -5}, "from 1", "max_tokens"),
    ({"max_tokens": "many"}, "integer", "max_tokens"),
    ({"max_completion_tokens": 0}, "from 1", "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "contradict", "max_completion_tokens"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "min_tokens"),
    ({"seed": 2**70}, "64 bits", "seed"),
    ({"seed": "x"}, "integer", "seed"),
    ({"stop": ""}, "non-empty", "stop"),
    ({"stop": 5}, "string or", "stop"),
    ({"stop": ["a", 5]}, "string", "stop[1]"),
    ({"stop": ["x"] * 65}, "64", "stop"),
    ({"stop": "x" * 1001}, "1000", "stop"),
    ({"logit_bias": {"cat": 1}}, "token ids", "logit_bias"),
    ({"logit_bias": {"5": 101}}, "100", "logit_bias"),
    ({"logit_bias": {"999": 1}}, "258", "logit_bias"),
    ({"logit_bias": [1]}, "object", "logit_bias"),
    ({"stop_token_ids": [999]}, "258", "stop_token_ids"),
    ({"allowed_token_ids": []}, "empty", "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "258", "allowed_token_ids"),
    ({"bad_words": [""]}, "bad word", "bad_words"),
    ({"logprobs": 3}, "boolean", "logprobs"),
    ({"top_logprobs": 3}, "logprobs=true", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "20", "top_logprobs"),
    ({"prompt_logprobs": 21}, "20", "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "streamed", "prompt_logprobs"),
    ({"stream": "yes"}, "boolean", "stream"),
    ({"stream_options": {"include_usage": True}}, "stream=true", "stream_options"),
    ({"response_format": "json"}, "object", "response_format"),
    ({"response_format": {}}, "missing", "response_format.type"),
    ({"response_format": {"type": "xml"}}, "json_schema", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "missing", "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "missing",
        "response_format.json_schema.name",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
        "pattern",
        "response_format.json_schema.name",
    ),
    ({"response_format": SCHEMA, "guided_regex": "a+"}, "contradict", "response_format"),
    ({"response_format": SCHEMA, "tools": [TOOL]}, "contradict", "response_format"),
    ({"guided_choice": []}, "choice", None),
    ({"guided_choice": ["a", 1]}, "string", "guided_choice[1]"),
    ({"guided_regex": ""}, "regex", None),
    ({"structured_outputs": {}}, "exactly one", "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "exactly one", "structured_outputs"),
    ({"tools": [{"type": "custom"}]}, "function", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "missing", "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "missing", "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "names", "tools"),
    ({"tools": [TOOL, TOOL]}, "its own", "tools"),
    ({"tools": [TOOL] * 129}, "128", "tools"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
        "object",
        "tools[0].function.parameters",
    ),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "required", "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "wether"}}},
        "did you mean",
        "tool_choice",
    ),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "NAME", "tool_choice"),
    ({"tool_choice": "required"}, "tools", "tool_choice"),
    ({"functions": [{"name": "f"}], "tools": [TOOL]}, "only one", "functions"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "not among", "function_call"),
    ({"functions": [{"name": "f"}], "function_call": "must"}, "auto", "function_call"),
    ({"audio": {"voice": "alloy"}}, "text only", "audio"),
    ({"modalities": ["text", "audio"]}, "text only", "modalities"),
    ({"web_search_options": {}}, "web search", "web_search_options"),
    ({"store": True}, "not stored", "store"),
    ({"service_tier": "flex"}, "tier", "service_tier"),
    ({"use_beam_search": True}, "beam", "use_beam_search"),
    ({"chat_template": "{{ x }}"}, "template", "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "messages", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"no_such_variable": 1}}, "no_such_variable", None),
    ({"reasoning_effort": "extreme"}, "medium", "reasoning_effort"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "contradict", "continue_final_message"),
    ({"continue_final_message": True}, "assistant", None),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "2048", None),
]
COMPLETIONS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": None}, "must be", "prompt"),
    ({"prompt": ""}, "empty", "prompt"),
    ({"prompt": []}, "empty", "prompt"),
    ({"prompt": [""]}, "empty", "prompt"),
    ({"prompt": [[]]}, "empty", "prompt"),
    ({"prompt": 5}, "string", "prompt"),
    ({"prompt": {"text": "a"}}, "string", "prompt"),
    ({"prompt": ["a", 5]}, "must be", "prompt[1]"),
    ({"prompt": ["a"] * 2049}, "2048", "prompt"),
    ({"suffix": "end"}, "suffix", "suffix"),
    ({"best_of": 3}, "best_of", "best_of"),
    ({"max_tokens": 0}, "echo", "max_tokens"),
    ({"logprobs": 21}, "20", "logprobs"),
    ({"logprobs": True}, "integer", "logprobs"),
    ({"echo": "yes"}, "boolean", "echo"),
    ({"model": "nope"}, "scripted", "model"),
]
OTHERS: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("/v1/embeddings", {}, "missing", "input"),
    ("/v1/embeddings", {"input": ""}, "empty", "input"),
    ("/v1/embeddings", {"input": "a", "dimensions": 8}, "dimensions", "dimensions"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "base64", "encoding_format"),
    ("/v1/embeddings", {"input": [5000]}, "258", "input"),
    ("/tokenize", {}, "either", "prompt"),
    ("/tokenize", {"prompt": "a", "messages": [USER]}, "either", "prompt"),
    ("/tokenize", {"messages": []}, "empty", "messages"),
    ("/detokenize", {"tokens": "a"}, "list", "tokens"),
    ("/detokenize", {"tokens": [9999]}, "vocabulary", None),
    ("/v1/unload_lora_adapter", {}, "missing", "lora_name"),
]


def _check(answer: Answer, word: str, field: str | None) -> None:
    error = answer.error
    assert answer.status in (400, 404), error
    assert word.lower() in error["message"].lower(), error
    assert error["param"] == field, error


@pytest.mark.parametrize(("fields", "word", "field"), CHAT, ids=lambda v: json.dumps(v)[:60])
def test_chat(server: Live, fields: dict[str, Any], word: str, field: str | None) -> None:
    _check(server.chat(**fields), word, field)


@pytest.mark.parametrize(("fields", "word", "field"), COMPLETIONS, ids=lambda v: json.dumps(v)[:60])
def test_completions(server: Live, fields: dict[str, Any], word: str, field: str | None) -> None:
    _check(server.complete(**fields), word, field)


@pytest.mark.parametrize(("path", "body", "word", "field"), OTHERS, ids=lambda v: json.dumps(v)[:60])
def test_others(server: Live, path: str, body: dict[str, Any], word: str, field: str | None) -> None:
    _check(server.ask(path, body), word, field)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not json"),
        (b"{", "column"),
        (b'{"a": 1,}', "column 9"),
        (b"\xff{}", "byte 0"),
        (b'{"messages": "\xc3("}', "byte 14"),
        (b"[]", "a list"),
        (b"5", "a number"),
        (b"null", "null"),
        (b'{"stop": "\\ud83d"}', "half"),
        (b'{"\\udc00": 1}', "half"),
        (b'{"temperature": NaN}', "nan"),
        (b'{"temperature": Infinity}', "infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "number"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "levels"),
        (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "levels"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bodies_that_are_not_an_object_in_json(server: Live, body: bytes, word: str) -> None:
    answer = server.ask("/v1/chat/completions", body)
    assert answer.status == 400
    assert word in answer.error["message"].lower()
    assert answer.error["code"] == "invalid_json"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_other_content_types(server: Live, kind: str) -> None:
    answer = server.ask("/v1/chat/completions", {"messages": [USER]}, headers={"content-type": kind})
    assert answer.status == 415
    assert "application/json" in answer.error["message"]


def test_json_with_a_charset_or_a_byte_order_mark_is_read(server: Live) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"messages": [USER]}).encode()
    headers = {"content-type": "application/json; charset=utf-8"}
    assert server.ask("/v1/chat/completions", body, headers=headers).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models", 405, "GET"),
        ("GET", "/v1/model", 404, "did you mean"),
        ("GET", "/v1/models/", 404, "not served"),
        ("GET", "/docs", 404, "nothing"),
        ("POST", "/v1/chat/completions/", 404, "nothing"),
        ("GET", "/%00%0aevil", 404, "nothing"),
        ("GET", "/v1/models/a/b", 404, "not served"),
    ],
)
def test_paths_and_methods(server: Live, method: str, path: str, status: int, word: str) -> None:
    answer = server.ask(path, b"{}" if method == "POST" else None, method=method)
    assert answer.status == status
    assert word in answer.error["message"]


def test_a_long_prompt_has_its_own_code(server: Live) -> None:
    assert server.complete("x" * 3000).error["code"] == "context_length_exceeded"


def test_a_huge_list_of_the_wrong_kind_is_refused_quickly(server: Live) -> None:
    answer = server.complete([None] * 500_000)
    assert answer.status == 400
    assert len(answer.body) < 1000


def test_surprises_keep_their_details_to_themselves() -> None:
    with live(scripted([RuntimeError("secret detail")])) as running:
        answer = running.chat()
        assert answer.status == 500
        assert "secret" not in answer.body.decode()
        assert answer.error["type"] == "server_error"
