"""A real server treated roughly: crowds, clients that vanish or never read, absurd requests, signals under load.

Whatever happens to one client, every other gets, token for token, what it would get alone.
"""

from __future__ import annotations

import asyncio
import json
import random
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.rough import (
    Crowd,
    Heard,
    RoughServer,
    limited_server,
    post,
    read_all,
    rough_server,
    stop,
    wait_until,
)

pytestmark = pytest.mark.serial

CODES = [f"{7919 * (n + 1) % 100000:05d}" for n in range(64)]
REQUESTS: list[dict[str, Any]] = [
    {
        "prompt": f"The code is {code}. Again: the code is {code}. Once more: the code is",
        "temperature": 0,
        "max_tokens": 6 + n % 5,
    }
    for n, code in enumerate(CODES)
]
LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True}
GENERATED = 'qwenkit_tokens_total{kind="generated"}'


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[RoughServer]:
    with limited_server(smollm2_gguf) as found:
        yield found


@pytest.fixture(scope="module")
def alone(server: RoughServer) -> list[Heard]:
    """What each request gets when nobody else asks."""
    heard = Crowd(server, REQUESTS).ask_each(range(64), 1)
    assert [one.number for one in heard] == list(range(64))
    # Each says its own code, so a text that went to somebody else would be known at sight.
    assert [one.text[1:6] for one in heard] == CODES
    assert [one.completion_tokens for one in heard] == [body["max_tokens"] for body in REQUESTS]
    return heard


def assert_exact(heard: list[Heard], alone: list[Heard]) -> None:
    assert heard
    assert [one.error for one in heard if one.error] == []
    for one in heard:
        assert one.reply == alone[one.number].reply


def test_a_crowd(server: RoughServer, alone: list[Heard]) -> None:
    numbers = list(range(64)) * 6
    random.Random(1).shuffle(numbers)
    crowd = Crowd(server, REQUESTS)
    crowd.ask_each(numbers, 64)  # so that the allocator holds what a crowd needs; a leak grows with each
    before, resident = server.metrics(), server.resident_mib
    heard = crowd.ask_each(numbers, 64)
    assert_exact(heard, alone)
    assert sorted(one.number for one in heard) == sorted(numbers)
    counted = server.metrics()[GENERATED] - before[GENERATED]
    assert counted == sum(one.completion_tokens for one in heard)
    assert server.resident_mib < resident + 30
    assert server.is_idle()


def _vanish(server: RoughServer, how: str) -> None:
    """One client that asks for a long text and does not wait for it."""
    client = server.connect()
    client.sendall(post(LONG) * (2 if how == "pipelined" else 1))
    if how in ("after some events", "pipelined", "reset"):
        for _ in range(random.Random(how).randint(1, 5)):
            client.recv(300)
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half closed":
        client.shutdown(socket.SHUT_WR)
        read_all(client)
    client.close()


def test_clients_that_vanish(server: RoughServer, alone: list[Heard]) -> None:
    kinds = ("at once", "after some events", "reset", "half closed", "pipelined")
    crowd = Crowd(server, REQUESTS)
    before = server.metrics()
    with crowd.running(8):
        threads = [threading.Thread(target=_vanish, args=(server, how)) for how in kinds * 6]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        time.sleep(1)
        # Only those who stayed are still answered.
        wait_until(lambda: server.metrics()["qwenkit_requests_running"] <= 8, 3)
        assert server.metrics()["qwenkit_requests_waiting"] == 0
    wait_until(server.is_idle, 2)
    assert_exact(crowd.heard, alone)
    made = server.metrics()[GENERATED] - before[GENERATED] - sum(h.completion_tokens for h in crowd.heard)
    assert 0 < made < 30 * LONG["max_tokens"] / 4, "the texts nobody waits for were written all the same"


def _text_of(answer: bytes) -> tuple[str, bool]:
    """The text of a chunked stream, and whether it has its end."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    values = [json.loads(line[6:]) for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    return "".join(value["choices"][0]["text"] for value in values), body.endswith(b"data: [DONE]\n\n")


def test_a_slow_reader_holds_up_nobody(server: RoughServer, alone: list[Heard]) -> None:
    body = REQUESTS[5] | {"stream": True}
    with server.connect(receive_buffer=4096) as client:
        client.sendall(post(body, extra="Connection: close\r\n"))
        data = bytearray()
        start = time.monotonic()
        heard = []
        while len(data) < 40:
            data += client.recv(1)
            time.sleep(0.05)
            if len(data) == 10:
                heard = Crowd(server, REQUESTS).ask_each(range(16), 16)
        assert 2 < time.monotonic() - start < 15
        data += read_all(client)
    assert_exact(heard, alone)
    assert _text_of(bytes(data)) == (alone[5].text, True)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_never_reads_is_dropped(server: RoughServer, alone: list[Heard], stream: bool) -> None:
    """20 MB are more than the machine's own buffers hold; the server keeps the rest for --stall-timeout alone."""
    body = {"prompt": [10] * 900, "echo": True, "logprobs": 20, "n": 32, "max_tokens": 1, "stream": stream}
    with server.connect(receive_buffer=4096) as client:
        start = time.monotonic()
        client.sendall(post(body))
        crowd = Crowd(server, REQUESTS)
        with crowd.running(4):
            poll = select.poll()
            poll.register(client, 0)  # errors alone: nothing is read
            assert poll.poll(20_000), "the connection is still there"
        assert time.monotonic() - start > 2
        assert_exact(crowd.heard, alone)
    wait_until(server.is_idle, 2)


def test_requests_in_a_pipeline(server: RoughServer, alone: list[Heard]) -> None:
    """Answered in their order; the last one asks to hang up."""
    order = [3, 1, 2]
    data = b"".join(post(REQUESTS[n]) for n in order)
    data += b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = server.exchange(data).decode()
    texts = [json.loads(part.partition("\r\n\r\n")[2]) for part in answer.split("HTTP/1.1 200 OK")[1:]]
    assert [text["choices"][0]["text"] for text in texts[:-1]] == [alone[n].text for n in order]
    assert texts[-1] == {"status": "ok"}


async def _raw(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    body = await reader.read()
    writer.close()
    first, *lines = head.strip().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def test_a_thousand_at_once(server: RoughServer, alone: list[Heard]) -> None:
    health: list[float] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.05):
            start = time.monotonic()
            assert server.ask("/health").status == 200
            health.append(time.monotonic() - start)

    async def storm() -> list[tuple[int, dict[str, str], bytes]]:
        numbers = [n % 64 for n in range(1000)]
        work = [_raw(server.port, post(REQUESTS[n], extra="Connection: close\r\n")) for n in numbers]
        return await asyncio.wait_for(asyncio.gather(*work), 60)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        answers = asyncio.run(storm())
    finally:
        is_over.set()
        watcher.join(20)
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 300
    for n, (status, headers, body) in enumerate(answers):
        if status == 429:
            assert int(headers["retry-after"]) > 0
        else:
            assert json.loads(body)["choices"][0]["text"] == alone[n % 64].text
    assert len(health) > 5
    assert max(health) < 2
    wait_until(server.is_idle, 3)


def _failing(n: int, stream: bool) -> dict[str, Any]:
    """A request that the engine finds impossible at its second token; its prompt ends with a page."""
    return {
        "prompt": [10] * 64,
        "guided_choice": ["1x"],
        "allowed_token_ids": [33],
        "max_tokens": 20,
        "n": n,
        "stream": stream,
    }


def test_a_request_that_fails_in_the_engine_harms_nobody(server: RoughServer, alone: list[Heard]) -> None:
    assert server.ask("/detokenize", {"tokens": [33]}).json["prompt"] == "1"
    crowd = Crowd(server, REQUESTS)
    with crowd.running(8):
        for n in (1, 2, 5):
            answer = server.ask("/v1/completions", _failing(n, stream=False))
            assert answer.status == 400, answer.body
            assert "no token is left" in answer.error["message"]
            last = server.ask("/v1/completions", _failing(n, stream=True)).body.split(b"\n\n")[-2]
            assert json.loads(last.removeprefix(b"data: "))["error"]["status"] == 400
    assert_exact(crowd.heard, alone)
    assert server.complete(**REQUESTS[0]).json["choices"][0]["text"] == alone[0].text
    wait_until(server.is_idle, 2)


def test_a_cache_too_small_for_the_batch(smollm2_gguf: Path) -> None:
    requests = [body | {"max_tokens": 60, "ignore_eos": True} for body in REQUESTS[:6]]
    with rough_server(smollm2_gguf, "--cache-gb", "0.012") as server:
        crowd = Crowd(server, requests)
        alone = crowd.ask_each(range(6), 1)
        assert server.metrics()["qwenkit_preemptions_total"] == 0
        assert_exact(crowd.ask_each(list(range(6)) * 3, 18), alone)
        assert server.metrics()["qwenkit_preemptions_total"] > 0
        assert server.is_idle()
        assert stop(server) == 0


def test_kill_and_start_again_and_stop_under_load(smollm2_gguf: Path) -> None:
    requests = [body | {"max_tokens": 120, "ignore_eos": True} for body in REQUESTS[:16]]
    with rough_server(smollm2_gguf, "--cache-gb", "0.1") as server:
        crowd = Crowd(server, requests, timeout=20)
        thread = threading.Thread(target=crowd.ask_each, args=(range(16), 16))
        thread.start()
        wait_until(lambda: server.metrics()["qwenkit_requests_running"] == 16, 10)
        server.process.kill()
        thread.join(5)
        assert not thread.is_alive(), "clients of a killed server must not hang"
        assert all(one.error for one in crowd.heard)
        port = server.port
    with rough_server(smollm2_gguf, "--cache-gb", "0.1", "--drain-timeout", "30", port=port) as server:
        crowd = Crowd(server, requests)
        thread = threading.Thread(target=crowd.ask_each, args=(range(16), 16))
        thread.start()
        wait_until(lambda: server.metrics()["qwenkit_requests_running"] == 16, 10)
        with server.connect() as half:
            half.sendall(post(requests[0])[:-5])
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            assert read_all(half).startswith(b"HTTP/1.1 503")
        with pytest.raises(ConnectionError):
            server.ask("/health")
        assert thread.is_alive(), "it was over before the signal"
        thread.join(30)
        assert server.process.wait(5) == 0
        assert [one.error for one in crowd.heard] == [None] * 16
        assert [one.text[1:6] for one in sorted(crowd.heard, key=lambda h: h.number)] == CODES[:16]
        assert {one.completion_tokens for one in crowd.heard} == {120}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_under_load(smollm2_gguf: Path, number: signal.Signals) -> None:
    requests = [body | {"max_tokens": 900, "ignore_eos": True} for body in REQUESTS[:4]]
    with rough_server(smollm2_gguf, "--cache-gb", "0.1") as server:
        crowd = Crowd(server, requests, timeout=20)
        thread = threading.Thread(target=crowd.ask_each, args=(range(4), 4))
        thread.start()
        wait_until(lambda: server.metrics()["qwenkit_requests_running"] == 4, 10)
        server.process.send_signal(number)
        time.sleep(0.3)
        assert server.process.poll() is None
        start = time.monotonic()
        assert stop(server, number) == 128 + number
        assert time.monotonic() - start < 1
        thread.join(5)
        assert not thread.is_alive()
        assert all(one.error for one in crowd.heard)
