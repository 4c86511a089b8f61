"""The Responses protocol: what comes in as a conversation, what goes out as items and events, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core.types import Message, ToolCall
from qwenkit.server.responses.schema import ResponsesBody
from tests.support.backends import FailingBackend
from tests.support.http import Answer, Live, live, scripted, until
from tests.unit.server.test_any_json import _FEW, _fields

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "How it is.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>\nLet me see.\n</think>\n\nIt is sunny."
ARGUMENTS = '{"city": "Rome"}'


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    """Takes its time, so that there is something to cancel."""
    with live(scripted("abc" * 200, delay=0.02)) as running:
        yield running


def ask(server: Live, given: Any = "hi", *, key: str | None = None, **fields: Any) -> Answer:
    headers = {"authorization": f"Bearer {key}"} if key else None
    return server.ask("/v1/responses", {"model": "scripted", "input": given} | fields, headers=headers)


def events(answer: Answer) -> list[dict[str, Any]]:
    """The events of a stream, each of which names its type twice."""
    found = []
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def joined(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that the events of a stream add up to, checked as a strict client would."""
    items: list[dict[str, Any]] = []
    text, done = "", 0
    for event in found:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items) == done
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
            text = ""
        elif kind.endswith(".delta"):
            assert event["item_id"] == items[-1]["id"]
            text += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == text
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == text
        elif kind == "output_item.done":
            assert event["item"]["id"] == items[-1]["id"]
            items[-1] = event["item"]
            done += 1
    assert done == len(items)
    return items


def texts(items: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What items say."""
    return [
        (i["type"], i["arguments"] if i["type"] == "function_call" else i["content"][0]["text"])
        for i in items
    ]


def said(server: Live) -> tuple[Message, ...]:
    """The conversation that the backend was asked last."""
    return tuple(server.backend.requests[-1].prompt)


def test_a_response(server: Live) -> None:
    asked = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "max_output_tokens": 100,
        "temperature": 0.5,
        "user": "u",
        "text": {"verbosity": "low"},
    }
    answer = ask(server, **asked)
    value = answer.json
    assert answer.status == 200
    assert value["id"].startswith("resp_")
    assert value["output"][0].pop("id").startswith("msg_")
    assert value["output"] == [
        {
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello, world!", "annotations": [], "logprobs": []}],
        }
    ]
    assert value["usage"] == {
        "input_tokens": 40,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 13,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 53,
    }
    assert (value["object"], value["status"], value["store"], value["background"]) == (
        "response",
        "completed",
        True,
        False,
    )
    assert value["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    for name in ("instructions", "metadata", "max_output_tokens", "temperature", "user"):
        assert value[name] == asked[name]
    assert said(server) == (Message("system", "Be brief."), Message("user", "hi"))
    assert answer.headers["x-ignored-fields"] == "text.verbosity, user"
    unused = {"tools": [TOOL], "include": ["file_search_call.results"], "max_tool_calls": 3, "foo": 1}
    assert ask(server, **unused).headers["x-ignored-fields"].split(", ") == [
        "foo",
        "include.file_search_call.results",
        "max_tool_calls",
        "tools[0].strict",
    ]
    assert server.ask(f"/v1/responses/{value['id']}").json["usage"] == value["usage"]


def test_a_stream(server: Live) -> None:
    found = events(ask(server, stream=True))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert texts(joined(found)) == [("message", "Hello, world!")]
    last = found[-1]["response"]
    assert last["output"] == joined(found)
    assert server.ask(f"/v1/responses/{last['id']}").json == last


@pytest.mark.parametrize(
    ("reply", "items"),
    [
        (THOUGHT, [("reasoning", "Let me see."), ("message", "It is sunny.")]),
        (CALL, [("function_call", ARGUMENTS)]),
        (f"I look.\n{CALL}", [("message", "I look."), ("function_call", ARGUMENTS)]),
        (CALL + CALL, [("function_call", ARGUMENTS)] * 2),
        (
            f"First.\n{CALL}\nThen.",
            [("message", "First."), ("function_call", ARGUMENTS), ("message", "Then.")],
        ),
        ('<tool_call>{"name": "weather"}</tool_call>', [("function_call", "{}")]),
        ("<think>\nonly", [("reasoning", "only")]),
        ("", []),
    ],
)
def test_items(thinker: Live, reply: str, items: list[tuple[str, str]]) -> None:
    thinker.backend.restart([reply, reply, "Fine."])
    whole = ask(thinker, tools=[TOOL]).json
    streamed = joined(events(ask(thinker, tools=[TOOL], stream=True)))
    assert texts(whole["output"]) == texts(streamed) == items
    assert whole["status"] == "completed"
    # sent back, the items are the reply again
    calls = [i for i in whole["output"] if i["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": c["call_id"], "output": "4"} for c in calls]
    assert ask(thinker, [{"role": "user", "content": "hi"}, *whole["output"], *results]).status == 200
    told = said(thinker)
    if items:
        assert len(told) == 2 + len(calls)
        assert told[1].reasoning == next((text for kind, text in items if kind == "reasoning"), None)
        assert told[1].content == "\n".join(text for kind, text in items if kind == "message")
        assert [call.id for call in told[1].tool_calls] == [call["call_id"] for call in calls]


def test_a_thought_that_is_not_shown_comes_back(thinker: Live) -> None:
    thinker.backend.restart([THOUGHT])
    output = ask(thinker, include=["reasoning.encrypted_content"], store=False).json["output"]
    del output[0]["content"]
    assert ask(thinker, [{"role": "user", "content": "hi"}, *output]).status == 200
    assert said(thinker)[1] == Message("assistant", "It is sunny.", reasoning="Let me see.")


def test_a_conversation_that_the_server_remembers(server: Live) -> None:
    first = ask(server, "one", instructions="Be brief.").json["id"]
    second = ask(server, "two", previous_response_id=first).json
    assert second["previous_response_id"] == first
    hello = Message("assistant", "Hello, world!")
    assert said(server) == (Message("user", "one"), hello, Message("user", "two"))
    assert server.ask(f"/v1/responses/{first}", method="DELETE").json == {
        "id": first,
        "object": "response",
        "deleted": True,
    }
    assert server.ask(f"/v1/responses/{first}").status == 404
    # what was deleted is still part of what came after it
    third = ask(server, "three", previous_response_id=second["id"], stream=True)
    assert [m.content for m in said(server)] == ["one", "Hello, world!", "two", "Hello, world!", "three"]
    id_ = events(third)[-1]["response"]["id"]
    page = server.ask(f"/v1/responses/{id_}/input_items?limit=2").json
    assert [item["content"][0]["text"] for item in page["data"]] == ["three", "Hello, world!"]
    assert page["has_more"] is True
    rest = server.ask(f"/v1/responses/{id_}/input_items?after={page['last_id']}").json
    assert [item["content"][0]["text"] for item in rest["data"]] == ["two", "Hello, world!", "one"]
    assert rest["has_more"] is False
    upwards = server.ask(f"/v1/responses/{id_}/input_items?order=asc&limit=1").json
    assert upwards["data"] == [rest["data"][-1]]


def test_items_by_their_ids(server: Live) -> None:
    first = ask(server, "one").json
    item = {"type": "item_reference", "id": first["output"][0]["id"]}
    assert (
        ask(server, [{"role": "user", "content": "what?"}, item, {"role": "user", "content": "ah"}]).status
        == 200
    )
    assert [m.content for m in said(server)] == ["what?", "Hello, world!", "ah"]
    answer = ask(server, [{"type": "item_reference", "id": "msg_none"}])
    assert (answer.status, answer.error["param"]) == (404, "input[0].id")


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        (
            [
                {"role": "developer", "content": "Be brief."},
                {"type": "message", "role": "user", "content": "hi"},
            ],
            [Message("system", "Be brief."), Message("user", "hi")],
        ),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]}],
            [Message("user", "a\nb")],
        ),
        (
            [
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            [Message("assistant", "a"), Message("assistant", "b"), Message("user", "c")],
        ),
        (
            [
                {"role": "user", "content": "hi"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": ARGUMENTS},
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "sunny"}],
                },
            ],
            [
                Message("user", "hi"),
                Message(
                    "assistant",
                    reasoning="Hm.",
                    tool_calls=(ToolCall(id="c1", name="weather", arguments=ARGUMENTS),),
                ),
                Message("tool", "sunny", tool_call_id="c1"),
            ],
        ),
    ],
)
def test_conversations(server: Live, items: Any, messages: list[Message]) -> None:
    assert ask(server, items).status == 200
    assert said(server) == tuple(messages)


@pytest.mark.parametrize(
    ("choice", "kind", "num_calls"),
    [
        ("auto", None, 2),
        ("required", "grammar", 2),
        ({"type": "function", "name": "weather"}, "grammar", 1),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            "grammar",
            2,
        ),
    ],
)
def test_choice_of_tools(thinker: Live, choice: Any, kind: str | None, num_calls: int) -> None:
    thinker.backend.restart([CALL + CALL])
    value = ask(thinker, tools=[TOOL, {**TOOL, "name": "clock"}], tool_choice=choice).json
    assert len(value["output"]) == num_calls
    assert value["tool_choice"] == choice
    assert value["tools"][0] == TOOL
    constraint = thinker.backend.requests[-1].params.constraint
    assert (constraint and constraint.kind) == kind
    thinker.backend.restart([CALL + CALL])
    assert len(ask(thinker, tools=[TOOL], parallel_tool_calls=False).json["output"]) == 1


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}, "json_schema"),
    ],
)
def test_form_of_the_answer(server: Live, form: Any, kind: str | None) -> None:
    value = ask(server, text={"format": form}).json
    assert value["text"]["format"] == form
    constraint = server.backend.requests[-1].params.constraint
    assert (constraint and constraint.kind) == kind


def test_sampling(server: Live) -> None:
    settings = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 5,
    }
    settings |= {"frequency_penalty": 0.5, "presence_penalty": -0.5}
    assert ask(server, **settings, stop="wor").json["output"][0]["content"][0]["text"] == "Hello, "
    params = server.backend.requests[-1].params
    assert {name: getattr(params, name) for name in settings} == settings


@pytest.mark.parametrize("effort", ["none", "high"])
def test_effort(thinker: Live, effort: str) -> None:
    thinker.backend.restart(["Yes."])
    answer = ask(thinker, reasoning={"effort": effort, "summary": "auto"})
    assert answer.json["reasoning"]["effort"] == effort
    assert thinker.backend.requests[-1].template_options == {"enable_thinking": effort != "none"}
    assert answer.headers["x-ignored-fields"] == "reasoning.summary"


def test_log_probabilities(thinker: Live) -> None:
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    for reply, answer in (("Hello", "Hello"), (THOUGHT, "It is sunny.")):
        thinker.backend.restart([reply])
        (part,) = ask(thinker, **wanted).json["output"][-1]["content"]
        found = events(ask(thinker, **wanted, stream=True))
        streamed = [p for e in found if e["type"].endswith("output_text.delta") for p in e["logprobs"]]
        assert part["logprobs"] == streamed
        assert "".join(p["token"] for p in part["logprobs"]).strip() == answer
        assert all(len(p["top_logprobs"]) == 2 for p in streamed)
        (added,) = (
            e["part"] for e in found if e["type"] == "response.content_part.added" and "logprobs" in e["part"]
        )
        assert added == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def test_a_full_limit(server: Live) -> None:
    whole = ask(server, max_output_tokens=5).json
    last = events(ask(server, max_output_tokens=5, stream=True))[-1]
    assert last["type"] == "response.incomplete"
    for value in (whole, last["response"]):
        assert value["status"] == value["output"][0]["status"] == "incomplete"
        assert value["incomplete_details"] == {"reason": "max_output_tokens"}
        assert texts(value["output"]) == [("message", "Hello")]


def test_too_long_conversations_are_cut_where_that_is_wanted(server: Live) -> None:
    turns = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} " + "x" * 200} for n in range(21)
    ]
    assert ask(server, turns, instructions="Be brief.").error["code"] == "context_length_exceeded"
    assert (
        ask(server, turns, instructions="Be brief.", truncation="auto", max_output_tokens=300).status == 200
    )
    told = said(server)
    assert told[0].content == "Be brief."
    assert [m.content.split()[0] for m in told[1:]] == ["14", "15", "16", "17", "18", "19", "20"]


def test_counting(thinker: Live) -> None:
    for fields in ({}, {"instructions": "Be brief."}, {"tools": [TOOL]}, {"reasoning": {"effort": "none"}}):
        thinker.backend.restart(["Yes."])
        asked = {"model": "scripted", "input": "hi", **fields}
        assert thinker.ask("/v1/responses/input_tokens", asked).json == {
            "object": "response.input_tokens",
            "input_tokens": ask(thinker, **fields).json["usage"]["input_tokens"],
        }


def test_in_the_background(slow: Live) -> None:
    slow.backend.restart(["abc" * 5])
    value = ask(slow, background=True).json
    assert (value["status"], value["output"]) == ("queued", [])
    until(lambda: slow.ask(f"/v1/responses/{value['id']}").json["status"] == "completed")
    after = slow.ask(f"/v1/responses/{value['id']}").json
    assert texts(after["output"]) == [("message", "abc" * 5)]
    # cancelling what has ended changes nothing
    assert slow.ask(f"/v1/responses/{value['id']}/cancel", method="POST").json == after
    assert ask(slow, "and?", previous_response_id=value["id"]).status == 200


def test_cancelling_ends_the_generation(slow: Live) -> None:
    slow.backend.restart(["abc" * 200])
    before = slow.backend.num_aborted
    id_ = ask(slow, background=True).json["id"]
    until(lambda: slow.ask(f"/v1/responses/{id_}").json["status"] == "in_progress")
    value = slow.ask(f"/v1/responses/{id_}/cancel", method="POST").json
    assert value["status"] == "cancelled"
    assert slow.backend.num_aborted == before + 1
    assert slow.ask(f"/v1/responses/{id_}").json == value
    refused = ask(slow, previous_response_id=id_).error
    assert "cancelled" in refused["message"]


def test_deleting_ends_the_generation(slow: Live) -> None:
    slow.backend.restart(["abc" * 200])
    before = slow.backend.num_aborted
    id_ = ask(slow, background=True).json["id"]
    assert slow.ask(f"/v1/responses/{id_}", method="DELETE").status == 200
    until(lambda: slow.backend.num_aborted == before + 1)
    assert slow.ask(f"/v1/responses/{id_}").status == 404


def test_a_stream_can_be_left_and_followed_again(slow: Live) -> None:
    slow.backend.restart(["abc" * 30])
    connection = slow.connect()
    asked = json.dumps({"input": "hi", "background": True, "stream": True}).encode()
    connection.request("POST", "/v1/responses", asked, {"content-type": "application/json"})
    response = connection.getresponse()
    begun = b""
    while begun.count(b"\n\n") < 6:
        begun += response.read1(200)
    connection.close()
    id_ = json.loads(begun.split(b"\n")[1].removeprefix(b"data: "))["response"]["id"]
    rest = events(slow.ask(f"/v1/responses/{id_}?stream=true&starting_after=5"))
    assert rest[0]["sequence_number"] == 6
    assert rest[-1]["type"] == "response.completed"
    assert texts(rest[-1]["response"]["output"]) == [("message", "abc" * 30)]
    whole = events(slow.ask(f"/v1/responses/{id_}?stream=true"))
    assert whole[6:] == rest
    assert [e["type"] for e in whole[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert texts(joined(whole)) == [("message", "abc" * 30)]
    assert slow.ask(f"/v1/responses/{id_}?stream=true&starting_after=999").body == b""


def test_a_background_response_that_fails() -> None:
    with live(FailingBackend(["Hello, world!"])) as server:
        server.backend.fails_after = 2
        id_ = ask(server, background=True).json["id"]
        until(lambda: server.ask(f"/v1/responses/{id_}").json["status"] == "failed")
        value = server.ask(f"/v1/responses/{id_}").json
        assert value["error"] == {"code": "server_error", "message": "the numbers are gone"}
        told = events(server.ask(f"/v1/responses/{id_}?stream=true"))
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        found = events(ask(server, stream=True))
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        assert joined(found)[0]["status"] == "incomplete"
        *_, error, failed = found
        assert (error["type"], error["message"]) == ("error", "the numbers are gone")
        assert failed["type"] == "response.failed"
        assert texts(failed["response"]["output"]) == [("message", "Hello,")]
        server.backend.fails_after = 0
        assert ask(server).status == 500


def test_nobody_reads_what_another_key_stored() -> None:
    with live(scripted(), api_keys=("one", "two")) as server:
        kept = ask(server, key="one").json
        own, other = ({"x-api-key": "one"}, {"authorization": "Bearer two"})
        path = f"/v1/responses/{kept['id']}"
        for where, method in (
            (path, "GET"),
            (path, "DELETE"),
            (f"{path}/cancel", "POST"),
            (f"{path}/input_items", "GET"),
        ):
            assert server.ask(where, method=method, headers=other).status == 404
        assert ask(server, key="two", previous_response_id=kept["id"]).status == 404
        reference = [{"type": "item_reference", "id": kept["output"][0]["id"]}]
        assert ask(server, reference, key="two").status == 404
        assert server.ask(path, headers=own).json == kept


def test_only_so_many_are_kept() -> None:
    with live(scripted(), store_responses=2) as server:
        ids = [ask(server).json["id"] for _ in range(2)]
        assert server.ask(f"/v1/responses/{ids[0]}").status == 200  # which makes the other the oldest
        ask(server)
        assert [server.ask(f"/v1/responses/{id_}").status for id_ in ids] == [200, 404]
        unkept = ask(server, store=False).json
        assert unkept["store"] is False
        assert server.ask(f"/v1/responses/{unkept['id']}").status == 404


def test_nothing_is_kept_where_that_is_off() -> None:
    with live(scripted(), store_responses=0) as server:
        value = ask(server).json
        assert value["store"] is False
        assert server.ask(f"/v1/responses/{value['id']}").status == 404
        assert ask(server, store=True).error["param"] == "store"
        assert ask(server, background=True).error["param"] == "background"


def test_a_stopping_server_ends_what_is_in_the_background() -> None:
    with live(scripted("abc" * 500, delay=0.02), drain_timeout=0.1) as server:
        ask(server, background=True)
        until(lambda: bool(server.backend.requests))
    until(lambda: server.backend.num_aborted == 1)


def test_only_this_protocol() -> None:
    with live(scripted(), protocols=("responses",)) as server:
        assert ask(server).status == 200
        assert server.ask("/v1/chat/completions", {"messages": []}).status == 404


@pytest.mark.parametrize("fields", [{"include": True}, {"user": [1]}, {"max_tool_calls": {}}])
def test_counting_names_what_only_answering_reads(server: Live, fields: dict[str, Any]) -> None:
    answer = server.ask("/v1/responses/input_tokens", {"input": "hi"} | fields)
    assert answer.status == 200
    assert answer.headers["x-ignored-fields"] == next(iter(fields))


@_FEW
@given(fields=_fields(ResponsesBody), is_counted=st.booleans())
def test_any_json(server: Live, fields: dict[str, Any], is_counted: bool) -> None:
    path = "/v1/responses/input_tokens" if is_counted else "/v1/responses"
    answer = server.ask(path, {"max_output_tokens": 5, "input": "hi"} | fields)
    assert answer.status in (200, 400, 404), answer.body
    if answer.status != 200:
        assert answer.error["message"]
