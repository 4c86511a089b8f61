"""A live server around any backend, on a free port of this machine, and a plain client for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qwenkit.backends.base import Backend
from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.chat.template import JinjaTemplate
from qwenkit.server.app import create_app
from qwenkit.server.options import ServerOptions
from qwenkit.server.run import Server, bind
from tests.support.byte_tokenizer import TEMPLATE, THINKING_TEMPLATE, ByteTokenizer


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, in the one shape that all have."""
        value = self.json
        assert set(value) == {"error"}, value
        assert {"message", "type", "param", "code"} <= set(value["error"]), value
        return dict(value["error"])

    @property
    def events(self) -> list[Any]:
        """The values of a stream, its last event apart, which must be there."""
        lines = self.body.decode().split("\n\n")
        assert lines[-1] == ""
        assert all(line.startswith("data: ") for line in lines[:-1]), lines
        values = [line.removeprefix("data: ") for line in lines[:-1]]
        assert values[-1] == "[DONE]", values[-1]
        return [json.loads(value) for value in values[:-1]]


class Live:
    """A running server."""

    def __init__(self, backend: Backend, port: int, app: Any) -> None:
        self.backend: Any = backend
        self.port, self.app = port, app
        self.url = f"http://127.0.0.1:{port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; a body that is neither bytes nor None is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {} if data is None else {"content-type": "application/json"}
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request(
                method or ("GET" if data is None else "POST"), path, data, sent | (headers or {})
            )
            return Answer(connection.getresponse())

    def chat(self, content: str = "hi", **fields: Any) -> Answer:
        """A chat of one message."""
        messages = [{"role": "user", "content": content}]
        return self.ask("/v1/chat/completions", {"model": "scripted", "messages": messages} | fields)

    def complete(self, prompt: Any = "hi", **fields: Any) -> Answer:
        return self.ask("/v1/completions", {"model": "scripted", "prompt": prompt} | fields)


@contextlib.contextmanager
def live(backend: Backend, *, pages: Mapping[str, Any] | None = None, **options: Any) -> Iterator[Live]:
    """Serves a backend, and a page, in a thread of this process."""
    options = {"has_access_log": False} | options
    app = create_app(backend, ServerOptions(**options), pages=pages)
    listener = bind("127.0.0.1", 0)
    started = threading.Event()
    server = Server(app, on_start=started.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield Live(backend, listener.getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def scripted(*replies: Any, thinking: bool = False, **options: Any) -> ScriptedBackend:
    """A scripted backend that can count, encode and write tools."""
    source = THINKING_TEMPLATE if thinking else TEMPLATE
    tokenizer = ByteTokenizer(chat_template=source)
    template = JinjaTemplate(source, tokenizer)
    return ScriptedBackend(
        list(replies) or ["Hello, world!"], tokenizer=tokenizer, template=template, **options
    )


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
