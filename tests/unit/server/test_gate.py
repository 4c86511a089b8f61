"""Keys, origins, ids, log lines, body limits and a stopping server."""

from __future__ import annotations

import logging
import socket

import pytest

from qwenkit.core.errors import InputError
from qwenkit.server.options import ServerOptions
from tests.support.http import Live, live, scripted, until


def test_keys() -> None:
    with live(scripted("x"), api_keys=("first", "second")) as server:
        for key in ("first", "second"):
            assert server.ask("/v1/models", headers={"authorization": f"Bearer {key}"}).status == 200
        assert server.ask("/v1/models", headers={"authorization": "bearer  first"}).status == 200
        for value in ("", "Bearer", "Bearer third", "Basic first", "first", "Bearer first second"):
            answer = server.ask("/v1/models", headers={"authorization": value})
            assert answer.status == 401
            assert answer.error["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert server.ask("/v1/models").status == 401
        assert server.ask("/openapi.json").status == 401
        assert server.ask("/no/such/path").status == 401
        assert server.ask("/health").status == 200
        assert server.ask("/metrics").status == 200


def test_cross_origin_requests() -> None:
    with live(scripted("x"), cors_origins=("https://ok.example",), api_keys=("k",)) as server:
        ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        allowed = server.ask("/v1/models", method="OPTIONS", headers={"origin": "https://ok.example", **ask})
        assert allowed.status == 204
        assert allowed.headers["access-control-allow-origin"] == "https://ok.example"
        assert allowed.headers["access-control-allow-headers"] == "authorization"
        refused = server.ask(
            "/v1/models", method="OPTIONS", headers={"origin": "https://evil.example", **ask}
        )
        assert refused.status == 403
        assert "access-control-allow-origin" not in refused.headers
        answer = server.ask("/v1/models", headers={"origin": "https://ok.example"})
        assert answer.status == 401
        assert answer.headers["access-control-allow-origin"] == "https://ok.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_every_origin_or_none(server: Live) -> None:
    assert (
        "access-control-allow-origin" not in server.ask("/v1/models", headers={"origin": "https://a"}).headers
    )
    with live(scripted("x"), cors_origins=("*",)) as open_server:
        answer = open_server.ask("/v1/models", headers={"origin": "https://a"})
        assert answer.headers["access-control-allow-origin"] == "*"


def test_request_ids(server: Live) -> None:
    assert server.ask("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for strange in ("a b", "x" * 200, "ä"):
        given = server.ask("/health", headers={"x-request-id": strange}).headers["x-request-id"]
        assert given != strange
        assert len(given) == 32


def test_the_log_has_one_line_per_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qwenkit.access")
    with live(scripted("Hello"), has_access_log=True) as server:
        server.chat()
        server.chat(stream=True)
        server.ask("/evil%0aline")
        server.ask("/health")
        until(lambda: len(caplog.records) == 3)
    lines = [record.getMessage() for record in caplog.records]
    assert "127.0.0.1 POST /v1/chat/completions 200 " in lines[0]
    assert lines[0].endswith("completion=5")
    assert lines[1].endswith("completion=5")
    assert "404" in lines[2]
    assert "\n" not in lines[2]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_beyond_the_limit_is_refused_while_it_comes(is_chunked: bool) -> None:
    with live(scripted("x"), max_body_bytes=1000) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            if is_chunked:  # and never finished
                client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b" " * 2000)
            else:
                client.sendall(head + b"Content-Length: 5000000\r\n\r\n" + b" " * 10)
            answer = b""
            while b"1000 bytes" not in answer:  # the connection stays, so that the rest can still be sent
                piece = client.recv(4096)
                assert piece, answer
                answer += piece
        assert answer.startswith(b"HTTP/1.1 413")


def test_broken_http_does_no_harm(server: Live) -> None:
    for garbage in (b"\x00\xff\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(garbage)
            assert client.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    assert server.ask("/health").status == 200


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"api_keys": ("",)}, "API key"),
        ({"api_keys": ("schlüssel",)}, "ASCII"),
        ({"api_keys": (" a",)}, "blanks"),
        ({"cors_origins": ("example.org",)}, "https://"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"stall_timeout": float("inf")}, "stall_timeout"),
        ({"drain_timeout": -1}, "drain_timeout"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        ServerOptions(**options)  # type: ignore[arg-type]
