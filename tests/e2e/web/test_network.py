"""The page where the network is as it is: other paths, proxies that hold answers back, lines that break, keys, two tabs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwenkit.web.page import page_handlers
from tests.e2e.web.conftest import OpenPage
from tests.support.chat_page import ChatPage, expect
from tests.support.http import Live, live, until
from tests.support.page_backend import PageBackend, counting
from tests.support.reverse_proxy import Proxy, proxied


@pytest.fixture
def proxy(server: Live) -> Iterator[Proxy]:
    """A line that can break."""
    with proxied(server.port) as proxy:
        yield proxy


def test_below_another_path_and_behind_a_proxy_that_holds_back(open_page: OpenPage, server: Live) -> None:
    server.backend.arrange("count", counting(40))
    with proxied(server.port, "/deep/chat", is_buffering=True) as proxy:
        page = open_page(proxy.url)
        answer = page.ask("count")
        expect(answer).to_contain_text("39 40")
        expect(answer).to_have_attribute("data-state", "done")
        server.backend.arrange("code", "```python\nx = 1\n```\n\n$a^2$")
        answer = page.ask("code")
        expect(answer.locator(".hljs-number")).to_have_text("1")
        expect(answer.locator("math")).to_have_count(1)
        page.reload()
        expect(page.by("turn")).to_have_count(4)
        page.close()


def test_a_line_that_breaks_in_mid_answer_and_comes_back(
    open_page: OpenPage, server: Live, proxy: Proxy
) -> None:
    page = open_page(proxy.url)
    page.expected += ["console: Failed to load resource", "ERR_"]
    server.backend.arrange("count", counting(300))
    server.backend.continue_with("and the rest.")
    proxy.break_after = 4000
    answer = page.ask("count")
    expect(answer).to_have_attribute("data-state", "interrupted")
    kept = answer.get_by_test_id("content").inner_text()
    assert kept.startswith("1 2 3")
    until(lambda: server.backend.stats().running == 0)
    proxy.break_after, proxy.is_down = None, True
    page.by("note-continue").click()
    until(lambda: proxy.num_refused > 0)
    expect(answer).to_have_attribute("data-state", "interrupted")
    page.until_free()
    assert answer.get_by_test_id("content").inner_text() == kept
    proxy.is_down = False
    page.by("note-continue").click()
    expect(answer.get_by_test_id("content")).to_contain_text("and the rest.")
    page.until_free()
    expect(answer).to_have_attribute("data-state", "done")
    page.close()


def test_a_question_that_found_nobody_is_asked_again(open_page: OpenPage, proxy: Proxy) -> None:
    page = open_page(proxy.url)
    page.expected += ["console: Failed to load resource", "ERR_"]
    proxy.is_down = True
    answer = page.ask("anybody?")
    expect(answer).to_have_attribute("data-state", "failed")
    proxy.is_down = False
    page.by("note-retry").click()
    page.until_free()
    page.shows("anybody?", "You said: anybody?")
    page.close()


def test_an_error_in_the_words_of_a_proxy_is_told(open_page: OpenPage, proxy: Proxy) -> None:
    page = open_page(proxy.url)
    page.expected += ["502"]
    proxy.is_alone = True
    answer = page.ask("anybody?")
    expect(answer).to_have_attribute("data-state", "failed")
    expect(answer.get_by_test_id("state")).to_contain_text("502")
    proxy.is_alone = False
    page.by("note-retry").click()
    expect(page.by("content").last).to_have_text("You said: anybody?")
    page.close()


def test_a_page_closed_in_mid_answer_keeps_what_came(page: ChatPage, server: Live) -> None:
    server.backend.arrange("count", counting(2000))
    answer = page.begin("count")
    expect(answer).to_contain_text("80 81", timeout=10_000)
    page.reload()
    until(lambda: server.backend.stats().running == 0)
    answer = page.turns("assistant").first
    expect(answer).to_have_attribute("data-state", "interrupted")
    expect(answer).to_contain_text("1 2 3")


def test_a_key_is_asked_for_kept_and_forgotten(open_page: OpenPage) -> None:
    with live(PageBackend(), pages=page_handlers(), api_keys=("secret",)) as server:
        page = open_page(f"{server.url}/")
        page.expected += ["401"]
        page.enter_key("wrong")
        page.enter_key("secret")
        page.ask("hi")
        page.shows("hi", "You said: hi")
        page.reload()
        page.ask("again")
        expect(page.by("content").last).to_have_text("You said: again")
        page.close()


def test_two_tabs_show_the_same(open_page: OpenPage, server: Live) -> None:
    first = open_page()
    first.ask("hello")
    second = first.another()
    second.open(0)
    second.shows("hello", "You said: hello")
    server.backend.arrange("count", counting(60))
    second.begin("count")
    expect(first.turns("assistant").nth(1)).to_contain_text("10 11")
    second.until_free()
    expect(first.turns("assistant").nth(1)).to_contain_text("59 60")
    expect(first.turns("assistant").nth(1)).to_have_attribute("data-state", "done")
    first.page.bring_to_front()
    first.rename("Our talk")
    expect(second.by("conversation").first).to_contain_text("Our talk")
    first.delete_conversation()
    expect(second.by("turn")).to_have_count(0)
    second.close()
    assert second.faults == []


def test_both_tabs_may_write_at_once(open_page: OpenPage, server: Live) -> None:
    server.backend.arrange("a", counting(40))
    server.backend.arrange("b", counting(40))
    first = open_page()
    second = first.another()
    first.begin("a")
    second.begin("b")
    first.until_free()
    second.until_free()
    expect(first.by("conversation")).to_have_count(2)
    first.reload()
    expect(first.by("conversation")).to_have_count(2)
    expect(first.turns("assistant")).to_contain_text("39 40")
    second.close()
