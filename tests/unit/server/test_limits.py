"""Clients that leave, read slowly or wait too long, and a server that stops while they do."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from tests.support.http import Answer, Live, live, scripted, until

LONG = "x" * 3000


def _send(server: Live, **fields: Any) -> socket.socket:
    """Sends a chat request and leaves the answer unread."""
    body = json.dumps(
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10**8} | fields
    ).encode()
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(stream: bool) -> None:
    with live(scripted(LONG, delay=0.01)) as server:
        client = _send(server, stream=stream)
        until(lambda: server.backend.stats().running == 1)
        if stream:
            client.recv(100)
        client.close()
        until(lambda: server.backend.num_aborted == 1)
        until(lambda: server.app.service.num_live == 0)
        assert server.chat(max_tokens=3).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long(stream: bool) -> None:
    with live(scripted(LONG, delay=0.02), request_timeout=0.3) as server:
        start = time.monotonic()
        answer = server.chat(stream=stream)
        assert 0.2 < time.monotonic() - start < 5
        until(lambda: server.backend.num_aborted == 1)
        if stream:
            last = answer.body.decode().strip().split("\n\n")[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        else:
            assert answer.status == 504
            assert "0.3 s" in answer.error["message"]


def test_a_stream_that_nobody_reads_is_ended() -> None:
    # 40 MB do not fit into the buffers of sockets
    reply = ["y" * 200_000] * 200
    with live(scripted(reply, delay=0.002), stall_timeout=0.4) as server:
        client = _send(server, stream=True)
        until(lambda: server.app.service.num_live == 1)
        until(lambda: server.app.service.num_live == 0, 20)
        assert server.chat(max_tokens=3).status == 200
        client.close()


def test_a_slow_reader_gets_larger_pieces_and_nothing_is_lost() -> None:
    pieces = [f"{n:06d} " * 3000 for n in range(300)]
    with live(scripted(pieces)) as server:
        client = _send(server, stream=True)
        until(lambda: server.backend.stats().running == 0, 20)
        time.sleep(0.3)
        file = client.makefile("rb")
        while file.readline() not in (b"\r\n", b""):
            pass
        data = b""
        while (size := int(file.readline(), 16)) > 0:
            data += file.read(size)
            file.readline()
        client.close()
    events = [json.loads(line[6:]) for line in data.decode().strip().split("\n\n") if line != "data: [DONE]"]
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert text == "".join(pieces)
    assert len(events) < len(pieces)


def test_a_stopping_server_lets_requests_end() -> None:
    with live(scripted("x" * 60, delay=0.02), drain_timeout=10) as server:
        found: list[Answer] = []
        thread = threading.Thread(target=lambda: found.append(server.chat(stream=True)))
        thread.start()
        until(lambda: server.backend.stats().running == 1)
        server.app.service.is_draining = True
        assert server.ask("/health").json == {"status": "draining"}
        refused = server.chat()
        assert refused.status == 503
        assert refused.error["code"] == "shutting_down"
        assert "retry-after" in refused.headers
        thread.join(10)
    assert found[0].events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stopping_server_ends_what_takes_too_long() -> None:
    found: list[Answer] = []
    with live(scripted(LONG, delay=0.02), drain_timeout=0.3) as server:
        threads = [
            threading.Thread(target=lambda s=stream: found.append(server.chat(stream=s)))
            for stream in (False, True)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.backend.stats().running == 2)
        time.sleep(0.1)
    for thread in threads:
        thread.join(10)
    whole, streamed = sorted(found, key=lambda a: -a.status)
    assert whole.status == 503
    assert b"shutting_down" in streamed.body.strip().rpartition(b"\n\n")[2]
    until(lambda: server.backend.num_aborted == 2)


def test_many_streams_at_once() -> None:
    with live(scripted("Hello, world! " * 10, delay=0.001)) as server:
        found: list[str] = []

        def ask() -> None:
            events = server.chat(stream=True).events
            found.append("".join(e["choices"][0]["delta"].get("content", "") for e in events))

        threads = [threading.Thread(target=ask) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == ["Hello, world! " * 10] * 32
