"""The backend for servers elsewhere, against a real server on the loopback that can misbehave."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenkit.backends.openai_http import open_openai
from qwenkit.core.errors import InputError, PromptTooLongError, RemoteError
from qwenkit.core.sampling import Constraint
from qwenkit.core.types import (
    Completion,
    Delta,
    Message,
    Request,
    SamplingParams,
    ToolCallDelta,
    ToolSpec,
    collect,
)
from tests.support.backends import EVERY_SETTING
from tests.support.sse_server import (
    Answer,
    Seen,
    SseServer,
    as_json,
    chat_chunk,
    chat_events,
    error,
    event,
    sse_server,
    tls_server,
)

HI = (Message("user", "hi"),)


@pytest.fixture
def server() -> Iterator[SseServer]:
    with sse_server() as script:
        yield script


def ask(server: SseServer, request: Request | None = None, **options: Any) -> list[Delta]:
    backend = open_openai(server.url, timeout=5, **options)
    return list(backend.stream([request or Request(prompt=HI)]))


def answer(server: SseServer, request: Request | None = None, **options: Any) -> Completion:
    return collect(ask(server, request, **options))


def body_of(server: SseServer, request: Request) -> dict[str, Any]:
    ask(server, request)
    return dict(server.asked[-1].body)


def test_a_reply_streams(server: SseServer) -> None:
    deltas = ask(server)
    assert [d.text for d in deltas] == ["Hel", "lo", ""]
    last = deltas[-1]
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 3)
    seen = server.asked[-1]
    assert (seen.method, seen.path) == ("POST", "/v1/chat/completions")
    assert seen.body == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "hi"}],
    }


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_forms_of_the_address(server: SseServer, end: str) -> None:
    backend = open_openai(server.url + end)
    assert backend.info.details["url"] == server.url
    assert server.seen[-1].path == "/v1/models"
    without_scheme = open_openai(server.url.removeprefix("http://") + end)
    assert without_scheme.info.device == server.url


def test_a_path_before_v1_stays(server: SseServer) -> None:
    list(open_openai(f"{server.url}/api/v1").stream([Request(prompt=HI)]))
    assert [s.path for s in server.seen] == ["/api/v1/models", "/api/v1/chat/completions"]


@pytest.mark.parametrize(
    "url", ["", "http://", "ftp://host", "http://host:port", "http://u:p@host", "http://host?a=1"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError):
        open_openai(url)


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 8192}, 8192),
        ({"meta": {"n_ctx_train": 2048, "n_vocab": 99}}, 2048),
        ({"max_model_len": None}, 0),
        ({}, 0),
    ],
)
def test_info(server: SseServer, entry: dict[str, Any], context: int) -> None:
    server.models = as_json({"data": [{"id": "a/b", **entry}, {"id": "lora", "parent": "a/b"}]})
    backend = open_openai(server.url)
    assert (backend.info.model, backend.info.context_length) == ("a/b", context)
    assert backend.adapters == ("lora",)
    assert backend.info.can_chat
    assert open_openai(server.url, model="other").info.model == "other"


def test_a_server_without_a_list_needs_a_name(server: SseServer) -> None:
    server.models = error(404, "not found")
    assert answer(server, model="mine").text == "Hello"
    with pytest.raises(RemoteError, match=r"/v1/models"):
        open_openai(server.url)
    server.models = as_json({"data": []})
    with pytest.raises(RemoteError, match="lists no models"):
        open_openai(server.url)
    server.models = as_json([1])
    with pytest.raises(RemoteError, match="not a list of models"):
        open_openai(server.url)


def test_the_key_is_sent(server: SseServer) -> None:
    ask(server, api_key="secret")
    assert {s.headers.get("Authorization") for s in server.seen} == {"Bearer secret"}
    ask(server)
    assert "Authorization" not in server.seen[-1].headers
    with pytest.raises(InputError, match="API key"):
        open_openai(server.url, api_key="se\ncret")


def test_every_setting_is_sent(server: SseServer) -> None:
    body = body_of(server, Request(prompt=HI, params=EVERY_SETTING))
    sent = {k: v for k, v in body.items() if k not in ("model", "stream", "stream_options", "messages")}
    assert sent == {
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "logit_bias": {"5": 1.5},
        "bad_words": ["no"],
        "allowed_token_ids": [1, 2],
        "seed": 3,
        "stop": ["x"],
        "stop_token_ids": [8],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": True,
        "top_logprobs": 2,
    }


def test_what_surrounds_a_request_is_sent(server: SseServer) -> None:
    request = Request(
        prompt=(*HI, Message("assistant", "I ", reasoning="hm")),
        tools=(ToolSpec(name="f"),),
        template_options={"enable_thinking": False},
        continue_final=True,
        adapter="lora",
    )
    body = body_of(server, request)
    assert body["model"] == "lora"
    assert body["tools"][0]["function"]["name"] == "f"
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["messages"][1] == {"role": "assistant", "content": "I ", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (Constraint(kind="json_object"), {"response_format": {"type": "json_object"}}),
        (Constraint(kind="regex", value="a+"), {"structured_outputs": {"regex": "a+"}}),
        (Constraint(kind="choice", value=["a", "b"]), {"structured_outputs": {"choice": ["a", "b"]}}),
        (Constraint(kind="grammar", value="start: A"), {"structured_outputs": {"grammar": "start: A"}}),
        (
            Constraint(kind="json_schema", value='{"type": "object"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "reply", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
    ],
)
def test_constraints_are_sent(server: SseServer, constraint: Constraint, expected: dict[str, Any]) -> None:
    body = body_of(server, Request(prompt=HI, params=SamplingParams(constraint=constraint)))
    assert expected.items() <= body.items()


@pytest.mark.parametrize(
    "request_",
    [
        Request(prompt=HI, params=SamplingParams(stop_token_sequences=((1, 2),))),
        Request(prompt=HI, params=SamplingParams(prompt_logprobs=1)),
        Request(prompt=HI, params=SamplingParams(max_tokens=0)),
        Request(prompt=(1, 2), template_options={"a": 1}),
        Request(prompt=()),
    ],
)
def test_what_cannot_be_said_is_refused_before_anything_is_sent(server: SseServer, request_: Request) -> None:
    backend = open_openai(server.url)
    with pytest.raises(InputError):
        backend.stream([Request(prompt=HI), request_])
    assert server.asked == []


def test_token_ids_go_to_the_text_endpoint(server: SseServer) -> None:
    logprobs = {
        "tokens": ["token_id:11", "b"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"token_id:11": -0.5}, None],
    }
    choice = {"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "length"}
    server.answers = [Answer(pieces=[event({"choices": [choice]}), event("[DONE]")])]
    done = answer(server, Request(prompt=(4, 5), params=SamplingParams(logprobs=1)))
    seen = server.asked[-1]
    assert (seen.path, seen.body["prompt"], seen.body["logprobs"]) == ("/v1/completions", [4, 5], 1)
    assert (done.text, done.finish_reason) == ("ab", "length")
    assert [(p.token_id, p.logprob, p.top) for p in done.logprobs] == [
        (11, -0.5, ((11, -0.5),)),
        (-1, -1.0, ()),
    ]


def test_thought_calls_and_logprobs(server: SseServer) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a": 1}'}}
    entry = {
        "token": "x",
        "token_id": 5,
        "logprob": -0.1,
        "top_logprobs": [{"token": "token_id:6", "logprob": -2.0}],
    }
    server.answers = [
        Answer(
            pieces=[
                chat_chunk({"reasoning_content": "let me"}),
                chat_chunk({"reasoning": " see"}),
                chat_chunk({"content": "x"}, logprobs={"content": [entry]}),
                chat_chunk({"tool_calls": [call]}),
                chat_chunk({"tool_calls": [more]}),
                chat_chunk({}, finish="tool_calls", stop_reason="</f>"),
                event("[DONE]"),
            ]
        )
    ]
    deltas = ask(server)
    assert "".join(d.reasoning for d in deltas) == "let me see"
    assert [c for d in deltas for c in d.tool_calls] == [
        ToolCallDelta(index=0, id="c1", name="f"),
        ToolCallDelta(index=0, arguments='{"a": 1}'),
    ]
    assert (deltas[2].token_ids, deltas[2].logprobs[0].top) == ((5,), ((6, -2.0),))
    assert (deltas[-1].finish_reason, deltas[-1].stop) == ("stop", "</f>")
    # No usage came, so the pieces count.
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 5


def test_thought_as_text(server: SseServer) -> None:
    pieces = [
        chat_chunk({"reasoning_content": "a"}),
        chat_chunk({"reasoning_content": "b"}),
        *chat_events("answer"),
    ]
    server.answers = [Answer(pieces=pieces)]
    assert answer(server, inline_reasoning=True).text == "<think>\nab\n</think>\n\nanswer"
    pieces = [
        chat_chunk({"reasoning_content": "a"}),
        chat_chunk({}, finish="length"),
        event("[DONE]"),
    ]
    server.answers = [Answer(pieces=pieces)]
    assert answer(server, inline_reasoning=True).text == "<think>\na\n</think>\n\n"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "stop"),
        ("function_call", "stop"),
        ("eos", "stop"),
    ],
)
def test_finish_reasons(server: SseServer, theirs: str, ours: str) -> None:
    server.answers = [Answer(pieces=chat_events("x", finish=theirs))]
    assert answer(server).finish_reason == ours


def test_several_replies(server: SseServer) -> None:
    pieces = [
        chat_chunk({"content": "b"}, index=1),
        chat_chunk({"content": "a"}),
        chat_chunk({"content": "a"}),
        chat_chunk({}, finish="stop"),
        chat_chunk({}, finish="length", index=1),
        event({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}),
        event("[DONE]"),
    ]
    server.answers = [Answer(pieces=pieces)]
    done = answer(server, Request(prompt=HI, params=SamplingParams(n=2)))
    assert (done.text, done.others[0].text) == ("aa", "b")
    assert [c.usage.completion_tokens for c in (done, *done.others)] == [2, 1]
    assert done.others[0].finish_reason == "length"


def test_many_requests_together_keep_apart(server: SseServer) -> None:
    def echo(seen: Seen) -> Answer:
        return Answer(pieces=chat_events(*seen.body["messages"][0]["content"]))

    server.reply = echo
    backend = open_openai(server.url, max_parallel=4)
    words = [f"word{i}" for i in range(20)]
    texts = dict.fromkeys(range(20), "")
    for delta in backend.stream([Request(prompt=(Message("user", w),)) for w in words]):
        texts[delta.index] += delta.text
    assert list(texts.values()) == words
    stats = backend.stats()
    assert (stats.running, stats.prompt_tokens, stats.generated_tokens) == (0, 140, 60)


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_however_they_are_cut(server: SseServer, has_length: bool, line_end: bytes) -> None:
    whole = b": hello\n\n" + b"".join(chat_events("二十", "x")).replace(b"data: ", b"data:")
    whole = whole.replace(b"\n", line_end)
    pieces = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    server.answers = [Answer(pieces=pieces, has_length=has_length)]
    assert answer(server).text == "二十x"


def test_a_stream_without_done_is_whole_when_its_replies_are(server: SseServer) -> None:
    server.answers = [Answer(pieces=chat_events("x")[:-1])]
    assert answer(server).text == "x"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Answer(pieces=chat_events("x", "y")[:2], is_cut=True), "before its answer was complete"),
        (Answer(pieces=chat_events("x")[:-1], is_cut=True), "before its answer was complete"),
        (Answer(pieces=chat_events("x", "y")[:2]), "broke off"),
        (Answer(pieces=[*chat_events("x")[:2], event("[DONE]")]), "finish_reason"),
        (Answer(pieces=[event("{nope")]), "not JSON"),
        (Answer(pieces=[event("[1]")]), "no object"),
        (Answer(pieces=[event({"choices": [7]})]), "not as the OpenAI API says"),
        (Answer(pieces=[event({"choices": [{"index": 3, "delta": {}}]})]), "not as the OpenAI API says"),
        (Answer(pieces=[event({"error": {"message": "out of memory."}})]), "out of memory"),
        (Answer(kind="text/html", pieces=[b"<html>"]), "text/html"),
        (error(401, "Invalid key"), r"401 \(Invalid key\); give an API key, or set QWENKIT_API_KEY"),
        (error(404, "The model `x` does not exist."), "does not have this model"),
        (Answer(status=404, kind="text/html", pieces=[b"<html>"]), "has no /v1/chat/completions;"),
        (error(400, "bad top_k"), "refuses the request with status 400"),
        (error(500, "boom"), r"failed with status 500 \(boom\)"),
        (Answer(status=502, kind="text/plain", pieces=[b"bad gateway"]), "bad gateway"),
        (error(308, "", Location="http://there/v1"), "http://there/v1"),
    ],
)
def test_errors_name_the_server_and_a_cure(server: SseServer, broken: Answer, words: str) -> None:
    server.answers = [broken]
    with pytest.raises(RemoteError, match=words) as caught:
        ask(server)
    text = str(caught.value)
    assert "\n" not in text
    assert len(server.asked) == 1
    if "API says" not in text and "finish_reason" not in text:
        assert server.url in text


@pytest.mark.parametrize("status", [400, 413, 200])
def test_a_prompt_too_long_has_its_own_error(server: SseServer, status: int) -> None:
    message = "This model's maximum context length is 512 tokens. However, you requested 600."
    server.answers = [
        error(status, message) if status != 200 else Answer(pieces=[event({"error": {"message": message}})])
    ]
    with pytest.raises(PromptTooLongError, match=r"maximum context length is 512 .*forget earlier turns"):
        ask(server)


def test_a_busy_server_is_asked_once_more(server: SseServer) -> None:
    server.answers = [error(429, "slow down", Retry_After="0.2"), Answer(pieces=chat_events("x"))]
    started = time.monotonic()
    assert answer(server).text == "x"
    assert time.monotonic() - started > 0.19
    assert len(server.asked) == 2
    server.answers = [error(429, "slow down", Retry_After="0")]
    with pytest.raises(RemoteError, match="too many requests"):
        ask(server)
    assert len(server.asked) == 4
    server.answers = [error(429, "slow down", Retry_After="3600")]
    with pytest.raises(RemoteError, match="again in 3600 seconds"):
        ask(server)
    assert len(server.asked) == 5


def test_the_newer_name_of_the_limit(server: SseServer) -> None:
    message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    server.answers = [error(400, message), Answer(pieces=chat_events("x"))]
    request = Request(prompt=HI, params=SamplingParams(max_tokens=5))
    assert answer(server, request).text == "x"
    assert server.asked[0].body["max_tokens"] == server.asked[1].body["max_completion_tokens"] == 5
    assert "max_tokens" not in server.asked[1].body
    server.answers = [error(400, message)]
    with pytest.raises(RemoteError, match="max_completion_tokens"):
        ask(server)
    assert len(server.asked) == 3


def test_a_refusal_is_text(server: SseServer) -> None:
    server.answers = [
        Answer(
            pieces=[chat_chunk({"refusal": "I will not."}), chat_chunk({}, finish="stop"), event("[DONE]")]
        )
    ]
    assert answer(server).text == "I will not."


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RemoteError, match=f"nothing listens at {url}"):
            open_openai(url)


def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(RemoteError, match="host name"):
        open_openai("http://qwenkit.invalid:1")


def test_https_where_there_is_none(server: SseServer) -> None:
    with pytest.raises(RemoteError, match="does the server speak https"):
        open_openai(server.url.replace("http://", "https://"))


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(tmp_path) as (server, certificate):
        with pytest.raises(
            RemoteError, match=r"is not trusted \(self.signed certificate\); set SSL_CERT_FILE"
        ):
            open_openai(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert answer(server).text == "Hello"


def test_silence_has_a_limit(server: SseServer) -> None:
    release = threading.Event()
    server.answers = [Answer(pieces=chat_events("x"), pause=lambda at: release.wait(5) and None)]
    backend = open_openai(server.url, timeout=0.2)
    try:
        with pytest.raises(RemoteError, match=r"longer timeout than 0\.2 s"):
            list(backend.stream([Request(prompt=HI)]))
    finally:
        release.set()


@pytest.mark.parametrize("before_answer", [True, False])
def test_abort_hangs_up_and_nothing_comes_any_more(server: SseServer, before_answer: bool) -> None:
    def wait(at: int) -> None:
        if before_answer or at > 1:
            time.sleep(0.03)

    server.answers = [Answer(pieces=chat_events(*"abcdefgh" * 20), pause=wait)]
    backend = open_openai(server.url)
    arrived: queue.SimpleQueue[Delta | BaseException] = queue.SimpleQueue()
    job = backend.submit(Request(prompt=HI), arrived.put)
    assert job.prompt_tokens == 0
    if before_answer:
        while not server.asked:
            time.sleep(0.005)
    else:
        assert isinstance(arrived.get(timeout=5), Delta)
    job.abort()
    while not arrived.empty():
        arrived.get()
    assert server.hung_up.wait(5)
    time.sleep(0.05)
    assert arrived.empty()
    assert backend.stats().running == 0
    job.abort()


def test_closing_the_stream_hangs_up(server: SseServer) -> None:
    server.answers = [Answer(pieces=chat_events(*"abcdefgh" * 20), pause=lambda at: time.sleep(0.01))]
    deltas = open_openai(server.url).stream([Request(prompt=HI)])
    next(deltas)
    deltas.close()  # type: ignore[attr-defined]
    assert server.hung_up.wait(5)


def test_a_sink_may_abort(server: SseServer) -> None:
    backend = open_openai(server.url)
    got: list[Delta | BaseException] = []
    jobs: list[Any] = []
    ready = threading.Event()

    def sink(new: Delta | BaseException) -> None:
        ready.wait(5)
        got.append(new)
        jobs[0].abort()

    jobs.append(backend.submit(Request(prompt=HI), sink))
    ready.set()
    time.sleep(0.2)
    assert len(got) == 1


def test_a_closed_backend(server: SseServer) -> None:
    backend = open_openai(server.url)
    backend.close()
    with pytest.raises(InputError, match="closed"):
        backend.submit(Request(prompt=HI), lambda new: None)


def test_logprobs(server: SseServer) -> None:
    scored = {"choices": [{"logprobs": {"token_logprobs": [None, -1.0, -2.0, -9.0]}}]}
    server.answers = [as_json(scored)]
    backend = open_openai(server.url)
    assert backend.logprobs([[1, 2, 3], [4], []]) == [[-1.0, -2.0], [], []]
    body = server.asked[0].body
    assert (body["prompt"], body["echo"], body["max_tokens"]) == ([1, 2, 3], True, 0)
    server.answers = [error(400, "max_tokens must be at least 1"), as_json(scored)]
    assert backend.logprobs([[1, 2, 3]]) == [[-1.0, -2.0]]
    assert server.asked[-1].body["max_tokens"] == 1


@pytest.mark.parametrize("given", [{"choices": [{"text": "x"}]}, {"choices": []}, {}, []])
def test_logprobs_that_the_server_does_not_give(server: SseServer, given: Any) -> None:
    server.answers = [as_json(given)]
    with pytest.raises(RemoteError, match="log-probabilities of a prompt"):
        open_openai(server.url).logprobs([[1, 2]])


def test_embed(server: SseServer) -> None:
    rows = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]
    server.answers = [as_json({"data": rows})]
    backend = open_openai(server.url)
    assert backend.embed([[1], [2]]) == [[0.6, 0.8], [0.0, 1.0]]
    server.answers = [as_json({"data": rows[:1]})]
    with pytest.raises(RemoteError, match="one embedding per text"):
        backend.embed([[1], [2]])


def test_adapters_are_loaded_on_the_server(server: SseServer) -> None:
    backend = open_openai(server.url)
    with pytest.raises(InputError, match="loaded there"):
        backend.load_adapter("a", Path("folder"))
    with pytest.raises(InputError, match="unloaded there"):
        backend.unload_adapter("a")


def test_a_proxy_is_used_but_not_for_this_machine(server: SseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://me:p%40ss@"))
    backend = open_openai("http://far.invalid:81/v1")
    assert server.seen[-1].path == "http://far.invalid:81/v1/models"
    assert server.seen[-1].headers["Proxy-Authorization"] == "Basic bWU6cEBzcw=="
    assert collect(list(backend.stream([Request(prompt=HI)]))).text == "Hello"
    ask(server)
    assert server.seen[-1].path == "/v1/chat/completions"
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(InputError, match="not an http:// proxy"):
        open_openai("http://far.invalid:81/v1")
