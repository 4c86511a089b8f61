"""Connections on which nothing, or too little, or too much is said."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from qwenkit.server import connection
from tests.support.http import Live, live, scripted, until

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def _read(client: socket.socket) -> bytes:
    """Everything until the server hangs up, which it may do while something of ours is unread."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(4096):
            data += piece
    return data


def _connect(server: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def _error(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"])


@pytest.mark.parametrize("start", [b"", b"\r\n", b"GET", b"GET /health HTTP/1.1\r\nHost: "])
@pytest.mark.parametrize("is_used", [False, True])
def test_headers_that_do_not_come(monkeypatch: pytest.MonkeyPatch, start: bytes, is_used: bool) -> None:
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.4)
    with live(scripted()) as server, _connect(server) as client:
        if is_used:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            _read_until(client, b'"ok"}')
            start = start or b"\r\n"  # a connection kept without a word is not late
        client.sendall(start)
        began = time.monotonic()
        answer = _read(client)
        assert 0.2 < time.monotonic() - began < 5
        assert not answer if start in (b"", b"\r\n") else answer.startswith(b"HTTP/1.1 408"), answer


def test_headers_that_come_one_byte_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.4)
    with live(scripted()) as server, _connect(server) as client:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 5:
                client.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - began < 5


def test_a_kept_connection_outlives_the_limit_for_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.2)
    with live(scripted("x" * 40, delay=0.02)) as server, _connect(server) as client:
        for _ in range(2):
            client.sendall(HEAD + b'Content-Length: 16\r\n\r\n{"prompt": "hi"}')
            _read_until(client, b"}}")  # which takes longer
            time.sleep(0.5)


def test_a_body_that_stops_coming() -> None:
    with live(scripted(), stall_timeout=0.4) as server:
        with _connect(server) as client:
            client.sendall(HEAD + b'Content-Length: 16\r\n\r\n{"prompt"')
            began = time.monotonic()
            answer = _read(client)
            assert 0.2 < time.monotonic() - began < 5
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout")
            assert "0.4 s" in _error(answer)
        with _connect(server) as client:  # a slow one is fine
            client.sendall(HEAD + b"Content-Length: 16\r\n\r\n")
            for byte in b'{"prompt": "hi"}':
                client.sendall(bytes([byte]))
                time.sleep(0.05)
            assert _read_until(client, b"}}").startswith(b"HTTP/1.1 200")


def test_headers_without_end() -> None:
    with live(scripted()) as server, _connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        time.sleep(0.1)
        for _ in range(16):
            client.sendall(b"x" * 4096)
        client.sendall(b"y" * 10)
        answer = _read(client)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")
        assert "65536 bytes" in _error(answer)


def test_what_is_not_http_is_told_so_in_json() -> None:
    with live(scripted()) as server, _connect(server) as client:
        client.sendall(b"GET / HTTP/9.9\r\n\r\n")
        answer = _read(client)
        assert answer.startswith(b"HTTP/1.1 400")
        assert "HTTP/1.1" in _error(answer)


def test_garbage_behind_a_request_does_not_get_into_its_answer() -> None:
    with live(scripted("x" * 30, delay=0.02)) as server, _connect(server) as client:
        client.sendall(HEAD + b'Content-Length: 32\r\n\r\n{"prompt": "hi", "stream": true }')
        client.recv(100)
        client.sendall(b"\x00\xff\r\n\r\n")
        assert b"HTTP/1.1 400" not in _read(client)
        until(lambda: server.app.service.num_live == 0)


def test_a_client_that_leaves_ends_all_its_requests_in_a_pipeline() -> None:
    with live(scripted("x" * 3000, delay=0.01)) as server:
        client = _connect(server)
        body = b'{"prompt": "hi", "stream": true, "max_tokens": 9999}'
        client.sendall((HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body) * 2)
        until(lambda: server.backend.stats().running == 1)
        client.recv(100)
        client.close()
        until(lambda: server.backend.num_aborted == 1)
        until(lambda: server.app.service.num_live == 0)
        name = 'qwenkit_http_requests_total{method="POST",path="/v1/completions",status="499"} 1.0'
        until(lambda: name.encode() in server.ask("/metrics").body)


def test_an_answer_that_nobody_reads_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with live(scripted("y" * 20_000_000, chunk=20_000_000), stall_timeout=0.4) as server:
        client = _connect(server)
        client.sendall(HEAD + b'Content-Length: 40\r\n\r\n{"prompt": "hi", "max_tokens": 99999999}')
        name = b'path="/v1/completions",status="200"'
        until(lambda: name in server.ask("/metrics").body, 10)
        time.sleep(1)
        assert _num_until_reset(client) < 20_000_000
    assert "Traceback" not in caplog.text


def _read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = client.recv(4096)
        assert piece, data
        data += piece
    return data


def _num_until_reset(client: socket.socket) -> int:
    count = 0
    with contextlib.closing(client):
        try:
            while piece := client.recv(1 << 16):
                count += len(piece)
        except ConnectionResetError:
            return count
    raise AssertionError("it was not reset")
