"""Absurd bodies, HTTP and settings: a real server refuses each with a sentence or honours it, and stays as it was."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.http import Answer
from tests.support.rough import RoughServer, limited_server, wait_until


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[RoughServer]:
    with limited_server(smollm2_gguf) as found:
        yield found


NESTED = "[" * 100_000
BODIES = {
    "9 MB of blanks": (b" " * (9 << 20) + b"{", 400, "not JSON"),
    "a long text": (json.dumps({"prompt": "word " * (1 << 20)}).encode(), 400, "context"),
    "one byte too many": (b" " * ((10 << 20) + 1), 413, "10 MB"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', 400, "not UTF-8"),
    "half a character": (b'{"prompt": "\\ud800"}', 400, "half of a character"),
    "not JSON": (b"{'prompt': 5}", 400, "not JSON"),
    "nothing": (b"", 400, "not JSON"),
    "brackets": (NESTED.encode(), 400, "nests deeper"),
    "brackets in a field": (b'{"prompt": ' + NESTED.encode() + b"]" * 100_000 + b"}", 400, "nests deeper"),
    "a large number": (b'{"prompt": "x", "max_tokens": 1' + b"0" * 5000 + b"}", 400, "number"),
    "a large exponent": (b'{"prompt": "x", "temperature": 1e999}', 400, "temperature"),
    "a number beyond 64 bits": (
        b'{"prompt": "1. 2. 3. 4.", "stop": ".", "max_tokens": 99999999999999999999}',
        200,
        "text",
    ),
    "not a number": (b'{"prompt": "x", "temperature": NaN}', 400, "NaN"),
    "infinity": (b'{"prompt": "x", "temperature": -Infinity}', 400, "Infinity"),
    "a token of another model": (b'{"prompt": [99999999]}', 400, "99999999"),
    "a token that is no integer": (b'{"prompt": [1e400]}', 400, "prompt"),
    "a NUL": (b'{"prompt": "a\\u0000b", "max_tokens": 1}', 200, "text"),
}


@pytest.mark.parametrize("name", BODIES)
def test_absurd_bodies(server: RoughServer, name: str) -> None:
    body, status, word = BODIES[name]
    answer = server.ask("/v1/completions", body)
    assert answer.status == status, answer.body[:500]
    assert word in answer.body.decode()
    if status != 200:
        assert len(answer.error["message"]) < 600


def test_a_long_text_holds_up_nobody(server: RoughServer) -> None:
    body = BODIES["a long text"][0]
    thread = threading.Thread(target=server.ask, args=("/v1/completions", body))
    thread.start()
    waits = []
    while thread.is_alive():
        start = time.monotonic()
        assert server.ask("/health").status == 200
        waits.append(time.monotonic() - start)
        time.sleep(0.01)
    assert len(waits) > 5
    assert max(waits) < 1


def test_a_body_without_an_end(server: RoughServer) -> None:
    """30 MB in chunks: refused once they are too many, and the answer arrives."""
    resident = server.resident_mib
    with server.connect() as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(30):
            client.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"
    assert server.resident_mib < resident + 40


HTTP = {
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"),
    "HEAD": (b"HEAD /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"HTTP/1.1 405"),
    "an unknown method": (b"BREW /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400"),
    "another method": (
        b"DELETE /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 405",
    ),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400"),
    "a path that climbs": (
        b"GET /v1/../../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 404",
    ),
    "a path with codes": (
        b"GET /%00%0d%0a%ff%2e%2e/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 404",
    ),
    "a path of 50 kB": (
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 404",
    ),
    "a path that is no ASCII": (b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 400"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"HTTP/1.1 400"),
    "two lengths": (
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 400",
    ),
    "a length and chunks": (
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 400",
    ),
    "a negative length": (
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 400",
    ),
    "an upgrade": (
        b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200",
    ),
    "half a body, then silence": (
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 408",
    ),
}


@pytest.mark.parametrize("name", HTTP)
def test_absurd_http(server: RoughServer, name: str) -> None:
    data, start = HTTP[name]
    start_time = time.monotonic()
    answer = server.exchange(data)
    assert answer.startswith(start), answer[:300]
    assert time.monotonic() - start_time < 8
    if b"\r\ncontent-type: application/json" in answer and b"HTTP/1.1 200" not in answer and name != "HEAD":
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize("header", [b"x-%d: 1\r\n", b"x-%d: " + b"a" * 500 + b"\r\n", b"%d" + b"y" * 999])
def test_floods_of_headers(server: RoughServer, header: bytes) -> None:
    resident = server.resident_mib
    with server.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 23:
                sent += client.send(b"".join(header % n for n in range(sent, sent + 1000)))
        assert sent < 1 << 23
    assert server.resident_mib < resident + 40
    assert server.ask("/health").status == 200


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": 3}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


TREE = {
    "$defs": {
        "t": {
            "type": "object",
            "properties": {"t": {"anyOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}},
            "required": ["t"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/t",
}


def _wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{n}": {"enum": [f"v{n}", n]} for n in range(count)}}


EXTREMES: dict[str, tuple[dict[str, Any], int]] = {
    "endless": ({"prompt": [10] * 1000, "max_tokens": 10**12, "ignore_eos": True}, 200),
    "128 replies": ({"n": 128, "max_tokens": 2}, 200),
    "64 stops": ({"stop": [f"stop {n}" * 100 for n in range(64)], "max_tokens": 5}, 200),
    "a bias for 20,000 tokens": ({"logit_bias": {str(n): -50 for n in range(20_000)}, "max_tokens": 5}, 200),
    "2,048 prompts": ({"prompt": ["x"] * 2048, "max_tokens": 1}, 429),
    "a context that is full": ({"prompt": [10] * 1024}, 400),
    "a context that is nearly full": ({"prompt": [10] * 1023, "max_tokens": 5}, 200),
    "a full context to score": ({"prompt": [10] * 1024, "echo": True, "max_tokens": 0, "logprobs": 1}, 200),
    "one beyond the context": ({"prompt": [10] * 1025, "echo": True, "max_tokens": 0}, 400),
    "an ambiguous expression": ({"guided_regex": "(a|aa)*b", "max_tokens": 20}, 200),
    "an explosive expression": ({"guided_regex": "((a{0,99}){0,99}){0,99}", "max_tokens": 5}, 200),
    "an expression that looks ahead": ({"guided_regex": "(?=a)b"}, 400),
    "brackets": ({"guided_regex": "(" * 5000 + "a" + ")" * 5000}, 400),
    "60 levels": ({"guided_json": _nested(60), "max_tokens": 20}, 200),
    "300 levels": ({"guided_json": _nested(100)}, 400),
    "a schema of itself": ({"guided_json": TREE, "max_tokens": 20}, 200),
    "a schema that is nothing but itself": ({"guided_json": {"$ref": "#"}, "max_tokens": 5}, 400),
    "a schema of 300 properties": ({"guided_json": _wide(300), "max_tokens": 5}, 200),
    "a schema of 3,000 properties": ({"guided_json": _wide(3000), "max_tokens": 5}, 400),
    "a schema from elsewhere": ({"guided_json": {"$ref": "http://127.0.0.1:9/x.json"}}, 400),
    "a grammar without end": ({"guided_grammar": "start: start start", "max_tokens": 5}, 400),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(server: RoughServer, name: str) -> None:
    fields, status = EXTREMES[name]
    start = time.monotonic()
    answer = server.complete(**({"prompt": "The code is"} | fields))
    assert answer.status == status, answer.body[:500]
    assert time.monotonic() - start < 30
    if status == 200:
        _check_extreme(answer, fields)
    else:
        assert answer.error["message"]
    wait_until(server.is_idle, 2)


def _check_extreme(answer: Answer, fields: dict[str, Any]) -> None:
    usage, choices = answer.json["usage"], answer.json["choices"]
    assert len(choices) == fields.get("n", 1)
    if isinstance(prompt := fields.get("prompt"), list):
        assert usage["prompt_tokens"] == len(prompt)
        assert usage["total_tokens"] == min(len(prompt) + fields["max_tokens"], 1024)
    else:
        assert usage["completion_tokens"] <= fields["max_tokens"] * fields.get("n", 1)
