"""One browser, one server with a scripted model, and a fresh profile for every test of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from qwenkit.web.page import page_handlers
from tests.support.browser import needed_browser
from tests.support.chat_page import ChatPage
from tests.support.http import Live, live
from tests.support.page_backend import PageBackend

OpenPage = Callable[..., ChatPage]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    program = needed_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def _server() -> Iterator[Live]:
    with live(PageBackend(), pages=page_handlers(), allow_lora_loading=True) as server:
        yield server


@pytest.fixture
def server(_server: Live) -> Live:
    """A server with the page, which has been arranged nothing for yet."""
    _server.backend.forget()
    return _server


@pytest.fixture
def open_page(browser: Browser, server: Live, tmp_path: Path) -> Iterator[OpenPage]:
    """Opens the page in a profile of its own, and fails the test for anything that went wrong inside it."""
    pages: list[ChatPage] = []

    def open_page(url: str | None = None, **options: Any) -> ChatPage:
        page = ChatPage(browser, url or f"{server.url}/", tmp_path, **options)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    for page in pages:
        page.assert_clean()


@pytest.fixture(scope="package")
def _page(browser: Browser, _server: Live, tmp_path_factory: pytest.TempPathFactory) -> ChatPage:
    return ChatPage(browser, f"{_server.url}/", tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(_page: ChatPage, server: Live, tmp_path: Path) -> Iterator[ChatPage]:
    """The page, opened for the first time in English; fails the test for anything that went wrong inside it."""
    _page.restart(tmp_path)
    yield _page
    _page.look_back()
    _page.assert_clean()
