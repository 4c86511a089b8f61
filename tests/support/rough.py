"""A real ``qwenkit serve`` to be treated roughly: its numbers, many streaming clients at once, and raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.backends.remote_server import parse_server
from qwenkit.bench.connection import ExchangeError, Pool
from tests.support.http import Answer
from tests.support.live_server import ROOT
from tests.support.process import QWENKIT, environment

_SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


class RoughServer:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str], port: int, errors: Any) -> None:
        self.process, self.port, self._errors = process, port, errors

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """What came on stderr."""
        return Path(f"/proc/self/fd/{self._errors.fileno()}").read_text(encoding="utf-8")

    @property
    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    @property
    def num_sockets(self) -> int:
        """Open sockets, the one that listens among them."""
        links = Path(f"/proc/{self.pid}/fd").iterdir()
        found = 0
        for link in links:
            with contextlib.suppress(FileNotFoundError):
                found += str(link.readlink()).startswith("socket:")
        return found

    def ask(self, path: str, body: Any = None, *, method: str | None = None, timeout: float = 60) -> Answer:
        """One request on a connection of its own; bytes are sent as they are."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {} if data is None else {"content-type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
            return Answer(connection.getresponse())

    def complete(self, prompt: Any, **fields: Any) -> Answer:
        return self.ask("/v1/completions", {"prompt": prompt, "temperature": 0} | fields)

    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in _SAMPLE.findall(self.ask("/metrics").body.decode())}

    def is_idle(self) -> bool:
        found = self.metrics()
        busy = ("qwenkit_requests_running", "qwenkit_requests_waiting", 'qwenkit_cache_pages{state="used"}')
        return not any(found[name] for name in busy)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(30)
        client.connect(("127.0.0.1", self.port))
        return client

    def exchange(self, data: bytes) -> bytes:
        """Sends bytes, and all that comes until the server hangs up."""
        with self.connect() as client:
            client.sendall(data)
            return read_all(client)


@contextlib.contextmanager
def rough_server(model: Path, *options: str, port: int = 0) -> Iterator[RoughServer]:
    """Runs ``qwenkit serve``; at the end it is killed unless it has ended, and must have logged no surprise."""
    limits = ("--max-context", "1024", "--no-access-log", "--served-model-name", "small")
    command = (QWENKIT, "serve", "-m", str(model), "--port", str(port), *limits, *options)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        try:
            assert process.stdout is not None
            address = next((line.split()[-1] for line in process.stdout if "http://" in line), None)
            errors.seek(0)
            assert address is not None, errors.read()
            server = RoughServer(process, int(address.rpartition(":")[2]), errors)
            yield server
            assert "Traceback" not in server.said, server.said[-4000:]
        finally:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def limited_server(model: Path) -> Iterator[RoughServer]:
    """One with little room and low limits, which must be idle and without connections in the end."""
    limits = ("--cache-gb", "0.1", "--max-queue", "300", "--max-body-mb", "10", "--stall-timeout", "2")
    with rough_server(model, *limits) as found:
        yield found
        wait_until(found.is_idle, 10)
        assert found.num_sockets < 20, "connections were left open"


def post(body: dict[str, Any], path: str = "/v1/completions", extra: str = "") -> bytes:
    """A request as bytes."""
    data = json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{extra}"
    return f"{lines}Content-Length: {len(data)}\r\n\r\n".encode() + data


def read_all(client: socket.socket) -> bytes:
    """Everything until the other side hangs up."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            data += piece
    return bytes(data)


@dataclass(slots=True)
class Heard:
    """What one streaming client got."""

    number: int
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None

    @property
    def reply(self) -> tuple[str, str | None, int, int]:
        """What must be the same whoever else asks."""
        return self.text, self.finish_reason, self.prompt_tokens, self.completion_tokens

    def see(self, at: float, data: bytes) -> None:
        """One event of the stream."""
        event = json.loads(data)
        if "error" in event:
            self.error = str(event["error"])
            return
        for choice in event["choices"]:
            assert self.finish_reason is None, "text came after the end"
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"]
        if usage := event.get("usage"):
            self.prompt_tokens, self.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]


class Crowd:
    """Streaming clients in threads of their own event loop; requests are numbered, each number is one request.

    Args:
        server: whom they ask.
        requests: bodies; number n asks for the n-th.
    """

    def __init__(self, server: RoughServer, requests: Sequence[dict[str, Any]], timeout: float = 120) -> None:
        self.heard: list[Heard] = []
        self._requests = requests
        self._server = parse_server(f"http://127.0.0.1:{server.port}", timeout=timeout)
        self._stop = threading.Event()

    def ask_each(self, numbers: Sequence[int], clients: int) -> list[Heard]:
        """Asks so many at once until all are answered."""
        return asyncio.run(self._run(iter(numbers), clients))

    @contextlib.contextmanager
    def running(self, clients: int) -> Iterator[None]:
        """In the background, requests again and again while the block runs; ``heard`` grows."""

        def numbers() -> Iterator[int]:
            number = 0
            while not self._stop.is_set():
                yield number % len(self._requests)
                number += 1

        thread = threading.Thread(target=lambda: asyncio.run(self._run(numbers(), clients)))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(180)
            assert not thread.is_alive()

    async def _run(self, numbers: Iterator[int], clients: int) -> list[Heard]:
        pool = Pool(self._server)
        heard: list[Heard] = []

        async def client() -> None:
            for number in numbers:
                one = Heard(number)
                body = {"stream": True, "stream_options": {"include_usage": True}} | self._requests[number]
                try:
                    request = pool.request("completions", json.dumps(body).encode())
                    await pool.exchange(request, one.see)
                except ExchangeError as error:
                    one.error = one.error or f"{error.kind} {error.detail}"
                heard.append(one)
                self.heard.append(one)

        with contextlib.closing(pool):
            await asyncio.gather(*(client() for _ in range(clients)))
        return heard


def wait_until(condition: Any, seconds: float) -> float:
    """Waits for something to become true; how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not happen"
        time.sleep(0.02)
    return time.monotonic() - start


def stop(server: RoughServer, number: int = signal.SIGTERM, seconds: float = 20) -> int:
    """Sends a signal and waits; the exit code."""
    server.process.send_signal(number)
    return server.process.wait(seconds)
