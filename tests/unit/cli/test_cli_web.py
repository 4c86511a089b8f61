"""``qwenkit web`` and the page of ``qwenkit serve``: what is said, which port, which browser."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from qwenkit.cli import web as web_module
from qwenkit.cli.main import app
from qwenkit.server.gate import Gate
from tests.support.http import scripted


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Nothing is loaded and nobody is waited for; what would be served is noted."""
    found: dict[str, Any] = {"opened": []}

    def serve(app: Gate, listener: socket.socket, *, on_start: Any) -> None:
        found.update(app=app, address=listener.getsockname())
        on_start()

    def start(target: Any, args: Any, daemon: bool) -> Any:
        target(*args)
        return type("Thread", (), {"start": lambda self: None})()

    monkeypatch.setattr("qwenkit.cli.serve._open", lambda *_: scripted("hi"))
    monkeypatch.setattr("qwenkit.cli.serve._log_to_stderr", lambda: None)
    monkeypatch.setattr("qwenkit.server.run.serve", serve)
    monkeypatch.setattr(web_module.threading, "Thread", start)
    monkeypatch.setattr(web_module, "open_browser", found["opened"].append)
    yield found
    found["app"].service.close()


def _has_page(found: dict[str, Any]) -> bool:
    return TestClient(found["app"]).get("/").headers["content-type"].startswith("text/html")


def test_web_opens_the_page_of_this_machine(served: dict[str, Any]) -> None:
    done = CliRunner().invoke(app, ["web", "--port", "0"])
    assert done.exit_code == 0, done.output
    host, port = served["address"]
    assert host == "127.0.0.1"
    assert served["opened"] == [f"http://127.0.0.1:{port}/"]
    assert f"chat page: http://127.0.0.1:{port}/" in done.output
    assert not served["app"].service.options.has_access_log


def test_web_opens_no_browser_where_none_is_wanted(served: dict[str, Any]) -> None:
    assert CliRunner().invoke(app, ["web", "--port", "0", "--no-browser"]).exit_code == 0
    assert served["opened"] == []


def test_web_takes_another_port_where_the_usual_one_is_taken(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(web_module, "_USUAL_PORT", taken)
        done = CliRunner().invoke(app, ["web"])
        assert done.exit_code == 0
        assert served["address"][1] != taken
        assert f"port {taken} is taken" in done.output
        refused = CliRunner().invoke(app, ["web", "--port", str(taken)])
        assert refused.exit_code == 2


def test_serve_has_the_page_unless_told_otherwise(served: dict[str, Any]) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert "chat page: http://127.0.0.1:" in done.output
    assert _has_page(served)
    served["app"].service.close()
    done = CliRunner().invoke(app, ["serve", "--port", "0", "--no-page"])
    assert "chat page" not in done.output
    assert not _has_page(served)


class _Browser:
    def __init__(self, name: str, *, works: bool = True) -> None:
        self.name, self.works, self.urls = name, works, list[str]()

    def open(self, url: str) -> bool:
        self.urls.append(url)
        return self.works


@pytest.mark.parametrize(
    ("browser", "is_opened"),
    [
        (_Browser("firefox"), True),
        (_Browser("firefox", works=False), False),
        (_Browser("w3m"), False),
        (webbrowser.Error("none"), False),
    ],
    ids=["opens", "fails", "in the terminal", "none"],
)
def test_users_are_told_where_no_browser_opens(
    browser: Any, is_opened: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def get() -> Any:
        if isinstance(browser, Exception):
            raise browser
        return browser

    monkeypatch.setattr(webbrowser, "get", get)
    web_module.open_browser("http://127.0.0.1:1/")
    assert ("open the address yourself" in capsys.readouterr().err) == (not is_opened)
    if getattr(browser, "name", "") == "w3m":
        assert browser.urls == []
