"""Ollama's protocol: options as the engine gets them, lines, calls, thoughts, counts and durations, models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.core.errors import NumericsError
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.http import Answer, Live, live, scripted, until

USER = {"role": "user", "content": "hi"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(server: Live, *, stream: bool = False, **fields: Any) -> Answer:
    return server.ask("/api/chat", {"model": "scripted", "messages": [USER], "stream": stream} | fields)


def generate(server: Live, *, stream: bool = False, **fields: Any) -> Answer:
    return server.ask("/api/generate", {"model": "scripted", "prompt": "hi", "stream": stream} | fields)


def lines(answer: Answer) -> list[Any]:
    """The values of a stream."""
    assert answer.headers["content-type"] == "application/x-ndjson"
    *found, last = answer.body.decode().split("\n")
    assert last == ""
    return [json.loads(each) for each in found]


def params(server: Live, **options: Any) -> Any:
    """The settings that a chat's options give the engine."""
    answer = chat(server, options=options)
    assert answer.status == 200, answer.body
    return server.backend.requests[-1].params


def test_a_chat(server: Live) -> None:
    value = chat(server).json
    assert value["message"] == {"role": "assistant", "content": "Hello, world!"}
    assert (value["model"], value["done"], value["done_reason"]) == ("scripted", True, "stop")
    assert (value["prompt_eval_count"], value["eval_count"]) == (21, 13)
    assert chat(server, options={"num_predict": 5}).json["done_reason"] == "length"


def test_durations_add_up() -> None:
    with live(scripted("Hello!", delay=0.02)) as server:
        value = chat(server).json
    parts = [value[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(value["total_duration"], rel=0.01)
    assert value["eval_duration"] > 15e6  # the delay before the second piece, which no measure may leave out


def test_streams_are_what_comes_without_being_asked(server: Live) -> None:
    found = lines(server.ask("/api/chat", {"model": "scripted", "messages": [USER]}))
    assert "".join(each["message"]["content"] for each in found) == "Hello, world!"
    assert [each["done"] for each in found] == [False] * (len(found) - 1) + [True]
    assert found[-1]["message"] == {"role": "assistant", "content": ""}
    assert found[-1]["eval_count"] == 13
    assert all(each["created_at"].endswith("Z") for each in found)
    single = lines(server.ask("/api/generate", {"model": "scripted", "prompt": "hi"}))
    assert "".join(each["response"] for each in single) == "Hello, world!"


def test_options_reach_the_engine(server: Live) -> None:
    found = params(
        server,
        num_predict=7,
        temperature=0.5,
        top_k=3,
        top_p=0.8,
        min_p=0.1,
        seed=4,
        stop=["wor"],
        repeat_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        repeat_last_n=-1,
    )
    assert (found.max_tokens, found.temperature, found.top_k, found.top_p, found.min_p) == (
        7,
        0.5,
        3,
        0.8,
        0.1,
    )
    assert (found.seed, found.stop) == (4, ("wor",))
    assert (found.repetition_penalty, found.presence_penalty, found.frequency_penalty) == (1.2, 0.3, 0.4)


def test_options_that_mean_none(server: Live) -> None:
    found = params(server, num_predict=-1, seed=-1, top_k=-1, stop="x")
    assert (found.max_tokens, found.seed, found.top_k, found.stop) == (None, None, 0, ("x",))
    assert params(server, num_predict=-2).max_tokens is None
    found = params(server, repeat_last_n=0, repeat_penalty=1.5)
    assert (found.repetition_penalty, found.presence_penalty, found.frequency_penalty) == (1.0, 0.0, 0.0)
    found = params(server)
    assert (found.temperature, found.top_p, found.repetition_penalty) == (None, None, None)


def test_options_without_effect_are_named(server: Live) -> None:
    answer = chat(
        server,
        keep_alive="5m",
        options={"num_ctx": 512, "num_thread": 4, "mirostat": 0, "tfs_z": 1.0, "repeat_last_n": 64},
    )
    named = set(answer.headers["x-ignored-fields"].split(", "))
    wanted = {"num_ctx", "num_thread", "mirostat", "tfs_z", "repeat_last_n"}
    assert named == {"keep_alive"} | {f"options.{name}" for name in wanted}


@pytest.mark.parametrize("name", ["scripted", "scripted:latest"])
def test_names_with_and_without_a_tag(server: Live, name: str) -> None:
    assert chat(server, model=name).json["model"] == name
    assert server.ask("/api/show", {"model": name}).status == 200
    assert server.ask("/api/show", {"name": name}).status == 200


def test_adapters_are_models(tmp_path: Path) -> None:
    backend = scripted("x")
    backend.load_adapter("poet", tmp_path)
    with live(backend) as server:
        assert chat(server, model="poet:latest").status == 200
        assert backend.requests[-1].adapter == "poet"
        models = server.ask("/api/tags").json["models"]
    assert [m["name"] for m in models] == ["scripted:latest", "poet:latest"]
    assert models[1]["details"]["parent_model"] == "scripted:latest"


def test_roles_results_and_a_beginning(server: Live) -> None:
    messages = [
        {"role": "SYSTEM", "content": "Be short."},
        USER,
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "é"}}}]},
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
        {"role": "assistant", "content": "It is", "thinking": "hm"},
    ]
    assert chat(server, messages=messages).status == 200
    request = server.backend.requests[-1]
    found = request.prompt
    assert [m.role for m in found] == ["system", "user", "assistant", "tool", "assistant"]
    assert found[2].tool_calls[0].arguments == '{"city": "é"}'
    assert (found[3].name, found[4].reasoning, request.continue_final) == ("weather", "hm", True)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_whole(stream: bool) -> None:
    with live(scripted("Let me look. " + CALL + CALL)) as server:
        answer = chat(server, tools=[TOOL], stream=stream)
        values = lines(answer) if stream else [answer.json]
    calls = [call for each in values for call in each["message"].get("tool_calls", ())]
    assert [call["function"] for call in calls] == [
        {"index": n, "name": "weather", "arguments": {"city": "Rome"}} for n in range(2)
    ]
    assert len({call["id"] for call in calls}) == 2
    assert "".join(each["message"]["content"] for each in values).strip() == "Let me look."
    assert values[-1]["done_reason"] == "stop"


def test_arguments_that_are_no_object_can_be_seen() -> None:
    with live(scripted('<tool_call>\n{"name": "weather", "arguments": [1]}\n</tool_call>')) as server:
        (call,) = chat(server, tools=[TOOL]).json["message"]["tool_calls"]
    assert call["function"]["arguments"] == {"arguments": "[1]"}


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_apart(thinker: Live, stream: bool) -> None:
    thinker.backend.restart(["<think>\nHm.\n</think>\n\nYes."])
    for ask, path in ((chat, "message"), (generate, "")):
        answer = ask(thinker, stream=stream)
        values = lines(answer) if stream else [answer.json]
        said = [each[path] if path else each for each in values]
        assert "".join(each.get("thinking", "") for each in said).strip() == "Hm."
        assert "".join(each["content" if path else "response"] for each in said) == "Yes."


def test_being_told_to_think(thinker: Live, server: Live) -> None:
    thinker.backend.restart(["Yes."])
    for think, options in (
        (False, {"enable_thinking": False}),
        (True, {"enable_thinking": True}),
        (None, {}),
    ):
        assert chat(thinker, think=think).status == 200
        assert thinker.backend.requests[-1].template_options == options
    assert chat(thinker, think="high").status == 200
    assert chat(server, think=False).status == 200  # it never does
    for think in (True, "low"):
        refused = chat(server, think=think)
        assert (refused.status, "does not support thinking" in refused.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("form", "kind"), [("json", "json_object"), ({"type": "object"}, "json_schema"), ("", None), (None, None)]
)
def test_forms(server: Live, form: Any, kind: str | None) -> None:
    for ask in (chat, generate):
        assert ask(server, format=form).status == 200
        found = server.backend.requests[-1].params.constraint
        assert (found and found.kind) == kind


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: Live, stream: bool) -> None:
    answer = chat(server, logprobs=True, top_logprobs=2, options={"num_predict": 4}, stream=stream)
    values = lines(answer) if stream else [answer.json]
    found = [each for value in values for each in value.get("logprobs", ())]
    assert [each["token"] for each in found] == list("Hell")
    assert [t["token"] for t in found[0]["top_logprobs"]] == ["H", "I"]
    assert "logprobs" not in chat(server).json


def test_a_prompt_is_a_turn_and_the_next_goes_on_from_it(server: Live) -> None:
    first = generate(server, system="Be short.").json
    prompt = server.backend.requests[-1].prompt
    text = ByteTokenizer().decode(prompt)
    assert text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ByteTokenizer().decode(first["context"]) == text + "Hello, world!"
    assert first["prompt_eval_count"] == len(prompt)
    generate(server, prompt="more", context=first["context"])
    wanted = text + "Hello, world!<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    assert ByteTokenizer().decode(server.backend.requests[-1].prompt) == wanted
    streamed = lines(generate(server, stream=True, system="Be short."))
    assert streamed[-1]["context"] == first["context"]


def test_raw_prompts_and_base_models() -> None:
    with live(scripted("x")) as server:
        value = generate(server, raw=True, prompt="<|im_start|>a").json
        assert server.backend.requests[-1].prompt == (256, 97)
        assert "context" not in value

    class Base(ScriptedBackend):
        """Holds no conversations."""

        @property
        def info(self) -> Any:
            return dataclasses.replace(super().info, can_chat=False)

    with live(Base(["x"], tokenizer=ByteTokenizer(chat_template=None))) as server:
        assert generate(server, prompt="ab").json["response"] == "x"
        assert server.backend.requests[-1].prompt == (97, 98)
        assert "base model" in chat(server).json["error"]
        assert server.ask("/api/show", {"model": "scripted"}).json["capabilities"] == ["completion"]


@pytest.mark.parametrize(
    ("keep_alive", "reason"), [(None, "load"), (0, "unload"), ("0", "unload"), ("5m", "load"), (-1, "load")]
)
def test_asking_nothing(server: Live, keep_alive: Any, reason: str) -> None:
    for path, said in (("/api/chat", "message"), ("/api/generate", "response")):
        value = server.ask(path, {"model": "scripted", "keep_alive": keep_alive}).json
        assert (value["done"], value["done_reason"]) == (True, reason)
        assert said in value


def test_long_conversations_lose_their_oldest_turns(server: Live) -> None:
    messages = [
        m
        for n in range(30)
        for m in ({"role": "user", "content": f"{n} " + "x" * 90}, {"role": "assistant", "content": "ok"})
    ]
    messages.append(USER)
    assert chat(server, messages=messages).status == 200
    kept = server.backend.requests[-1].prompt
    assert kept[-1].content == "hi"
    assert 0 < len(kept) < len(messages)
    assert "2048" in chat(server, messages=messages, truncate=False).json["error"]
    assert chat(server, messages=messages[-3:]).status == 200
    assert len(server.backend.requests[-1].prompt) == 3


def test_models(server: Live) -> None:
    (model,) = server.ask("/api/tags").json["models"]
    assert model["name"] == model["model"] == "scripted:latest"
    assert len(model["digest"]) == 64
    (loaded,) = server.ask("/api/ps").json["models"]
    assert (loaded["digest"], loaded["context_length"]) == (model["digest"], 2048)
    shown = server.ask("/api/show", {"model": "scripted"}).json
    assert "im_start" in shown["template"]
    assert shown["model_info"]["scripted.context_length"] == 2048
    assert shown["capabilities"] == ["completion", "tools"]
    assert "temperature" in shown["parameters"]


def test_a_model_that_thinks_says_so(thinker: Live) -> None:
    assert "thinking" in thinker.ask("/api/show", {"model": "scripted"}).json["capabilities"]


def test_sizes_in_few_digits() -> None:
    class Sized(ScriptedBackend):
        """Has details."""

        @property
        def info(self) -> Any:
            details = {
                "num_params": 1_836_828_672,
                "weights_bytes": 10,
                "quantisation": None,
                "format": "gguf",
            }
            return dataclasses.replace(super().info, details=details)

    with live(Sized(["x"])) as server:
        (model,) = server.ask("/api/tags").json["models"]
    assert (model["size"], model["details"]["parameter_size"]) == (10, "1.837B")
    assert (model["details"]["format"], model["details"]["quantization_level"]) == ("gguf", "none")


def test_vectors(server: Live) -> None:
    one = server.ask("/api/embed", {"model": "scripted", "input": "ab"}).json
    several = server.ask("/api/embed", {"model": "scripted", "input": ["ab", "c"]}).json
    assert several["embeddings"][0] == one["embeddings"][0]
    assert (len(several["embeddings"]), several["prompt_eval_count"]) == (2, 3)
    older = server.ask("/api/embeddings", {"model": "scripted", "prompt": "ab"}).json
    assert older == {"embedding": one["embeddings"][0]}
    assert server.ask("/api/embed", {"model": "scripted", "input": []}).json["embeddings"] == []
    assert server.ask("/api/embed", {"model": "scripted", "input": ""}).json["embeddings"] == []
    assert server.ask("/api/embeddings", {"model": "scripted"}).json == {"embedding": []}
    cut = server.ask("/api/embed", {"model": "scripted", "input": "x" * 3000}).json
    assert cut["prompt_eval_count"] == 2048


def test_somebody_is_there(server: Live) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        looked = server.ask(path, method="HEAD")
        assert (looked.status, looked.body) == (200, b"")
    assert server.ask("/").status == 200
    assert server.ask("/api/version").json["version"].count(".") == 2
    # of all protocols that share the path
    assert server.ask("/", method="PUT").headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", ""])
def test_bodies_as_clients_send_them_that_name_no_type(server: Live, kind: str) -> None:
    headers = {"content-type": kind}
    body = {"model": "scripted", "messages": [USER], "stream": False}
    assert server.ask("/api/chat", body, headers=headers).status == 200
    page = server.ask("/api/chat", body, headers=headers | {"origin": "http://example.org"})
    assert (page.status, set(page.json)) == (415, {"error"})


def test_failures() -> None:
    with live(scripted([NumericsError("logits hold NaN")])) as server:
        answer = chat(server)
        assert (answer.status, answer.json) == (500, {"error": "logits hold NaN"})
    with live(scripted(["He", NumericsError("logits hold NaN")])) as server:
        found = lines(chat(server, stream=True))
    assert found[0]["message"]["content"] == "He"
    assert found[-1] == {"error": "logits hold NaN"}
    with live(scripted("x", max_jobs=0)) as server:
        assert generate(server).status == 429


def test_clients_that_leave_end_their_request() -> None:
    backend = scripted("x" * 3000, delay=0.02)
    with live(backend) as server:
        body = json.dumps({"model": "scripted", "messages": [USER]}).encode()
        connection = server.connect()
        connection.request("POST", "/api/chat", body, {"content-type": "application/json"})
        assert connection.getresponse().readline().startswith(b"{")
        connection.close()
        until(lambda: backend.num_aborted == 1)
