"""The backend for servers elsewhere and the load generator against our own server: what is sent is what arrives."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from qwenkit.backends.openai_http import open_openai
from qwenkit.backends.remote_server import parse_server
from qwenkit.backends.scripted import EchoBackend
from qwenkit.bench.load import LoadOptions, run_load
from qwenkit.bench.report import make_report
from qwenkit.bench.workload import Span, Workload
from qwenkit.core.errors import RemoteError
from qwenkit.core.types import Constraint, Message, Request, SamplingParams, ToolCall, ToolSpec, collect
from tests.support.backends import EVERY_SETTING
from tests.support.http import live, scripted

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CONVERSATION = (
    Message("system", "be brief"),
    Message("user", "what is 1+1?"),
    Message(
        "assistant", "", reasoning="hm", tool_calls=(ToolCall(id="c1", name="add", arguments='{"a": 1}'),)
    ),
    Message("tool", "2", tool_call_id="c1"),
)


@pytest.mark.parametrize(
    "request_",
    [
        Request(prompt=(Message("user", "hi"),), params=replace(EVERY_SETTING, n=2)),
        Request(prompt=(1, 2, 3), params=replace(EVERY_SETTING, n=2)),
        Request(prompt=CONVERSATION),
        *(
            Request(prompt=(Message("user", "hi"),), params=SamplingParams(constraint=constraint))
            for constraint in (
                Constraint(kind="json_object"),
                Constraint(kind="json_schema", value=SCHEMA),
                Constraint(kind="regex", value="a+"),
                Constraint(kind="choice", value=("a", "b")),
                Constraint(kind="grammar", value='start: "a"'),
            )
        ),
    ],
)
def test_a_request_arrives_as_it_was(request_: Request) -> None:
    with live(scripted("Hello, world!")) as server:
        collect(list(open_openai(server.url).stream([request_])))
        arrived = server.backend.requests[-1]
    assert arrived.prompt == request_.prompt
    assert arrived.params == request_.params
    assert arrived.adapter is None


def test_tools_arrive() -> None:
    tool = ToolSpec(name="add", description="adds", parameters=SCHEMA)
    with live(scripted("Hello")) as server:
        request = Request(prompt=(Message("user", "hi"),), tools=(tool,))
        collect(list(open_openai(server.url).stream([request])))
        assert server.backend.requests[-1].tools == (tool,)


def test_errors_of_the_server_are_told() -> None:
    with live(scripted("Hello")) as server:
        backend = open_openai(server.url)
        with pytest.raises(RemoteError, match="does not have this model"):
            list(backend.stream([Request(prompt=(Message("user", "hi"),), adapter="nobody")]))
        with pytest.raises(RemoteError, match="does not have this model"):
            list(open_openai(server.url, model="nobody").stream([Request(prompt=(1, 2))]))


def test_scores_and_embeddings() -> None:
    with live(scripted("Hello")) as server:
        backend = open_openai(server.url)
        assert backend.logprobs([[1, 2, 3], [4, 5]]) == [[-0.5, -0.5], [-0.5]]
        found = backend.embed([[1, 2, 3], [4, 5]])
        assert [sum(x * x for x in row) for row in found] == pytest.approx([1.0, 1.0])


def test_load_with_every_text_its_own() -> None:
    backend = EchoBackend(chunk=5)
    with live(backend) as server:
        workload = Workload(model=backend.info.model, prompt_tokens=Span(3, 12), output_tokens=Span(500, 500))
        started = time.monotonic()
        options = LoadOptions(num_requests=60, concurrency=20, verify=5)
        result = run_load(parse_server(server.url), workload, options)
        assert time.monotonic() - started < 30
    report = make_report(result)
    assert (report.ok, report.failed, report.num_verified, list(report.mismatches)) == (60, {}, 5, [])
    for record in result.records:
        assert record.text == workload.body(record.index)["messages"][0]["content"]
