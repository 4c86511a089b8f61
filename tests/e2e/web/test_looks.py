"""The page for everybody: keys alone, screen readers, phones, dark, Chinese; no jumps while text streams, little to load."""

from __future__ import annotations

import re

import pytest

from tests.e2e.web.conftest import OpenPage
from tests.support.chat_page import PHONE, ChatPage, expect
from tests.support.http import Live, until
from tests.support.page_backend import Slow, tool_call

SAMPLE = """## Heading

A *paragraph* with `code`, a [link](https://example.org) and $a^2$.

```python
def f(x: int) -> str:  # a comment
    return f"{x} times" * 2
```

> quoted

| name | value |
|---|--:|
| a | 1 |

1. one
2. two
"""


def _converse(page: ChatPage, server: Live) -> None:
    """All that a conversation can show."""
    server.backend.arrange("show", f"<think>\nLet me see.\n</think>\n\n{SAMPLE}", "Another.")
    server.backend.arrange("call", tool_call("look", x=1))
    page.define_tool("look", "Looks", '{"type": "object", "properties": {"x": {"type": "integer"}}}')
    answer = page.ask("show")
    answer.get_by_test_id("reasoning").locator("summary").click()
    page.again(answer, "2 / 2")
    page.press(answer, "variant-previous")
    expect(answer.locator(".hljs-keyword").first).to_be_visible()
    page.ask("call")


@pytest.mark.parametrize(("scheme", "language"), [("light", "en-US"), ("dark", "zh-CN")])
def test_a_checker_finds_no_serious_fault(
    open_page: OpenPage, server: Live, scheme: str, language: str
) -> None:
    page = open_page(scheme=scheme, language=language)
    assert page.axe() == []
    _converse(page, server)
    assert page.axe() == []
    for tab in ("prompt", "sampling", "tools", "page"):
        page.panel(tab)
        assert page.axe() == [], tab
    page.panel("tools")
    page.by("tool-new").click()
    assert page.axe() == []
    page.page.keyboard.press("Escape")
    page.by("panel-close").click()
    page.press(page.turns("user").first, "edit")
    assert page.axe() == []
    page.by("edit-cancel").click()
    page.press(page.turns("user").first, "more")
    assert page.axe() == []
    page.page.keyboard.press("Escape")
    for opener in ("open-transfer", "open-help"):
        page.by(opener).click()
        assert page.axe() == [], opener
        page.page.keyboard.press("Escape")


def test_a_checker_finds_no_serious_fault_on_a_phone(open_page: OpenPage, server: Live) -> None:
    page = open_page(size=PHONE, has_touch=True, is_mobile=True)
    assert page.axe() == []
    page.by("sidebar-open").click()
    assert page.axe() == []
    page.by("sidebar-close").click()
    page.panel("sampling")
    assert page.axe() == []


def test_a_phone_shows_everything_without_scrolling_sideways(open_page: OpenPage, server: Live) -> None:
    page = open_page(size=PHONE, has_touch=True, is_mobile=True)
    width = "document.documentElement.scrollWidth"
    assert page.page.evaluate(width) <= PHONE["width"]
    server.backend.arrange(
        "wide", f"{SAMPLE}\n\n```\n{'x' * 300}\n```\n\n{'y' * 300}\n\n$$\n{'a+' * 80}b\n$$"
    )
    page.ask("wide")
    assert page.page.evaluate(width) <= PHONE["width"]
    page.by("sidebar-open").tap()
    expect(page.by("sidebar")).to_be_in_viewport()
    page.by("conversation").first.wait_for()
    assert page.page.evaluate(width) <= PHONE["width"]
    page.by("sidebar-close").tap()
    expect(page.by("sidebar")).not_to_be_in_viewport()
    page.panel("prompt")
    box = page.by("system").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    page.by("panel-close").tap()
    for control in ("send", "attach", "sidebar-open", "panel-open"):
        box = page.by(control).bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 32, control


def test_chinese_follows_the_browser_and_the_choice(open_page: OpenPage) -> None:
    page = open_page(language="zh-CN")
    expect(page.page.locator("html")).to_have_attribute("lang", re.compile("^zh"))
    expect(page.by("new-chat")).to_have_text(re.compile("[一-龥]"))
    page.ask("你好")
    untranslated = page.page.evaluate(
        "[...document.querySelectorAll('button, label, h1, h2, summary, select, textarea')]"
        ".filter(e => e.checkVisibility()).map(e => e.getAttribute('aria-label') ?? e.getAttribute('placeholder') ?? '')"
        ".filter(text => /^[a-z ]{4,}$/i.test(text))"
    )
    assert untranslated == []
    page.panel("page")
    page.by("language").select_option("en")
    expect(page.by("new-chat")).to_have_text(re.compile("[A-Za-z]"))
    page.reload()
    expect(page.page.locator("html")).to_have_attribute("lang", "en")


def test_dark_follows_the_system_and_the_choice(open_page: OpenPage) -> None:
    page = open_page(scheme="dark")
    shade = "getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    assert page.page.evaluate(shade) < 200
    page.panel("page")
    page.by("theme-light").check(force=True)
    until(lambda: page.page.evaluate(shade) > 600)
    page.reload()
    until(lambda: page.page.evaluate(shade) > 600)


def test_keys_alone_are_enough(page: ChatPage, server: Live) -> None:
    keyboard = page.page.keyboard
    server.backend.arrange("slow", Slow(["word "] * 2000, 0.02))
    expect(page.prompt).to_be_focused()
    keyboard.type("first line")
    keyboard.press("Shift+Enter")
    keyboard.type("second line")
    keyboard.press("Enter")
    page.shows("first line second line", "You said: first line second line")
    page.until_free()
    assert page.turns("user").get_by_test_id("content").inner_text() == "first line\nsecond line"
    keyboard.type("slow")
    keyboard.press("Enter")
    expect(page.turns("assistant").nth(1)).to_contain_text("word word")
    keyboard.press("Escape")
    expect(page.turns("assistant").nth(1)).to_have_attribute("data-state", "stopped")
    keyboard.press("Control+Shift+KeyO")
    expect(page.by("turn")).to_have_count(0)
    keyboard.press("Control+Shift+KeyF")
    expect(page.by("search")).to_be_focused()
    page.page.evaluate("document.activeElement.blur()")
    keyboard.press("?")
    expect(page.by("help-dialog")).to_be_visible()
    keyboard.press("Escape")
    expect(page.by("help-dialog")).to_have_count(0)
    keyboard.press("/")
    expect(page.prompt).to_be_focused()


def test_every_control_can_be_reached_with_tab_in_order(page: ChatPage) -> None:
    page.ask("hello")
    page.page.evaluate("document.activeElement.blur(); document.querySelector('.skip-link').focus()")
    seen: list[str] = []
    for _ in range(40):
        seen.append(
            page.page.evaluate("document.activeElement.dataset?.testid ?? document.activeElement.className")
        )
        page.page.keyboard.press("Tab")
    order = [
        "new-chat",
        "search",
        "conversation-link",
        "panel-open",
        "edit",
        "regenerate",
        "prompt",
        "attach",
    ]
    places = [seen.index(name) for name in order]
    assert places == sorted(places), seen


def test_screen_readers_hear_of_answers(page: ChatPage) -> None:
    page.ask("hello")
    expect(page.by("announcer")).to_have_attribute("aria-live", "polite")
    expect(page.by("announcer")).to_have_text(re.compile(r"\S"))
    expect(page.turns("assistant").locator("h2")).to_have_text(re.compile(r"\S"))


def test_nothing_jumps_while_text_streams(page: ChatPage, server: Live) -> None:
    server.backend.arrange("stream", Slow([SAMPLE[i : i + 6] for i in range(0, len(SAMPLE), 6)], 0.01))
    page.page.evaluate(
        "() => { window.__shift = 0; new PerformanceObserver(list => { for (const e of list.getEntries()) if (!e.hadRecentInput)"
        " window.__shift += e.value; }).observe({type: 'layout-shift', buffered: false}); }"
    )
    page.ask("stream")
    assert page.page.evaluate("window.__shift") < 0.1


def test_little_is_loaded_and_nothing_from_elsewhere(page: ChatPage, server: Live) -> None:
    server.backend.arrange("show", SAMPLE)
    answer = page.ask("show")
    expect(answer.locator("math")).to_have_count(1)
    expect(answer.locator(".hljs-keyword").first).to_be_visible()
    loaded = page.page.evaluate(
        "performance.getEntries().reduce((sum, e) => sum + (e.decodedBodySize ?? 0), 0)"
    )
    assert 200_000 < loaded < 1_500_000
