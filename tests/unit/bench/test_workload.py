"""What a load test asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenkit.bench.workload import Span, Workload, read_dataset
from qwenkit.core.errors import InputError


def content(workload: Workload, index: int) -> str:
    return str(workload.body(index)["messages"][0]["content"])


def test_a_request_depends_on_seed_and_number_alone() -> None:
    workload = Workload(model="m", prompt_tokens=Span(5, 50), output_tokens=Span(3, 30))
    bodies = [workload.body(i) for i in range(20)]
    assert [workload.body(i) for i in reversed(range(20))] == bodies[::-1]
    assert len({json.dumps(b["messages"]) for b in bodies}) == 20
    lengths = {len(content(workload, i).split()) for i in range(20)}
    assert 5 <= min(lengths) < max(lengths) <= 50
    assert all(3 <= b["max_tokens"] <= 30 for b in bodies)
    assert Workload(model="m", seed=1).body(0) != Workload(model="m").body(0)
    assert bodies[0]["stream_options"] == {"include_usage": True}
    assert not bodies[0].keys() & {"temperature", "ignore_eos", "seed"}


def test_a_shared_prefix_comes_first() -> None:
    workload = Workload(model="m", prompt_tokens=Span(4, 4), shared_prefix=10)
    words = [content(workload, i).split() for i in range(3)]
    assert [len(w) for w in words] == [14, 14, 14]
    assert words[0][:10] == words[1][:10] == words[2][:10]
    assert words[0][10:] != words[1][10:]


def test_settings_are_sent() -> None:
    workload = Workload(
        model="m", endpoint="completions", temperature=0.0, ignore_eos=True, seed=4, sends_seed=True
    )
    body = workload.body(0)
    assert isinstance(body["prompt"], str)
    assert (body["temperature"], body["ignore_eos"], body["seed"]) == (0.0, True, 4)


@pytest.mark.parametrize(("text", "span"), [("7", Span(7, 7)), ("3:9", Span(3, 9))])
def test_spans(text: str, span: Span) -> None:
    assert Span.parse("--x", text) == span
    assert str(span) == text


@pytest.mark.parametrize("text", ["", "0", "-1", "9:3", "a", "1:2:3", "0:5", "1.5"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(InputError, match=r"--x .* is not possible"):
        Span.parse("--x", text)


def test_a_dataset_is_asked_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"messages": [{"role": "system", "content": "s"}]}\n')
    workload = Workload(model="m", dataset=read_dataset(file, "chat"))
    assert content(workload, 0) == content(workload, 2) == "a"
    assert workload.body(1)["messages"] == [{"role": "system", "content": "s"}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "is empty"),
        ("{", "line 1: not JSON"),
        ('{"prompt": ""}', 'needs "prompt"'),
        ("[]", 'needs "prompt"'),
        ('{"messages": []}', 'needs "prompt"'),
        ('{"messages": [{"role": "king", "content": ""}]}', "role 'king'"),
    ],
)
def test_what_is_no_dataset(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(line)
    with pytest.raises(InputError, match=words):
        read_dataset(file, "chat")


def test_messages_need_the_chat_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    entry: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    file.write_text(json.dumps(entry))
    with pytest.raises(InputError, match="--endpoint chat"):
        read_dataset(file, "completions")
