"""Text completions: every form of prompt, log-probabilities as evaluation tools read them, and streams."""

from __future__ import annotations

from typing import Any

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.http import Live, live, scripted


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98]], [(97,), (98,)]),
    ],
)
def test_forms_of_prompts(prompt: Any, ids: list[tuple[int, ...]]) -> None:
    backend = scripted("x")
    with live(backend) as server:
        answer = server.complete(prompt)
    assert [r.prompt for r in backend.requests] == ids
    assert [c["index"] for c in answer.json["choices"]] == list(range(len(ids)))
    assert answer.json["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_a_start_token_comes_first_where_the_model_wants_one() -> None:
    backend = ScriptedBackend(["x"], tokenizer=ByteTokenizer(add_bos=True))
    with live(backend) as server:
        server.complete("a")
        server.complete("a", add_special_tokens=False)
        server.complete([97])
    assert [r.prompt for r in backend.requests] == [(258, 97), (97,), (97,)]


def test_without_a_tokenizer_only_ids_are_understood() -> None:
    with live(ScriptedBackend(["x"])) as server:
        assert "token ids" in server.complete("a").error["message"]
        assert server.complete([97]).status == 200


def test_sixteen_tokens_unless_told_otherwise() -> None:
    with live(scripted("x" * 99)) as server:
        choice = server.complete().json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")


def test_echo_and_logprobs_as_evaluation_tools_want_them() -> None:
    with live(scripted("cd")) as server:
        for prompt in ("ab", [97, 98]):
            choice = server.complete(prompt, echo=True, logprobs=2, max_tokens=1).json["choices"][0]
            assert choice["text"] == "abc"
            assert choice["logprobs"] == {
                "tokens": ["a", "b", "c"],
                "token_logprobs": [None, -0.5, -0.5],
                "top_logprobs": [None, {"b": -0.5, "c": -1.5}, {"c": -0.5, "d": -1.5}],
                "text_offset": [0, 1, 2],
            }
            assert "prompt_logprobs" not in choice


def test_scoring_alone() -> None:
    with live(scripted("never said")) as server:
        choice = server.complete("ab", echo=True, logprobs=1, max_tokens=0).json["choices"][0]
        assert choice["text"] == "ab"
        assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
        assert (
            server.complete("ab", max_tokens=0, prompt_logprobs=1).json["choices"][0]["prompt_logprobs"][0]
            is None
        )


def test_logprobs_of_half_characters_keep_apart() -> None:
    with live(scripted("é")) as server:
        logprobs = server.complete("x", logprobs=0).json["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["text_offset"] == [0, 0]
    assert logprobs["top_logprobs"] == [{"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2},
        {"echo": True, "logprobs": 1},
        {"prompt": ["ab", "cd"], "n": 2, "echo": True},
        {"stop": "wor"},
        {"max_tokens": 0, "echo": True, "logprobs": 0},
    ],
)
def test_a_stream_says_the_same(server: Live, fields: dict[str, Any]) -> None:
    prompt = fields.pop("prompt", "ab")
    whole = server.complete(prompt, **fields).json
    events = server.complete(prompt, **fields, stream=True, stream_options={"include_usage": True}).events
    assert events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        for key in choice["logprobs"] or ():
            assert [x for c in mine for x in c["logprobs"][key]] == choice["logprobs"][key]


def test_several_prompts_fail_together() -> None:
    backend = scripted("x" * 100, max_jobs=2, delay=0.05)
    with live(backend) as server:
        assert server.complete(["a", "b", "c"]).status == 429
    assert backend.num_aborted == 2
