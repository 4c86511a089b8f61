"""text-generation-inference: each request that cannot be honoured gets that protocol's error, and never a 5xx."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.http import Answer, Live, live, scripted
from tests.support.raw_bodies import NOT_JSON, OTHER_TYPES

PATHS = ("/generate", "/generate_stream", "/")
# (fields over those of a good request, a telling word of the sentence)
BODIES: list[tuple[dict[str, Any], str]] = [
    ({"inputs": None}, "string"),
    ({"inputs": ""}, "at least 1"),
    ({"inputs": 5}, "string"),
    ({"inputs": ["a"]}, "string"),
    ({"inputs": {"text": "a"}}, "string"),
    ({"inputs": "x" * 3000}, "2048"),
    ({"stream": "yes"}, "boolean"),
    ({"stream": 1}, "boolean"),
    ({"add_special_tokens": "no"}, "boolean"),
    ({"parameters": []}, "object"),
    ({"parameters": "temperature"}, "object"),
]
PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ({"max_new_tokens": -5}, "from 1"),
    ({"max_new_tokens": "many"}, "integer"),
    ({"max_new_tokens": 1.5}, "integer"),
    ({"temperature": -1}, "parameters.temperature"),
    ({"temperature": "hot"}, "number"),
    ({"temperature": True}, "number"),
    ({"temperature": 1e400}, "json"),
    ({"top_k": -1}, "parameters.top_k"),
    ({"top_k": 2.5}, "integer"),
    ({"top_p": 0}, "parameters.top_p"),
    ({"top_p": 1.5, "do_sample": True}, "parameters.top_p"),
    ({"top_p": "a"}, "number"),
    ({"typical_p": 0.5}, "typical"),
    ({"typical_p": "x"}, "number"),
    ({"repetition_penalty": 0}, "parameters.repetition_penalty"),
    ({"repetition_penalty": -1}, "parameters.repetition_penalty"),
    ({"frequency_penalty": 3}, "parameters.frequency_penalty"),
    ({"do_sample": "true"}, "boolean"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 2**64}, "seed="),
    ({"seed": "x"}, "integer"),
    ({"stop": "text"}, "list"),
    ({"stop": [5]}, "string"),
    ({"stop": [""]}, "parameters.stop"),
    ({"stop": ["x"] * 65}, "64"),
    ({"stop": ["x" * 1001]}, "1000"),
    ({"truncate": 0}, "truncate=0"),
    ({"truncate": -3}, "from 1"),
    ({"truncate": 2048}, "2047"),
    ({"truncate": "all"}, "integer"),
    ({"watermark": True}, "watermark"),
    ({"watermark": "yes"}, "boolean"),
    ({"details": "yes"}, "boolean"),
    ({"decoder_input_details": 1}, "boolean"),
    ({"return_full_text": "a"}, "boolean"),
    ({"top_n_tokens": 21}, "20"),
    ({"top_n_tokens": -1}, "top_n_tokens"),
    ({"top_n_tokens": "x"}, "integer"),
    ({"best_of": 0}, "best_of=0"),
    ({"best_of": 129, "do_sample": True}, "128"),
    ({"best_of": 2}, "do_sample"),
    ({"best_of": 2, "do_sample": True, "seed": 4}, "seed"),
    ({"best_of": "x"}, "integer"),
    ({"grammar": "json"}, "object"),
    ({"grammar": {}}, "missing"),
    ({"grammar": {"type": "xml", "value": "x"}}, "json_schema"),
    ({"grammar": {"type": "regex"}}, "regex"),
    ({"grammar": {"type": "regex", "value": 5}}, "regex"),
    ({"grammar": {"type": "json", "value": 5}}, "schema"),
    ({"grammar": {"type": "json", "value": "{"}}, "no json"),
    ({"grammar": {"type": "json", "value": "[" * 100_000}}, "no json"),
    ({"grammar": {"type": "json_schema", "value": {"name": "x"}}}, "schema"),
    ({"grammar": {"type": "json_schema", "value": "x"}}, "schema"),
    ({"adapter_id": "nobody"}, "not served"),
    ({"adapter_id": 5}, "string"),
]


def check(answer: Answer, status: int, word: str, kind: str = "validation") -> None:
    value = answer.json
    assert set(value) == {"error", "error_type"}, value
    assert answer.status == status, value
    assert value["error_type"] == kind
    assert word.lower() in value["error"].lower(), value


@pytest.mark.parametrize(("fields", "word"), BODIES, ids=lambda v: json.dumps(v)[:60])
def test_bodies(server: Live, fields: dict[str, Any], word: str) -> None:
    for path in PATHS:
        check(server.ask(path, {"inputs": "hi"} | fields), 422, word)


@pytest.mark.parametrize(("parameters", "word"), PARAMETERS, ids=lambda v: json.dumps(v)[:60])
def test_parameters(server: Live, parameters: dict[str, Any], word: str) -> None:
    for path in PATHS:
        body = json.dumps({"inputs": "hi", "parameters": parameters}).encode()
        check(server.ask(path, body), 422, word)


@pytest.mark.parametrize("fields", [{"decoder_input_details": True}, {"best_of": 2, "do_sample": True}])
def test_what_cannot_be_streamed(server: Live, fields: dict[str, Any]) -> None:
    check(server.ask("/generate_stream", {"inputs": "hi", "parameters": fields}), 422, "stream")


def test_a_stream_that_must_not_be_one(server: Live) -> None:
    check(server.ask("/generate_stream", {"inputs": "hi", "stream": False}), 422, "/generate")


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda v: str(v)[:30])
def test_bodies_that_are_no_object_in_json(server: Live, body: bytes) -> None:
    for path in PATHS:
        check(server.ask(path, body), 422, "body")


@pytest.mark.parametrize("kind", [*OTHER_TYPES, "", "application/x-www-form-urlencoded"])
def test_other_content_types(server: Live, kind: str) -> None:
    for path in PATHS:
        check(server.ask(path, {"inputs": "hi"}, headers={"content-type": kind}), 415, "application/json")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/generate"), ("GET", "/generate_stream"), ("PUT", "/generate"), ("POST", "/info")],
)
def test_other_methods(server: Live, method: str, path: str) -> None:
    check(server.ask(path, method=method), 405, method, "method_not_allowed")


def test_bodies_that_are_too_large_and_missing_keys() -> None:
    with live(scripted("x"), max_body_bytes=100, api_keys=("secret",)) as server:
        for path in PATHS:
            check(server.ask(path, {"inputs": "hi"}), 401, "key", "unauthorized")
            headers = {"authorization": "Bearer secret"}
            check(server.ask(path, {"inputs": "x" * 200}, headers=headers), 413, "larger")
