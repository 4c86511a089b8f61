"""Models, adapters, embeddings, tokens, health, metrics and the description of it all."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import pytest

from qwenkit._version import __version__
from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.server.endpoints import chosen
from tests.support.http import Live, live, scripted


def test_models(server: Live) -> None:
    listed = server.ask("/v1/models").json
    assert [m["id"] for m in listed["data"]] == ["scripted"]
    assert listed["data"][0]["max_model_len"] == 2048
    assert server.ask("/v1/models/scripted").json == listed["data"][0]
    assert server.ask("/v1/models/other").error["code"] == "model_not_found"


def test_served_names() -> None:
    with live(scripted("x"), served_names=("org/name", "short")) as server:
        assert [m["id"] for m in server.ask("/v1/models").json["data"]] == ["org/name", "short"]
        assert server.ask("/v1/models/org/name").status == 200
        assert server.chat(model="short").json["model"] == "short"
        assert server.chat(model=None).json["model"] == "org/name"
        assert server.chat(model="scripted").status == 404


def test_adapters(tmp_path: Path) -> None:
    backend = scripted("x")
    with live(backend, allow_lora_loading=True) as server:
        body = {"lora_name": "mine", "lora_path": str(tmp_path)}
        assert server.ask("/v1/load_lora_adapter", body).status == 200
        assert server.ask("/v1/load_lora_adapter", body).error["code"] == "adapter_not_loaded"
        assert server.ask("/v1/load_lora_adapter", body | {"lora_name": "scripted"}).status == 400
        assert server.ask("/v1/models/mine").json["parent"] == "scripted"
        assert server.chat(model="mine").json["model"] == "mine"
        assert backend.requests[0].adapter == "mine"
        assert server.ask("/v1/unload_lora_adapter", {"lora_name": "mine"}).status == 200
        assert server.ask("/v1/unload_lora_adapter", {"lora_name": "mine"}).status == 404
        assert server.chat(model="mine").status == 404


def test_loading_adapters_is_off_by_default(server: Live, tmp_path: Path) -> None:
    answer = server.ask("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(tmp_path)})
    assert answer.status == 403
    assert "--allow-lora-loading" in answer.error["message"]


@pytest.mark.parametrize(("given", "count"), [("abc", 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2, 3]], 2)])
def test_embeddings(server: Live, given: object, count: int) -> None:
    plain = server.ask("/v1/embeddings", {"input": given}).json
    assert [e["index"] for e in plain["data"]] == list(range(count))
    packed = server.ask("/v1/embeddings", {"input": given, "encoding_format": "base64"}).json
    for a, b in zip(plain["data"], packed["data"], strict=True):
        assert struct.unpack("<2f", base64.b64decode(b["embedding"])) == pytest.approx(tuple(a["embedding"]))
    assert plain["usage"]["total_tokens"] == plain["usage"]["prompt_tokens"] > 0


def test_tokens_there_and_back(server: Live) -> None:
    value = server.ask("/tokenize", {"prompt": "hé<|im_end|>", "return_token_strs": True}).json
    assert value == {
        "count": 4,
        "max_model_len": 2048,
        "tokens": [104, 195, 169, 257],
        "token_strs": ["h", "�", "�", "<|im_end|>"],
    }
    assert server.ask("/detokenize", {"tokens": value["tokens"]}).json == {"prompt": "hé<|im_end|>"}
    assert server.ask("/tokenize", {"prompt": "h", "with_pieces": True}).json["tokens"] == [
        {"id": 104, "piece": "h"}
    ]
    chat = server.ask("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json
    assert chat["tokens"][0] == 256
    assert chat["count"] == server.chat().json["usage"]["prompt_tokens"]
    info = server.ask("/tokenizer_info").json
    assert info["vocab_size"] == 259
    for name in ("bos", "eos"):  # text, which is what clients look for, and id
        form, token_id = info[f"{name}_token"], info[f"{name}_token_id"]
        assert (form is None) == (token_id is None)
        assert form is None or info["special_tokens"][form] == token_id
    assert info["eos_token"] == "<|im_end|>"


def test_no_tokenizer_is_told() -> None:
    with live(ScriptedBackend(["x"])) as server:
        assert server.ask("/tokenize", {"prompt": "a"}).error["code"] == "no_tokenizer"
        assert server.ask("/tokenizer_info").status == 404


def test_health_and_version(server: Live) -> None:
    assert server.ask("/health").json == {"status": "ok"}
    assert server.ask("/version").json == {"version": __version__}


def test_metrics() -> None:
    with live(scripted("Hello, world!")) as server:
        server.chat(stream=True)
        server.chat(temperature=-1)
        server.ask("/no/such/path")
        page = server.ask("/metrics")
    lines = page.body.decode().splitlines()
    assert page.headers["content-type"].startswith("text/plain")
    for line in (
        'qwenkit_http_requests_total{method="POST",path="/v1/chat/completions",status="200"} 1.0',
        'qwenkit_http_requests_total{method="POST",path="/v1/chat/completions",status="400"} 1.0',
        'qwenkit_http_requests_total{method="GET",path="other",status="404"} 1.0',
        "qwenkit_requests_running 0.0",
        "qwenkit_requests_waiting 0.0",
        'qwenkit_tokens_total{kind="generated"} 13.0',
        "qwenkit_time_to_first_token_seconds_count 1.0",
        "qwenkit_request_duration_seconds_count 1.0",
        'qwenkit_cache_pages{state="used"} 0.0',
        "qwenkit_preemptions_total 0.0",
    ):
        assert line in lines
    count = next(line for line in lines if line.startswith("qwenkit_inter_token_latency_seconds_count"))
    assert float(count.split()[1]) > 5


def test_the_description_covers_every_endpoint_and_body(server: Live) -> None:
    schema = server.ask("/openapi.json").json
    for endpoint in (e for protocol in chosen(()) for e in protocol.endpoints):
        operation = schema["paths"][endpoint.path.replace(":path", "")][endpoint.method.lower()]
        assert {"200", "400", "401", "403", "413", "429", "500", "503"} <= set(operation["responses"])
        assert "security" not in operation
        for parameter in operation.get("parameters", ()):
            assert f"{{{parameter['name']}" in endpoint.path
        assert len(operation.get("parameters", ())) == endpoint.path.count("{")
        if endpoint.body is not None:
            described = operation["requestBody"]["content"]["application/json"]["schema"]
            references = [each["$ref"] for each in described.get("anyOf", [described])]
            names = [reference.rpartition("/")[2] for reference in references]
            assert endpoint.body.__name__ in names
            assert set(names) <= set(schema["components"]["schemas"])
    chat = schema["components"]["schemas"]["ChatBody"]
    assert "messages" in chat["required"]
    assert {"temperature", "tools", "stop", "guided_json"} <= set(chat["properties"])
    assert "user" in schema["components"]["schemas"]["MessageBody"]["properties"]["role"]["enum"]


def test_the_description_says_where_a_key_is_needed() -> None:
    with live(scripted("x"), api_keys=("k",)) as server:
        schema = server.ask("/openapi.json", headers={"authorization": "Bearer k"}).json
    open_paths = {
        path for path, item in schema["paths"].items() if not all(o.get("security") for o in item.values())
    }
    assert open_paths == {"/health", "/metrics"}
    assert [scheme["scheme"] for scheme in schema["components"]["securitySchemes"].values()] == ["bearer"]
