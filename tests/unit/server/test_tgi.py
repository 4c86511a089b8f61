"""text-generation-inference: parameters as the engine gets them, details, events, and the path it shares."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from starlette.responses import Response

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.core.errors import NumericsError
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.http import Answer, Live, live, scripted


def generate(server: Live, path: str = "/generate", inputs: str = "hi", **parameters: Any) -> Answer:
    return server.ask(path, {"inputs": inputs, "parameters": parameters})


def events(answer: Answer) -> list[Any]:
    """The values of a stream; each begins right after the colon."""
    *found, last = answer.body.decode().split("\n\n")
    assert last == ""
    assert all(each.startswith("data:{") for each in found), found
    return [json.loads(each.removeprefix("data:")) for each in found]


def params(server: Live, **parameters: Any) -> Any:
    """The settings that a request gives the engine."""
    assert generate(server, **parameters).status == 200
    return server.backend.requests[-1].params


def test_only_the_text_unless_more_is_asked_for(server: Live) -> None:
    assert generate(server).json == {"generated_text": "Hello, world!"}
    assert server.ask("/generate", {"inputs": "hi"}).json == {"generated_text": "Hello, world!"}
    assert server.ask("/generate", {"inputs": "hi", "parameters": None}).status == 200


def test_without_sampling_all_settings_of_the_model_are_off(server: Live) -> None:
    found = params(server)
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.0, 0, 1.0, 0.0)
    assert (found.repetition_penalty, found.frequency_penalty, found.presence_penalty) == (1.0, 0.0, 0.0)
    assert (found.max_tokens, found.seed, found.logprobs) == (100, None, None)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"do_sample": True}, 1.0),
        ({"do_sample": False}, 0.0),
        ({"temperature": 0.5}, 0.5),
        ({"temperature": 1.0}, 0.0),
        ({"temperature": 1.0, "do_sample": True}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"top_p": 1.0, "top_k": 0}, 0.0),
        ({"do_sample": False, "top_p": 0.5}, 1.0),
        ({"temperature": 0.0, "do_sample": True}, 0.0),
    ],
)
def test_what_turns_sampling_on(server: Live, given: dict[str, Any], temperature: float) -> None:
    assert params(server, **given).temperature == temperature


def test_settings_reach_the_engine(server: Live) -> None:
    found = params(
        server,
        do_sample=True,
        temperature=0.7,
        top_k=9,
        top_p=0.8,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        max_new_tokens=7,
        stop=["wor", "ld"],
        seed=2**64 - 1,
        typical_p=1.0,
        watermark=False,
    )
    assert (found.temperature, found.top_k, found.top_p) == (0.7, 9, 0.8)
    assert (found.repetition_penalty, found.frequency_penalty, found.max_tokens) == (1.2, 0.3, 7)
    assert (found.stop, found.include_stop, found.seed) == (("wor", "ld"), True, 2**63 - 1)


@pytest.mark.parametrize(
    ("grammar", "kind", "value"),
    [
        ({"type": "json", "value": {"type": "object"}}, "json_schema", {"type": "object"}),
        ({"type": "json", "value": '{"type": "object"}'}, "json_schema", {"type": "object"}),
        # properties without a type are those of an object, as in the examples of its pages
        ({"type": "json", "value": {"properties": {}}}, "json_schema", {"type": "object", "properties": {}}),
        (
            {"type": "json_schema", "value": {"name": "x", "schema": {"type": "array"}}},
            "json_schema",
            {"type": "array"},
        ),
        ({"type": "regex", "value": "[ab]+"}, "regex", "[ab]+"),
    ],
)
def test_grammars(server: Live, grammar: Any, kind: str, value: Any) -> None:
    found = params(server, grammar=grammar).constraint
    assert (found.kind, found.value) == (kind, value)


def test_details(server: Live) -> None:
    value = generate(server, details=True, decoder_input_details=True, top_n_tokens=2, max_new_tokens=2).json
    details = value["details"]
    assert value["generated_text"] == "He"
    assert details["finish_reason"] == "length"
    assert (details["generated_tokens"], details["seed"]) == (2, None)
    assert details["prefill"] == [
        {"id": 104, "text": "h", "logprob": None},
        {"id": 105, "text": "i", "logprob": -0.5},
    ]
    assert details["tokens"][0] == {"id": 72, "text": "H", "logprob": -0.5, "special": False}
    assert [[t["text"] for t in each] for each in details["top_tokens"]] == [["H", "I"], ["e", "f"]]
    assert "best_of_sequences" not in details


def test_reasons_to_end(server: Live) -> None:
    assert generate(server, details=True).json["details"]["finish_reason"] == "eos_token"
    stopped = generate(server, details=True, stop=["wor"]).json
    assert stopped["generated_text"] == "Hello, wor"
    assert stopped["details"]["finish_reason"] == "stop_sequence"


def test_a_seed_is_told_where_one_was_needed(server: Live) -> None:
    seed = generate(server, details=True, do_sample=True).json["details"]["seed"]
    assert 0 <= seed < 2**63
    assert server.backend.requests[-1].params.seed == seed
    assert generate(server, details=True, do_sample=True, seed=5).json["details"]["seed"] == 5


def test_the_likeliest_of_several_is_the_answer() -> None:
    class Uneven(ScriptedBackend):
        """Says "a" with certainty and all else not."""

        def _sample(self, index: int, sample: int, request: Any, reply: Any) -> Any:
            for delta in super()._sample(index, sample, request, reply):
                likely = [
                    dataclasses.replace(p, logprob=-0.1 if p.token_id == 97 else -3.0) for p in delta.logprobs
                ]
                yield dataclasses.replace(delta, logprobs=tuple(likely))

    with live(Uneven(["xx", "aaaa", "ax"], tokenizer=ByteTokenizer())) as server:
        value = generate(server, best_of=3, do_sample=True, details=True).json
        assert value["generated_text"] == "aaaa"
        others = value["details"]["best_of_sequences"]
        assert sorted(each["generated_text"] for each in others) == ["ax", "xx"]
        seeds = {value["details"]["seed"], *(each["seed"] for each in others)}
        assert len(seeds) == 3
        assert seeds == {r.params.seed for r in server.backend.requests}
        assert generate(server, best_of=2, do_sample=True).json == {"generated_text": "ax"}


def test_prompts_are_cut_from_the_left_and_shown_whole(server: Live) -> None:
    value = generate(server, inputs="abcdef", truncate=2, return_full_text=True).json
    assert value["generated_text"] == "abcdefHello, world!"
    assert server.backend.requests[-1].prompt == (101, 102)


def test_a_start_token_where_the_model_wants_one() -> None:
    backend = ScriptedBackend(["x"], tokenizer=ByteTokenizer(add_bos=True))
    with live(backend) as server:
        server.ask("/generate", {"inputs": "a"})
        server.ask("/generate", {"inputs": "a", "add_special_tokens": False})
    assert [r.prompt for r in backend.requests] == [(258, 97), (97,)]


def test_a_stream_has_an_event_per_token(server: Live) -> None:
    answer = generate(server, "/generate_stream", details=True, max_new_tokens=5, top_n_tokens=1)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer)
    assert [e["index"] for e in found] == [1, 2, 3, 4, 5]
    assert "".join(e["token"]["text"] for e in found) == "Hello"
    assert all(e["generated_text"] is None and e["details"] is None for e in found[:-1])
    assert found[0]["top_tokens"] == [{"id": 72, "text": "H", "logprob": -0.5, "special": False}]


def test_the_last_event_has_the_text_and_details(server: Live) -> None:
    # this backend ends without a token, so that the last event has one of its own
    last = events(generate(server, "/generate_stream", details=True))[-1]
    assert last["generated_text"] == "Hello, world!"
    assert last["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 13,
        "seed": None,
        "input_length": 2,
    }
    without = events(generate(server, "/generate_stream", return_full_text=True))[-1]
    assert (without["generated_text"], without["details"]) == ("hiHello, world!", None)


def test_characters_of_several_tokens_come_with_their_last_one() -> None:
    with live(scripted("é!")) as server:
        found = events(generate(server, "/generate_stream"))
        assert [e["token"]["text"] for e in found][:3] == ["", "é", "!"]
        tokens = generate(server, details=True).json["details"]["tokens"]
    assert [token["text"] for token in tokens] == ["", "é", "!"]


def test_stream_chooses_at_both_other_paths(server: Live) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 2}}
    assert events(server.ask("/generate", body | {"stream": True}))[-1]["generated_text"] == "He"
    # at this path the text begins with the prompt, as the protocol has it
    assert server.ask("/", body).json == [{"generated_text": "hiHe"}]
    assert events(server.ask("/", body | {"stream": True}))[-1]["generated_text"] == "hiHe"
    body["parameters"] = {"max_new_tokens": 2, "return_full_text": False}
    assert server.ask("/", body).json == [{"generated_text": "He"}]


def test_health_where_a_page_could_be() -> None:
    with live(scripted("x"), protocols=("tgi",)) as server:
        assert server.ask("/").json == server.ask("/health").json == {"status": "ok"}


def test_info(server: Live) -> None:
    value = server.ask("/info").json
    assert (value["model_id"], value["max_total_tokens"]) == ("scripted", 2048)
    assert value["max_input_length"] == value["max_input_tokens"] == 2047


def test_names_that_its_clients_send_for_any_model(server: Live) -> None:
    assert [server.chat(model=name).status for name in ("tgi", "dummy", "")] == [200] * 3
    assert server.chat(model="").json["model"] == "scripted"
    assert "tgi" not in [model["id"] for model in server.ask("/v1/models").json["data"]]
    assert server.ask("/v1/models/tgi").status == 404
    with live(scripted("x"), protocols=("openai",)) as other:
        assert other.chat(model="tgi").status == 404


def test_forms_of_the_chat_answer_as_its_clients_send_them(server: Live) -> None:
    schema = {"type": "object"}
    for kind in ("json", "json_object"):
        assert server.chat(response_format={"type": kind, "value": schema}).status == 200
        assert server.backend.requests[-1].params.constraint.value == schema
    assert server.chat(response_format={"type": "regex", "value": "a+"}).status == 200
    assert server.backend.requests[-1].params.constraint.kind == "regex"
    for form in ({"type": "text", "value": "a"}, {"type": "regex", "value": 5}, {"type": "regex"}):
        assert server.chat(response_format=form).status == 400


def test_a_body_says_which_protocol_it_is_of(server: Live) -> None:
    assert server.ask("/generate", {"prompt": "hi"}).json == {"text": ["hiHello, world!"]}
    assert set(server.ask("/generate", {"prompt": "hi", "n": 0}).json) == {"detail"}
    assert set(server.ask("/generate", {"prompt": "", "stream": "x"}).json) == {"detail"}
    for body in ({}, {"inputs": ""}, {"inputs": 5, "prompt": "hi"}):
        answer = server.ask("/generate", body)
        assert (answer.status, set(answer.json)) == (422, {"error", "error_type"})


def test_only_protocols_that_are_on_are_understood() -> None:
    with live(scripted("x"), protocols=("tgi",)) as server:
        answer = server.ask("/generate", {"prompt": "hi"})
        assert (answer.status, answer.json["error_type"]) == (422, "validation")
    with live(scripted("x"), protocols=("vllm-demo",)) as server:
        answer = server.ask("/generate", {"inputs": "hi"})
        assert (answer.status, answer.json) == (400, {"detail": "prompt is missing; it is required"})
        assert server.ask("/generate_stream", {"inputs": "hi"}).status == 404


def test_unknown_fields_are_named(server: Live) -> None:
    answer = server.ask("/generate", {"inputs": "hi", "x": 1, "parameters": {"y": 2}})
    assert answer.headers["x-ignored-fields"] == "parameters.y, x"


def test_failures_of_the_engine() -> None:
    backend = scripted(["He", NumericsError("logits hold NaN")])
    with live(scripted([NumericsError("logits hold NaN")])) as server:
        answer = generate(server)
        assert (answer.status, answer.json["error_type"]) == (424, "generation")
    with live(backend) as server:
        found = events(generate(server, "/generate_stream"))
    assert found[0]["token"]["text"] == "H"
    assert found[-1] == {"error": "logits hold NaN", "error_type": "generation"}


def test_a_full_queue() -> None:
    with live(scripted("x", max_jobs=0)) as server:
        answer = generate(server)
    assert (answer.status, answer.json["error_type"]) == (429, "overloaded")
    assert answer.headers["retry-after"]


def test_posting_to_the_page_needs_a_key() -> None:
    async def page(http: Any) -> Any:
        return Response("page")

    with live(scripted("x"), api_keys=("secret",), pages={"/": page}) as server:
        assert server.ask("/").body == b"page"
        refused = server.ask("/", {"inputs": "hi"})
        assert (refused.status, refused.json["error_type"]) == (401, "unauthorized")
        headers = {"authorization": "Bearer secret"}
        assert server.ask("/", {"inputs": "hi"}, headers=headers).status == 200
