"""Requests in DashScope's protocol that cannot be honoured: each gets its shape of error, and a sentence that helps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.server.dashscope.schema import DashScopeInput, DashScopeParameters
from tests.support.http import Answer, Live, live, scripted
from tests.support.raw_bodies import NOT_JSON, OTHER_TYPES
from tests.unit.server.test_any_json import JSON

PATH = "/api/v1/services/aigc/text-generation/generation"
EMBEDDING = "/api/v1/services/embeddings/text-embedding/text-embedding"
USER = {"role": "user", "content": "hi"}
GOOD = {"model": "scripted", "input": {"messages": [USER]}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLED = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def assert_refused(answer: Answer, word: str, code: str = "InvalidParameter", status: int = 400) -> None:
    value = answer.json
    assert set(value) == {"code", "message", "request_id"}, value
    assert (answer.status, value["code"]) == (status, code), value
    assert value["request_id"] == answer.headers["x-request-id"]
    assert word in value["message"]
    assert "\n" not in value["message"]


BODIES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "model is missing", "BadRequest.EmptyModel"),
    ({"input": {"prompt": "hi"}}, "model is missing", "BadRequest.EmptyModel"),
    ({"model": "scripted"}, "input is missing", "BadRequest.EmptyInput"),
    ({"model": "scripted", "messages": [USER]}, "input is missing", "BadRequest.EmptyInput"),
    (GOOD | {"input": {}}, "messages or prompt", "BadRequest.EmptyInput"),
    (GOOD | {"input": {"prompt": ""}}, "messages or prompt", "BadRequest.EmptyInput"),
    (GOOD | {"input": {"history": []}}, "messages or prompt", "BadRequest.EmptyInput"),
    (GOOD | {"model": 5}, "model must be a string", "InvalidParameter"),
    (GOOD | {"model": None}, "model must be a string", "InvalidParameter"),
    (GOOD | {"input": None}, "input must be an object", "InvalidParameter"),
    (GOOD | {"input": "hi"}, "input must be an object", "InvalidParameter"),
    (GOOD | {"input": [USER]}, "input must be an object", "InvalidParameter"),
    (GOOD | {"parameters": []}, "parameters must be an object", "InvalidParameter"),
    (GOOD | {"parameters": "none"}, "parameters must be an object", "InvalidParameter"),
]
INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 5}, "input.prompt must be a string"),
    ({"prompt": ["hi"]}, "input.prompt must be a string"),
    ({"prompt": "hi", "messages": [USER]}, "contradict"),
    ({"history": [], "messages": [USER]}, "contradict"),
    ({"prompt": "hi", "history": [{"user": "a"}]}, "input.history[0].bot is missing"),
    ({"prompt": "hi", "history": [["a", "b"]]}, "input.history[0] must be an object"),
    ({"prompt": "hi", "history": "a"}, "input.history must be a list"),
    ({"prompt": "hi", "customized_model_id": "x"}, "customized_model_id"),
    ({"prompt": "hi", "file_urls": ["http://x"]}, "file_urls"),
    ({"messages": []}, "input.messages is empty"),
    ({"messages": "hi"}, "input.messages must be a list"),
    ({"messages": {"role": "user"}}, "input.messages must be a list"),
    ({"messages": ["hi"]}, "input.messages[0] must be an object"),
    ({"messages": [{"content": "hi"}]}, "input.messages[0].role is missing"),
    ({"messages": [{"role": "bot", "content": "hi"}]}, "assistant"),
    ({"messages": [{"role": "attachment", "content": "hi"}]}, "input.messages[0].role"),
    ({"messages": [{"role": 1, "content": "hi"}]}, "input.messages[0].role must be a string"),
    ({"messages": [{"role": "user"}]}, "input.messages[0].content is missing"),
    ({"messages": [{"role": "user", "content": None}]}, "input.messages[0].content is missing"),
    ({"messages": [{"role": "user", "content": 7}]}, "input.messages[0].content"),
    ({"messages": [{"role": "user", "content": {"text": "hi"}}]}, "input.messages[0].content"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "input.messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"image": "http://x/y.png"}]}]},
        "'image'; this model reads text",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "text only"),
    ({"messages": [{"role": "user", "content": [{"text": "a"}, {"audio": "x"}]}]}, "content[1] is 'audio'"),
    ({"messages": [{"role": "user", "content": [{}]}]}, "'empty'"),
    ({"messages": [{"role": "tool", "content": "4"}]}, "input.messages[0] answers no call"),
    ({"messages": [{"role": "function", "content": "4"}]}, "input.messages[0].name is missing"),
    ({"messages": [{**USER, "tool_calls": [CALLED]}]}, "only assistant messages"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "function"}]}]},
        "tool_calls[0].function is missing",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALLED | {"type": "plugin"}]}]},
        "tool_calls[0].type",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "tool_calls must be a list"),
    ({"messages": [{**USER, "partial": True}]}, "input.messages[0].partial"),
    (
        {"messages": [{"role": "assistant", "content": "a", "partial": True}, USER]},
        "input.messages[0].partial",
    ),
    ({"messages": [{"role": "assistant", "content": "a", "partial": "yes"}]}, "partial must be a boolean"),
]
PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"result_format": "xml"}, "use text or message"),
    ({"result_format": 1}, "parameters.result_format must be a string"),
    ({"result_format": "text", "n": 2}, "result_format=message"),
    ({"result_format": "text", "logprobs": True}, "result_format=message"),
    ({"result_format": "text", "tools": [TOOL]}, "result_format=message"),
    ({"incremental_output": "yes"}, "parameters.incremental_output must be a boolean"),
    ({"stream": 1}, "parameters.stream must be a boolean"),
    ({"seed": "x"}, "parameters.seed must be a"),
    ({"seed": 2**64}, "parameters.seed"),
    ({"seed": 1.5}, "parameters.seed must be a"),
    ({"max_tokens": 0}, "parameters.max_tokens=0"),
    ({"max_tokens": -1}, "parameters.max_tokens=-1"),
    ({"max_tokens": "7"}, "parameters.max_tokens must be a"),
    ({"temperature": -0.1}, "parameters.temperature=-0.1"),
    ({"temperature": 1e300}, "parameters.temperature"),
    ({"temperature": "hot"}, "parameters.temperature must be a number"),
    ({"top_p": 0}, "parameters.top_p"),
    ({"top_p": 1.1}, "parameters.top_p=1.1"),
    ({"top_k": -1}, "parameters.top_k=-1"),
    ({"top_k": 2.5}, "parameters.top_k must be a"),
    ({"repetition_penalty": 0}, "parameters.repetition_penalty"),
    ({"presence_penalty": 2.1}, "parameters.presence_penalty=2.1"),
    ({"frequency_penalty": -2.1}, "parameters.frequency_penalty=-2.1"),
    ({"n": 0}, "parameters.n=0"),
    ({"n": 1000}, "parameters.n=1000"),
    ({"stop": 5}, "parameters.stop must be"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a", 5]}, "mixes texts and token ids"),
    ({"stop": [5, [5]]}, "mixes texts and token ids"),
    ({"stop": [["a"]]}, "parameters.stop"),
    ({"stop": [[]]}, "none of them empty"),
    ({"stop": [[1]] * 65}, "1 to 64"),
    ({"stop": ["a"] * 65}, "at most 64"),
    ({"stop": [-1]}, "token ids go from 0 to 258"),
    ({"stop": [[259]]}, "token ids go from 0 to 258"),
    ({"stop": [228, 186]}, "stands for no text"),
    ({"stop": [[97, 257]]}, "stands for no text"),
    ({"stop": {"a": 1}}, "parameters.stop must be"),
    ({"logprobs": 2}, "parameters.logprobs must be a boolean"),
    ({"top_logprobs": 2}, "needs logprobs=true"),
    ({"logprobs": True, "top_logprobs": 21}, "parameters.top_logprobs=21"),
    ({"tools": {}}, "parameters.tools must be a list"),
    ({"tools": [{"type": "function"}]}, "parameters.tools[0].function is missing"),
    ({"tools": [{"type": "code_interpreter"}]}, "parameters.tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "parameters.tools must have names"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "parameters.tools must have names"),
    ({"tools": [{"type": "function", "function": {}}]}, "parameters.tools[0].function.name is missing"),
    ({"tools": [{**TOOL, "function": {"name": f"f{n}"}} for n in range(129)]}, "at most 128"),
    ({"tools": [TOOL], "tool_choice": "weather"}, "auto, none, required"),
    ({"tool_choice": "required"}, "needs tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "parameters.tool_choice must be"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "wether"}}},
        "did you mean 'weather'",
    ),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "contradict"),
    ({"parallel_tool_calls": "no"}, "parameters.parallel_tool_calls must be a boolean"),
    ({"response_format": "json"}, "parameters.response_format must be an object"),
    ({"response_format": {"type": "xml"}}, "json_object or json_schema"),
    ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "json_schema.schema is missing",
    ),
    ({"enable_search": True}, "searches nothing on the web"),
    ({"enable_search": "yes"}, "parameters.enable_search must be a boolean"),
    ({"enable_thinking": True}, "does not think"),
    ({"enable_thinking": "no"}, "parameters.enable_thinking must be a boolean"),
    ({"thinking_budget": 5}, "cannot be cut short"),
    ({"enable_code_interpreter": True}, "enable_code_interpreter"),
    ({"max_input_tokens": 100}, "max_input_tokens"),
    ({"translation_options": {"target_lang": "English"}}, "translation_options"),
    ({"plugins": {"search": {}}}, "plugins"),
    ({"skill": ["x"]}, "skill"),
    ({"output_format": "model_detailed_report"}, "output_format"),
    ({"modalities": ["text", "audio"]}, "text only"),
    ({"audio": {"voice": "x"}}, "text only"),
    ({"asr_options": {}}, "text only"),
    ({"ocr_options": {}}, "text only"),
    ({"vl_high_resolution_images": True}, "text only"),
    ({"vl_enable_image_hw_output": True}, "text only"),
]
EMBEDDINGS: list[tuple[dict[str, Any], str]] = [
    ({"input": "hi"}, "input must be an object"),
    ({"input": {}}, "input.texts is missing"),
    ({"input": {"texts": "hi"}}, "input.texts must be a list"),
    ({"input": {"texts": []}}, "input.texts"),
    ({"input": {"texts": [""]}}, "none of them empty"),
    ({"input": {"texts": [1]}}, "input.texts[0] must be a string"),
    ({"input": {"texts": ["a"] * 2049}}, "1 to 2048"),
    ({"parameters": {"dimension": 64}}, "cannot be cut"),
    ({"parameters": {"output_type": "sparse"}}, "only dense"),
    ({"parameters": {"instruct": "x"}}, "instructions"),
    ({"parameters": {"text_type": "other"}}, "use query or document"),
    ({"parameters": {"text_type": 1}}, "parameters.text_type must be a string"),
]


@pytest.mark.parametrize(("body", "word", "code"), BODIES)
def test_bodies(server: Live, body: dict[str, Any], word: str, code: str) -> None:
    assert_refused(server.ask(PATH, body), word, code)


@pytest.mark.parametrize(("given", "word"), INPUTS)
def test_inputs(server: Live, given: dict[str, Any], word: str) -> None:
    assert_refused(server.ask(PATH, GOOD | {"input": given}), word)


@pytest.mark.parametrize("header", [{}, {"X-DashScope-SSE": "enable"}])
@pytest.mark.parametrize(("given", "word"), PARAMETERS)
def test_parameters(server: Live, given: dict[str, Any], word: str, header: dict[str, str]) -> None:
    assert_refused(server.ask(PATH, GOOD | {"parameters": given}, headers=header), word)


@pytest.mark.parametrize(("given", "word"), EMBEDDINGS)
def test_vectors(server: Live, given: dict[str, Any], word: str) -> None:
    body = {"model": "scripted", "input": {"texts": ["a"]}} | given
    assert_refused(server.ask(EMBEDDING, body), word)


@pytest.mark.parametrize("path", [PATH, EMBEDDING])
@pytest.mark.parametrize("data", NOT_JSON)
def test_what_is_no_json(server: Live, path: str, data: bytes) -> None:
    assert_refused(server.ask(path, data), "")


@pytest.mark.parametrize("path", [PATH, EMBEDDING])
@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_types(server: Live, path: str, kind: str) -> None:
    assert_refused(server.ask(path, b"{}", headers={"content-type": kind}), "application/json", status=415)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("X-DashScope-Async", "enable", "in the background"),
        ("X-DashScope-Plugin", '{"search": {}}', "no plugins"),
        ("X-DashScope-DataInspection", '{"input":"cip"}', "not inspected"),
        ("X-DashScope-EncryptionKey", "{}", "not decrypted"),
    ],
)
def test_headers(server: Live, name: str, value: str, word: str) -> None:
    assert_refused(server.ask(PATH, GOOD, headers={name: value}), word, "AccessDenied", 403)


def test_what_the_header_of_streams_may_say(server: Live) -> None:
    assert_refused(server.ask(PATH, GOOD, headers={"X-DashScope-SSE": "true"}), "enable or disable")


@pytest.mark.parametrize(
    ("path", "method", "code", "status"),
    [
        (PATH, "GET", "UnsupportedOperation", 405),
        (PATH, "DELETE", "UnsupportedOperation", 405),
        (f"{PATH}/", "POST", "InvalidURL", 404),
        ("/api/v1/", "POST", "InvalidURL", 404),
        ("/api/v1/services/aigc/multimodal-generation/generation", "POST", "InvalidURL", 404),
        ("/api/v1/services/aigc/text-generation/generations", "POST", "InvalidURL", 404),
        ("/api/v1/tasks/5", "GET", "InvalidURL", 404),
    ],
)
def test_paths(server: Live, path: str, method: str, code: str, status: int) -> None:
    body = GOOD if method == "POST" else None
    assert_refused(server.ask(path, body, method=method), "", code, status)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Live]:
    with live(scripted("Hi"), api_keys=("right",), max_body_bytes=2000) as running:
        yield running


@pytest.mark.parametrize("key", [None, "wrong", ""])
def test_keys(guarded: Live, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    for path in (PATH, EMBEDDING, "/api/v1/nothing"):
        assert_refused(guarded.ask(path, GOOD, headers=headers), "API key", "InvalidApiKey", 401)


def test_a_large_body(guarded: Live) -> None:
    body = GOOD | {"input": {"prompt": "x" * 3000}}
    answer = guarded.ask(PATH, body, headers={"Authorization": "Bearer right"})
    assert_refused(answer, "larger than", "BadRequest.TooLarge", 413)


@pytest.mark.parametrize("path", [PATH, EMBEDDING])
def test_models_that_are_not_served(server: Live, path: str) -> None:
    body = {"model": "qwen-max", "input": {"prompt": "hi", "texts": ["a"]}}
    assert_refused(server.ask(path, body), "scripted", "ModelNotFound", 404)


def fields(model: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from([*model.model_fields]), JSON, max_size=3)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_input=fields(DashScopeInput), parameters=fields(DashScopeParameters))
def test_any_json(server: Live, given_input: dict[str, Any], parameters: dict[str, Any]) -> None:
    body = {"model": "scripted", "input": {"prompt": "a"} | given_input, "parameters": parameters}
    answer = server.ask(PATH, body)
    if answer.status != 200:
        assert answer.status == 400, answer.body
        assert set(answer.json) == {"code", "message", "request_id"}
