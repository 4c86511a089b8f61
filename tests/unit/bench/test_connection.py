"""Connections of the load generator: answers cut anywhere, and answers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable

import pytest

from qwenkit.backends.remote_server import parse_server
from qwenkit.bench.connection import ExchangeError, Pool

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
EVENTS = b"data: one\n\n: comment\n\ndata: two\n\ndata: [DONE]\n\n"
Write = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


def chunked(*parts: bytes) -> bytes:
    framed = b"".join(b"%X;x=1\r\n%b\r\n" % (len(p), p) for p in parts)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def talk(write: Write, times: int = 1, timeout: float = 5.0) -> tuple[list[list[bytes]], int]:
    """Events of ``times`` requests one after the other, and how many connections they took."""
    connections = 0
    handlers: list[asyncio.Task[None] | None] = []

    async def run() -> list[list[bytes]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            handlers.append(asyncio.current_task())
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                for at in itertools.count():
                    await reader.readuntil(b"\r\n\r\n{}")
                    await write(writer, at)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            pool = Pool(parse_server(f"http://127.0.0.1:{port}", timeout=timeout))
            found: list[list[bytes]] = []
            try:
                for _ in range(times):
                    events: list[bytes] = []
                    found.append(events)
                    request = pool.request("completions", b"{}")
                    await pool.exchange(request, lambda at, data, to=events: to.append(data))
                    await asyncio.sleep(0.01)
            finally:
                pool.close()
                await asyncio.wait([h for h in handlers if h is not None], timeout=2)
            return found

    return asyncio.run(run()), connections


def whole(answer: bytes) -> Write:
    async def write(writer: asyncio.StreamWriter, at: int) -> None:
        writer.write(answer)

    return write


def then_close(answer: bytes) -> Write:
    async def write(writer: asyncio.StreamWriter, at: int) -> None:
        writer.write(answer)
        writer.close()

    return write


ANSWERS = {
    "one chunk": chunked(EVENTS),
    "small chunks": chunked(*(EVENTS[i : i + 5] for i in range(0, len(EVENTS), 5))),
    "length": HEAD + b"Content-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS,
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_events_come_whole_and_the_connection_is_kept(name: str, step: int) -> None:
    async def write(writer: asyncio.StreamWriter, at: int) -> None:
        answer = ANSWERS[name]
        for start in range(0, len(answer), step):
            writer.write(answer[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)

    found, connections = talk(write, times=2)
    assert found == [[b"one", b"two"]] * 2
    assert connections == 1


def test_a_body_may_end_with_the_connection() -> None:
    found, connections = talk(then_close(HEAD + b"\r\n" + EVENTS), times=2)
    assert found == [[b"one", b"two"]] * 2
    assert connections == 2


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    async def write(writer: asyncio.StreamWriter, at: int) -> None:
        if at:
            writer.close()  # just as the second request comes
        else:
            writer.write(ANSWERS["length"])

    found, connections = talk(write, times=3)
    assert found == [[b"one", b"two"]] * 3
    assert connections == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (chunked(b"data: one\n\n"), "stream cut before its end"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n6\r\ndata: ", "connection closed by the server"),
        (HEAD + b"Content-Length: 99\r\n\r\ndata: ", "connection closed by the server"),
        (HEAD[:20], "connection closed by the server"),
        (b"", "connection closed by the server"),
        (b"SSH-2.0-x\r\n\r\n", "malformed HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "malformed HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "not an event stream"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "HTTP 503"),
        (b'HTTP/1.0 429 No\r\n\r\n{"error": {"message": "slow down"}}', "HTTP 429"),
    ],
)
def test_what_goes_wrong_has_a_kind(answer: bytes, kind: str) -> None:
    with pytest.raises(ExchangeError) as caught:
        talk(then_close(answer))
    assert caught.value.kind == kind
    if kind == "HTTP 429":
        assert caught.value.detail == "slow down"


def test_silence_has_a_limit() -> None:
    with pytest.raises(ExchangeError, match="timeout"):
        talk(whole(HEAD), timeout=0.1)


def test_nothing_listens() -> None:
    async def run() -> None:
        pool = Pool(parse_server("http://127.0.0.1:9"))
        await pool.exchange(pool.request("completions", b"{}"), lambda at, data: None)

    with pytest.raises(ExchangeError, match="connection refused"):
        asyncio.run(run())


def test_the_request() -> None:
    pool = Pool(parse_server("http://[::1]:8000/base/v1", api_key="k"))
    head, _, body = pool.request("completions", "{é}".encode()).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /base/v1/completions HTTP/1.1"
    assert {"Host: [::1]:8000", "Authorization: Bearer k", "Content-Length: 4"} <= set(lines)
    assert body == "{é}".encode()
