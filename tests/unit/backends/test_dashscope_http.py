"""The backend for DashScope, against a fake of the service on the loopback that can misbehave as the real one does."""

from __future__ import annotations

import json
import queue
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from qwenkit.backends.dashscope_http import open_dashscope
from qwenkit.core.errors import InputError, PromptTooLongError, RemoteError
from qwenkit.core.sampling import Constraint
from qwenkit.core.types import (
    Completion,
    Delta,
    Message,
    Request,
    SamplingParams,
    ToolCall,
    ToolSpec,
    collect,
)
from tests.support.backends import EVERY_SETTING
from tests.support.sse_server import Answer, SseServer, as_json, sse_server

HI = (Message("user", "hi"),)
PATH = "/api/v1/services/aigc/text-generation/generation"


@pytest.fixture
def server() -> Iterator[SseServer]:
    with sse_server() as script:
        script.answers = [Answer(pieces=said("Hel", "lo"))]
        yield script


def event(value: Any, name: str = "result", status: int = 200) -> bytes:
    """One event, with no blank after a colon."""
    data = value if isinstance(value, str) else json.dumps(value)
    return f"id:1\nevent:{name}\n:HTTP_STATUS/{status}\ndata:{data}\n\n".encode()


def chunk(
    message: Any, finish: str = "null", *, index: int | None = None, tokens: int = 3, **more: Any
) -> bytes:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish, **more}
    if index is not None:
        choice["index"] = index
    usage = {"input_tokens": 7, "output_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 2}}
    return event({"output": {"choices": [choice]}, "usage": usage, "request_id": "r"})


def said(*texts: str) -> list[bytes]:
    """A whole answer, a text an event."""
    return [*(chunk({"content": text}) for text in texts), chunk({"content": ""}, "stop")]


def refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    """An error before any event."""
    return as_json({"code": code, "message": message, "request_id": "r"}, status, **headers)


def ask(server: SseServer, request: Request | None = None, **options: Any) -> list[Delta]:
    backend = open_dashscope("dashscope:qwen-plus", url=server.url, timeout=5, **options)
    return list(backend.stream([request or Request(prompt=HI)]))


def answer(server: SseServer, request: Request | None = None, **options: Any) -> Completion:
    return collect(ask(server, request, **options))


def parameters_of(server: SseServer, **settings: Any) -> dict[str, Any]:
    """What is sent for some settings, beside what always is."""
    ask(server, Request(prompt=HI, params=SamplingParams(**settings)))
    parameters = server.asked[-1].body["parameters"]
    assert parameters.pop("result_format") == "message"
    assert parameters.pop("incremental_output") is True
    return dict(parameters)


def test_a_reply_streams(server: SseServer) -> None:
    deltas = ask(server, api_key="secret")
    assert [d.text for d in deltas] == ["Hel", "lo", ""]
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (7, 3, 2)
    (seen,) = server.asked
    assert (seen.method, seen.path) == ("POST", PATH)
    assert seen.headers["X-DashScope-SSE"] == "enable"
    assert seen.headers["Authorization"] == "Bearer secret"
    assert seen.body == {
        "model": "qwen-plus",
        "input": {"messages": [{"role": "user", "content": "hi"}]},
        "parameters": {"result_format": "message", "incremental_output": True},
    }


@pytest.mark.parametrize("end", ["", "/", "/api/v1", "/api/v1/", "/api/v1/services/aigc"])
def test_forms_of_the_address(server: SseServer, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", server.url + end)
    monkeypatch.setenv("DASHSCOPE_API_KEY", "from the environment")
    backend = open_dashscope("qwen-plus")
    assert backend.info.device == server.url
    list(backend.stream([Request(prompt=HI)]))
    assert server.seen[-1].path == PATH
    assert server.seen[-1].headers["Authorization"] == "Bearer from the environment"


def test_the_service_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DASHSCOPE_API_KEY", "DASHSCOPE_HTTP_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="needs an API key of DashScope; set DASHSCOPE_API_KEY"):
        open_dashscope("dashscope:qwen-plus")
    backend = open_dashscope("dashscope:qwen-plus", api_key="k")
    assert backend.info.details["url"] == "https://dashscope.aliyuncs.com"
    with pytest.raises(InputError, match="names no model"):
        open_dashscope("dashscope: ")


def test_settings_are_sent(server: SseServer) -> None:
    plain = {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "seed": 3,
    }
    assert parameters_of(server, **plain, stop=("x", "y")) == {**plain, "stop": ["x", "y"]}
    assert parameters_of(server, top_k=0) == {"top_k": 101}
    assert parameters_of(server, logprobs=2) == {"logprobs": True, "top_logprobs": 2}
    ids = parameters_of(server, stop_token_ids=(8,), stop_token_sequences=((1, 2),))
    assert ids == {"stop": [[8], [1, 2]]}
    schema = {"type": "object"}
    form = parameters_of(server, constraint=Constraint(kind="json_schema", value=schema))
    assert form["response_format"]["json_schema"]["schema"] == schema
    form = parameters_of(server, constraint=Constraint(kind="json_object"))
    assert form == {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    "name",
    [
        *("min_tokens", "min_p", "frequency_penalty", "logit_bias", "bad_words", "allowed_token_ids"),
        *("ignore_eos", "include_stop", "skip_special_tokens"),
    ],
)
def test_settings_that_cannot_be_sent_are_named(server: SseServer, name: str) -> None:
    params = SamplingParams(**{name: getattr(EVERY_SETTING, name)})
    with pytest.raises(InputError, match=f"^{name}=.* cannot be sent to DashScope"):
        ask(server, Request(prompt=HI, params=params))
    assert server.asked == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(prompt=HI, params=SamplingParams(top_k=150)), "top_k=150"),
        (Request(prompt=HI, params=SamplingParams(max_tokens=0)), "max_tokens=0"),
        (Request(prompt=HI, params=SamplingParams(prompt_logprobs=1)), "prompt_logprobs"),
        (Request(prompt=HI, params=SamplingParams(stop=("x",), stop_token_ids=(1,))), "stop"),
        (
            Request(prompt=HI, params=SamplingParams(constraint=Constraint(kind="regex", value="a"))),
            "regex",
        ),
        (Request(prompt=HI, template_options={"date": "now"}), "template option date"),
        (Request(prompt=(1, 2)), "not token ids"),
        (Request(prompt=()), "empty"),
    ],
)
def test_requests_that_cannot_be_sent(server: SseServer, request_: Request, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ask(server, request_)
    assert server.asked == []


def test_options_tools_and_what_goes_on(server: SseServer) -> None:
    tool = ToolSpec(name="clock", parameters={"type": "object"})
    past = (*HI, Message("assistant", "I am"))
    ask(server, Request(prompt=past, tools=(tool,), continue_final=True, adapter="mine"))
    body = server.asked[-1].body
    assert body["model"] == "mine"
    assert body["input"]["messages"][-1] == {"role": "assistant", "content": "I am", "partial": True}
    assert body["parameters"]["tools"] == [tool.to_dict()]
    ask(server, Request(prompt=HI, template_options={"enable_thinking": True, "thinking_budget": 5}))
    parameters = server.asked[-1].body["parameters"]
    assert (parameters["enable_thinking"], parameters["thinking_budget"]) == (True, 5)


def test_what_only_a_model_here_can(server: SseServer) -> None:
    backend = open_dashscope("qwen-plus", url=server.url)
    for ask_for in (
        lambda: backend.logprobs([[1, 2]]),
        lambda: backend.embed([[1]]),
        lambda: backend.load_adapter("a", "b"),
        lambda: backend.unload_adapter("a"),
    ):
        with pytest.raises(InputError):
            ask_for()
    backend.close()
    with pytest.raises(InputError, match="closed"):
        backend.submit(Request(prompt=HI), lambda new: None)


CALLS = [
    {"content": "", "tool_calls": [_call]}
    for _call in (
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "clock", "arguments": ""}},
        {"index": 0, "id": "", "type": "function", "function": {"arguments": '{"zone": '}},
        {"index": 0, "id": "", "type": "function", "function": {"arguments": '"CET"}'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "date", "arguments": "{}"}},
    )
]
THOUGHT = [
    {"reasoning_content": "Let me", "content": ""},
    {"reasoning_content": " see.", "content": ""},
    {"reasoning_content": "", "content": "It is"},
    {"reasoning_content": "", "content": " noon."},
]


def all_so_far(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same reply as of models that repeat in every event what they said before."""
    whole: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    found = []
    for message in messages:
        for name in ("content", "reasoning_content"):
            if name in message:
                whole[name] = whole.get(name, "") + message[name]
        for call in message.get("tool_calls", ()):
            old = calls.setdefault(call["index"], json.loads(json.dumps(call)) | {"function": {}})
            function, new = old["function"], call["function"]
            function["name"] = function.get("name") or new["name"]
            function["arguments"] = function.get("arguments", "") + new["arguments"]
        more = {"tool_calls": list(calls.values())} if calls else {}
        found.append(json.loads(json.dumps(whole | more)))
    return found


def pieces_of(messages: Sequence[dict[str, Any]], *, repeats: bool, finish: str = "stop") -> list[bytes]:
    """The events of a reply."""
    last: dict[str, Any] = {"content": ""}
    if repeats:
        messages = all_so_far(messages)
        last = messages[-1]
    return [*(chunk(message) for message in messages), chunk(last, finish)]


@pytest.mark.parametrize("repeats", [False, True])
def test_calls_of_tools(server: SseServer, repeats: bool) -> None:
    server.answers = [Answer(pieces=pieces_of(CALLS, repeats=repeats, finish="tool_calls"))]
    done = answer(server)
    expected = (
        ToolCall(id="call_1", name="clock", arguments='{"zone": "CET"}'),
        ToolCall(id="call_2", name="date", arguments="{}"),
    )
    assert done.tool_calls == expected
    assert done.finish_reason == "stop"


@pytest.mark.parametrize("repeats", [False, True])
def test_thought(server: SseServer, repeats: bool) -> None:
    server.answers = [Answer(pieces=pieces_of(THOUGHT, repeats=repeats, finish="length"))]
    done = answer(server)
    assert (done.reasoning, done.text) == ("Let me see.", "It is noon.")
    assert done.finish_reason == "length"
    inline = answer(server, inline_reasoning=True)
    assert inline.text == "<think>\nLet me see.\n</think>\n\nIt is noon."


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(
    "texts",
    [
        ["ha", "ha", "ha!"],
        ["ha", "haha", "!"],
        ["a", "aa", "b", ""],
        ["", "x", "", "x"],
        ["1", "1", "1"],
        ["only"],
        [],
        ["", ""],
        ["二", "二十", "三"],
    ],
)
def test_text_that_begins_as_it_began_before(server: SseServer, texts: list[str], repeats: bool) -> None:
    messages = [{"content": text} for text in texts]
    server.answers = [Answer(pieces=pieces_of(messages, repeats=repeats and bool(texts)))]
    assert answer(server).text == "".join(texts)


def test_whatever_is_repeated(server: SseServer) -> None:
    draw = random.Random(5)
    for _ in range(60):
        texts = ["".join(draw.choices("ab", k=draw.randrange(3))) for _ in range(draw.randrange(1, 9))]
        messages = [{"content": text} for text in texts]
        server.answers = [Answer(pieces=pieces_of(messages, repeats=True))]
        assert answer(server).text == "".join(texts), texts


@pytest.mark.parametrize("repeats", [False, True])
def test_logprobs(server: SseServer, repeats: bool) -> None:
    entries = [
        {"token": t, "logprob": -n, "top_logprobs": [{"token": t, "logprob": -n}]}
        for n, t in enumerate("abc")
    ]
    texts = ["a", "b", "c"]
    pieces = [
        chunk(
            {"content": "".join(texts[: n + 1]) if repeats else texts[n]},
            logprobs={"content": entries[: n + 1] if repeats else entries[n : n + 1]},
        )
        for n in range(3)
    ]
    last = {"content": "abc"} if repeats else {"content": ""}
    pieces.append(chunk(last, "stop", logprobs={"content": entries if repeats else []}))
    server.answers = [Answer(pieces=pieces)]
    done = answer(server, Request(prompt=HI, params=SamplingParams(logprobs=1)))
    assert done.text == "abc"
    assert [p.logprob for p in done.logprobs] == [0, -1, -2]


def test_several_replies(server: SseServer) -> None:
    pieces = [
        chunk({"content": "b"}, index=1, tokens=1),
        chunk({"content": "a"}, index=0, tokens=1),
        chunk({"content": "c"}, index=0, tokens=2),
        chunk({"content": ""}, "stop", index=0, tokens=2),
        chunk({"content": ""}, "length", index=1, tokens=1),
    ]
    server.answers = [Answer(pieces=pieces)]
    done = answer(server, Request(prompt=HI, params=SamplingParams(n=2)))
    assert server.asked[-1].body["parameters"]["n"] == 2
    assert (done.text, done.others[0].text) == ("ac", "b")
    assert [c.usage.completion_tokens for c in (done, *done.others)] == [2, 1]
    assert done.others[0].finish_reason == "length"


def test_older_and_other_shapes(server: SseServer) -> None:
    def old(text: str, finish: str) -> bytes:
        return event({"output": {"text": text, "finish_reason": finish}, "usage": {"output_tokens": 2}})

    server.answers = [Answer(pieces=[old("Hel", "null"), old("Hello", "null"), old("Hello", "stop")])]
    assert answer(server).text == "Hello"
    parts = [chunk({"content": [{"text": "Hi"}]}), chunk({"content": []}, "stop")]
    usage = event({"output": {"choices": []}, "usage": {"input_tokens": 4, "output_tokens": 6}})
    server.answers = [Answer(pieces=[*parts, usage])]
    done = answer(server)
    assert (done.text, done.usage.prompt_tokens, done.usage.completion_tokens) == ("Hi", 4, 6)


QUOTA = {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded.", "request_id": "r"}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            refusal(401, "InvalidApiKey", "Invalid API-key provided."),
            r"401 \(Invalid API-key provided\); give an API key, or set DASHSCOPE_API_KEY",
        ),
        (
            refusal(404, "ModelNotFound", "Model can not be found."),
            "does not have this model .*check its name",
        ),
        (refusal(400, "InvalidParameter", "Model not exist."), "does not have this model .*check its name"),
        (refusal(400, "InvalidParameter", "Temperature should be in [0.0, 2.0)"), "Temperature should be"),
        (refusal(500, "InternalError.Algo", "boom"), r"failed with status 500 \(boom\)"),
        (
            Answer(
                status=400, pieces=[event({"code": "Arrearage", "message": "Access denied."}, "error", 400)]
            ),
            r"status 400 \(Access denied\)",
        ),
        (Answer(pieces=[*said("x")[:1], event(QUOTA, "error", 429)]), "ended the answer .* Allocated quota"),
        (
            Answer(status=404, kind="text/html", pieces=[b"<html>"]),
            "has no /api/v1/services.*DashScope's API",
        ),
        (Answer(kind="text/html", pieces=[b"<html>"]), "text/html .*DashScope's API"),
        (Answer(pieces=said("x", "y")[:2], is_cut=True), "before its answer was complete"),
        (Answer(pieces=said("x", "y")[:2]), "broke off"),
        (Answer(pieces=[event("{nope")]), "not JSON"),
        (Answer(pieces=[event({"choices": []})]), "not as DashScope says"),
        (Answer(pieces=[event({"output": {"choices": [7]}})]), "not as DashScope says"),
        (Answer(pieces=[chunk({"content": "x"}, index=4)]), "not as DashScope says"),
        (Answer(pieces=[event({"output": []})]), "not as DashScope says"),
    ],
)
def test_errors_name_the_server_and_a_cure(server: SseServer, broken: Answer, words: str) -> None:
    server.answers = [broken]
    with pytest.raises(RemoteError, match=words) as caught:
        ask(server)
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1


def test_a_wrong_key(server: SseServer) -> None:
    server.answers = [refusal(401, "InvalidApiKey", "Invalid API-key provided.")]
    with pytest.raises(RemoteError, match="check the API key"):
        ask(server, api_key="wrong")


def test_a_prompt_too_long_has_its_own_error(server: SseServer) -> None:
    message = "Range of input length should be [1, 6000]"
    for broken in (
        refusal(400, "InvalidParameter", message),
        Answer(pieces=[event({"code": "InvalidParameter", "message": message}, "error", 400)]),
    ):
        server.answers = [broken]
        with pytest.raises(PromptTooLongError, match="forget earlier turns"):
            ask(server)


def test_a_throttled_request_is_sent_once_more(server: SseServer) -> None:
    slow_down = refusal(429, "Throttling.RateQuota", "Requests rate limit exceeded", Retry_After="0.1")
    server.answers = [slow_down, Answer(pieces=said("x"))]
    assert answer(server).text == "x"
    assert len(server.asked) == 2
    server.answers = [slow_down]
    with pytest.raises(RemoteError, match=r"too many requests \(Requests rate limit exceeded"):
        ask(server)
    assert len(server.asked) == 4


@pytest.mark.parametrize("repeats", [False, True])
def test_abort_hangs_up(server: SseServer, repeats: bool) -> None:
    messages = [{"content": letter} for letter in "abcdefgh" * 20]
    pieces = pieces_of(messages, repeats=repeats)
    server.answers = [Answer(pieces=pieces, pause=lambda at: time.sleep(0.02))]
    backend = open_dashscope("qwen-plus", url=server.url)
    arrived: queue.SimpleQueue[Delta | BaseException] = queue.SimpleQueue()
    job = backend.submit(Request(prompt=HI), arrived.put)
    assert isinstance(arrived.get(timeout=5), Delta)
    job.abort()
    assert server.hung_up.wait(5)
    while backend.stats().running:
        time.sleep(0.01)
    deltas = backend.stream([Request(prompt=HI)])
    server.hung_up.clear()
    next(deltas)
    deltas.close()  # type: ignore[attr-defined]
    assert server.hung_up.wait(5)
