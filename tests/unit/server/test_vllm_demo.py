"""vLLM's demo server: sampling keys as the engine gets them, whole texts again and again, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.core.errors import NumericsError
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.http import Answer, Live, live, scripted
from tests.support.raw_bodies import NOT_JSON, OTHER_TYPES


@pytest.fixture(scope="module")
def demo() -> Iterator[Live]:
    """Speaks nothing else, so that errors about bodies nobody can read are in its words, too."""
    with live(scripted("Hello, world!"), protocols=("vllm-demo",)) as server:
        yield server


def generate(server: Live, path: str = "/generate", **fields: Any) -> Answer:
    return server.ask(path, {"prompt": "hi"} | fields)


def chunks(answer: Answer, delimiter: bytes = b"\0") -> list[Any]:
    """The values of a stream, read as its clients do."""
    *found, last = answer.body.split(delimiter)
    assert last == b""
    return [json.loads(each.decode("utf-8")) for each in found]


def test_texts_begin_with_the_prompt(server: Live) -> None:
    assert generate(server, max_tokens=5, n=2).json == {"text": ["hiHello", "hiHello"]}
    assert generate(server).json == {"text": ["hiHello, world!"]}
    with live(scripted("x" * 99)) as other:
        assert generate(other).json == {"text": ["hi" + "x" * 16]}


def test_settings_are_off_unless_given(server: Live) -> None:
    generate(server)
    found = server.backend.requests[-1].params
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (1.0, 0, 1.0, 0.0)
    assert (found.repetition_penalty, found.frequency_penalty, found.presence_penalty) == (1.0, 0.0, 0.0)


def test_settings_reach_the_engine(server: Live) -> None:
    given: dict[str, Any] = {
        "n": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "max_tokens": 9,
        "min_tokens": 2,
        "seed": 4,
        "stop": "wor",
        "stop_token_ids": [5],
        "bad_words": ["no"],
        "logit_bias": {"5": 1.5},
        "allowed_token_ids": [72, 101],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    answer = generate(server, **given, use_beam_search=False, length_penalty=1.0, early_stopping=False)
    assert answer.status == 200, answer.body
    found = server.backend.requests[-1].params
    for name in ("n", "temperature", "top_p", "min_p", "max_tokens", "min_tokens", "seed", "ignore_eos"):
        assert getattr(found, name) == given[name]
    assert (found.top_k, found.stop, found.stop_token_ids, found.bad_words) == (0, ("wor",), (5,), ("no",))
    assert (found.logit_bias, found.allowed_token_ids) == ({5: 1.5}, (72, 101))
    assert (found.skip_special_tokens, found.include_stop) == (False, True)


def test_fields_without_effect_are_named(server: Live) -> None:
    answer = generate(server, logprobs=2, prefix_pos=3, use_beam_search=False)
    assert answer.headers["x-ignored-fields"] == "logprobs, prefix_pos, use_beam_search"


def test_the_likeliest_of_more_are_shown() -> None:
    class Uneven(ScriptedBackend):
        """Says "a" with certainty and all else not."""

        def _sample(self, index: int, sample: int, request: Any, reply: Any) -> Any:
            for delta in super()._sample(index, sample, request, reply):
                likely = [
                    dataclasses.replace(p, logprob=-0.1 if p.token_id == 97 else -3.0) for p in delta.logprobs
                ]
                yield dataclasses.replace(delta, logprobs=tuple(likely))

    with live(Uneven(["xx", "aa", "ax"], tokenizer=ByteTokenizer())) as server:
        assert generate(server, n=2, best_of=3).json == {"text": ["hiaa", "hiax"]}


@pytest.mark.parametrize(
    ("query", "delimiter", "kind"),
    [
        ("", b"\0", "application/octet-stream"),
        ("?delimiter=nul", b"\0", "application/octet-stream"),
        ("?delimiter=newline", b"\n", "application/x-ndjson"),
    ],
)
def test_a_stream_says_it_all_each_time(query: str, delimiter: bytes, kind: str) -> None:
    with live(scripted("Hello, world!", delay=0.03)) as server:  # so that not all comes at once
        answer = generate(server, "/generate" + query, stream=True, n=2)
    assert answer.headers["content-type"] == kind
    found = chunks(answer, delimiter)
    assert found[-1] == {"text": ["hiHello, world!"] * 2}
    for earlier, later in itertools.pairwise(found):
        pairs = zip(earlier["text"], later["text"], strict=True)
        assert all(b.startswith(a) for a, b in pairs)
    assert len(found) > 1


def test_an_error_ends_a_stream() -> None:
    with live(scripted(["He", NumericsError("logits hold NaN")])) as server:
        found = chunks(generate(server, stream=True))
    assert found == [{"text": ["hiHe"]}, {"detail": "logits hold NaN"}]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "string"),
    ({"prompt": ""}, "at least 1"),
    ({"prompt": 5}, "string"),
    ({"prompt": ["a"]}, "string"),
    ({"prompt": "x" * 3000}, "2048"),
    ({"stream": "True"}, "boolean"),
    ({"stream": 1}, "boolean"),
    ({"n": 0}, "n=0"),
    ({"n": 129}, "128"),
    ({"n": "two"}, "integer"),
    ({"n": 1.5}, "integer"),
    ({"best_of": 0}, "less than n"),
    ({"n": 3, "best_of": 2}, "less than n"),
    ({"best_of": 129}, "best_of=129"),
    ({"best_of": 3, "stream": True}, "streamed"),
    ({"best_of": "x"}, "integer"),
    ({"max_tokens": 0}, "from 1"),
    ({"max_tokens": -1}, "from 1"),
    ({"max_tokens": "x"}, "integer"),
    ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "number"),
    ({"temperature": False}, "number"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 2}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": "x"}, "integer"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 5}, "presence_penalty"),
    ({"frequency_penalty": -5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**70}, "64 bits"),
    ({"seed": "x"}, "integer"),
    ({"stop": 5}, "string"),
    ({"stop": ["a", 5]}, "string"),
    ({"stop": ""}, "non-empty"),
    ({"stop": ["x"] * 65}, "64"),
    ({"stop_token_ids": [999]}, "258"),
    ({"stop_token_ids": [-1]}, "258"),
    ({"stop_token_ids": "x"}, "list"),
    ({"allowed_token_ids": []}, "empty"),
    ({"allowed_token_ids": [999]}, "258"),
    ({"bad_words": [""]}, "bad word"),
    ({"bad_words": "x"}, "list"),
    ({"logit_bias": {"cat": 1}}, "token ids"),
    ({"logit_bias": {"5": 101}}, "100"),
    ({"logit_bias": [1]}, "object"),
    ({"ignore_eos": "x"}, "boolean"),
    ({"skip_special_tokens": 1}, "boolean"),
    ({"include_stop_str_in_output": "x"}, "boolean"),
    ({"use_beam_search": True}, "beam"),
    ({"use_beam_search": "yes"}, "beam"),
    ({"length_penalty": 0.5}, "beam"),
    ({"early_stopping": True}, "beam"),
    ({"logits_processors": ["x"]}, "processors"),
    ({"truncate_prompt_tokens": 5}, "truncated"),
    ({"guided_decoding": {"regex": "a"}}, "/v1/completions"),
    ({"structured_outputs": {"regex": "a"}}, "/v1/completions"),
]


def check(answer: Answer, status: int, word: str) -> None:
    assert set(answer.json) == {"detail"}, answer.json
    assert answer.status == status, answer.json
    assert word.lower() in answer.json["detail"].lower(), answer.json


@pytest.mark.parametrize(("fields", "word"), BAD, ids=lambda v: json.dumps(v)[:60])
def test_what_cannot_be_honoured(server: Live, demo: Live, fields: dict[str, Any], word: str) -> None:
    for each in (server, demo):
        check(generate(each, **fields), 400, word)


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda v: str(v)[:30])
def test_bodies_that_are_no_object_in_json(demo: Live, body: bytes) -> None:
    check(demo.ask("/generate", body), 400, "body")


@pytest.mark.parametrize("kind", [*OTHER_TYPES, "", "application/x-www-form-urlencoded"])
def test_other_content_types(demo: Live, kind: str) -> None:
    check(demo.ask("/generate", {"prompt": "hi"}, headers={"content-type": kind}), 415, "application/json")


def test_other_requests(demo: Live) -> None:
    check(demo.ask("/generate"), 405, "POST")
    check(demo.ask("/generate", {}), 400, "missing")
    check(generate(demo, "/generate?delimiter=comma", stream=True), 400, "newline")
    with live(scripted("x"), protocols=("vllm-demo",), api_keys=("secret",), max_body_bytes=50) as server:
        check(generate(server), 401, "key")
        headers = {"authorization": "Bearer secret"}
        check(server.ask("/generate", {"prompt": "x" * 99}, headers=headers), 413, "larger")
