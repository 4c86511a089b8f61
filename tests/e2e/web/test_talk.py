"""A conversation on the page: sending, stopping, editing, branches and variants, thoughts, tools, cut and failed answers."""

from __future__ import annotations

import re
import time

import pytest

from qwenkit.core.types import Message
from tests.support.chat_page import ChatPage, expect
from tests.support.http import Live, until
from tests.support.page_backend import Slow, counting, tool_call

LONG = "It was a long answer. " * 20


def _roles(server: Live) -> list[tuple[str, str]]:
    """What the model was told last."""
    return [(m.role, m.content) for m in server.backend.requests[-1].prompt if isinstance(m, Message)]


def test_an_answer_comes_with_its_figures(page: ChatPage) -> None:
    answer = page.ask("Hello **there**")
    expect(answer.get_by_test_id("content")).to_have_text("You said: Hello there")
    expect(answer.locator("strong")).to_have_text("there")
    expect(page.turns("user").get_by_test_id("content")).to_have_text("Hello **there**")
    for name in ("stat-tokens", "stat-speed", "stat-first"):
        expect(answer.get_by_test_id(name)).to_contain_text(re.compile(r"\d"))
    expect(page.prompt).to_have_value("")
    expect(page.prompt).to_be_focused()


def test_stopping_ends_the_work_of_the_server(page: ChatPage, server: Live) -> None:
    server.backend.arrange("count", counting(2000))
    answer = page.begin("count")
    expect(answer).to_contain_text("5 6 7")
    assert server.backend.stats().running == 1
    page.page.locator("#stop").click()
    page.until_free()
    until(lambda: server.backend.stats().running == 0, 2)
    kept = answer.get_by_test_id("content").inner_text()
    assert kept.startswith("1 2 3")
    assert "2000" not in kept
    expect(answer).to_have_attribute("data-state", "stopped")
    page.reload()
    page.shows("count", kept.strip())


def test_a_stopped_answer_is_gone_on_with(page: ChatPage, server: Live) -> None:
    server.backend.arrange("count", counting(2000))
    answer = page.begin("count")
    expect(answer).to_contain_text("5 6 7")
    page.page.locator("#stop").click()
    page.until_free()
    kept = answer.get_by_test_id("content").inner_text().strip()
    server.backend.arrange(server.backend.requests[-1].prompt[-1].content, "no")
    server.backend.continue_with("and so on.")
    page.by("note-continue").click()
    page.until_free()
    expect(answer.get_by_test_id("content")).to_have_text(f"{kept} and so on.")
    assert _roles(server)[-1] == ("assistant", f"{kept} ")
    assert server.backend.requests[-1].continue_final
    expect(page.by("pager")).to_have_count(0)


def test_an_answer_cut_by_its_length_is_gone_on_with(page: ChatPage, server: Live) -> None:
    server.backend.arrange("story", LONG)
    page.settings(max_tokens="40")
    answer = page.ask("story")
    expect(answer).to_have_attribute("data-state", "length")
    assert answer.get_by_test_id("content").inner_text() == LONG[:40].strip()
    server.backend.continue_with("END")
    page.by("note-continue").click()
    page.until_free()
    expect(answer).to_have_attribute("data-state", "done")
    expect(answer.get_by_test_id("content")).to_have_text(f"{LONG[:40]}END")


def test_editing_makes_a_branch_and_keeps_the_other(page: ChatPage, server: Live) -> None:
    page.ask("first")
    page.ask("second")
    question = page.turns("user").first
    page.press(question, "edit")
    page.by("edit-field").fill("other")
    page.by("edit-send").click()
    page.until_free()
    page.shows("other", "You said: other")
    assert _roles(server) == [("user", "other")]
    expect(question.get_by_test_id("variant")).to_have_text("2 / 2")
    page.press(question, "variant-previous")
    page.shows("first", "You said: first", "second", "You said: second")
    page.reload()
    page.shows("first", "You said: first", "second", "You said: second")
    page.press(page.turns("user").first, "variant-next")
    page.shows("other", "You said: other")


def test_editing_ends_without_a_change_on_escape(page: ChatPage) -> None:
    page.ask("first")
    page.press(page.turns("user").first, "edit")
    page.by("edit-field").fill("other")
    page.by("edit-field").press("Escape")
    page.shows("first", "You said: first")
    expect(page.by("pager")).to_have_count(0)


def test_answers_are_made_again_and_paged_through(page: ChatPage, server: Live) -> None:
    server.backend.arrange("again", "one", "two", "three")
    page.ask("again")
    answer = page.turns("assistant").first
    for text, count in (("two", "2 / 2"), ("three", "3 / 3")):
        page.again(answer, count)
        expect(answer.get_by_test_id("content")).to_have_text(text)
    page.press(answer, "variant-previous")
    expect(answer.get_by_test_id("content")).to_have_text("two")
    page.ask("more")
    assert _roles(server) == [("user", "again"), ("assistant", "two"), ("user", "more")]
    page.reload()
    page.shows("again", "two", "more", "You said: more")


def test_an_answer_can_be_put_into_other_words(page: ChatPage, server: Live) -> None:
    page.ask("hi")
    answer = page.turns("assistant").first
    page.press(answer, "edit")
    page.by("edit-field").fill("Good day.")
    page.by("edit-save").click()
    expect(page.turns("assistant").first.get_by_test_id("content")).to_have_text("Good day.")
    page.ask("more")
    assert _roles(server)[1] == ("assistant", "Good day.")


def test_a_turn_is_deleted_with_what_follows_and_brought_back(page: ChatPage) -> None:
    page.ask("first")
    page.ask("second")
    page.choose(page.turns("user").nth(1), "delete")
    page.shows("first", "You said: first")
    page.by("note-action").click()
    expect(page.by("turn")).to_have_count(4)
    page.choose(page.turns("user").nth(1), "delete")
    page.by("note-action").wait_for()
    page.reload()
    page.shows("first", "You said: first")


def test_a_conversation_forks(page: ChatPage) -> None:
    page.ask("first")
    page.ask("second")
    page.choose(page.turns("assistant").first, "fork")
    expect(page.by("turn")).to_have_count(2)
    page.ask("third")
    page.shows("first", "You said: first", "third", "You said: third")
    expect(page.by("conversation")).to_have_count(2)


def test_thoughts_are_folded_and_open_on_demand(page: ChatPage, server: Live) -> None:
    server.backend.arrange("why", "<think>\nBecause of *that*.\n</think>\n\nThat is why.")
    answer = page.ask("why")
    expect(answer.get_by_test_id("content")).to_have_text("That is why.")
    thoughts = answer.get_by_test_id("reasoning-text")
    expect(thoughts).to_be_hidden()
    answer.get_by_test_id("reasoning").locator("summary").click()
    expect(thoughts).to_be_visible()
    expect(thoughts.locator("em")).to_have_text("that")
    page.ask("and now")
    assert all("Because" not in content for _, content in _roles(server))


def test_thinking_can_be_turned_off(page: ChatPage, server: Live) -> None:
    page.by("thinking").click()
    page.ask("hi")
    assert server.backend.requests[-1].template_options["enable_thinking"] is False
    page.by("thinking").click()
    page.ask("again")
    assert server.backend.requests[-1].template_options.get("enable_thinking") is not False


def test_tools_are_defined_called_and_answered_by_hand(page: ChatPage, server: Live) -> None:
    page.define_tool(
        "weather", "Weather of a city", '{"type": "object", "properties": {"city": {"type": "string"}}}'
    )
    server.backend.arrange("Weather in Oslo?", tool_call("weather", city="Oslo"))
    server.backend.arrange('{"sky": "rain"}', "It rains in Oslo.")
    answer = page.ask("Weather in Oslo?")
    call = answer.get_by_test_id("call")
    expect(call).to_have_attribute("data-name", "weather")
    expect(call.locator("code").nth(1)).to_have_text('{\n  "city": "Oslo"\n}')
    tools = server.backend.requests[-1].tools
    assert [tool.name for tool in tools] == ["weather"]
    call.get_by_test_id("call-reply").fill('{"sky": "rain"}')
    page.by("call-send").click()
    expect(page.turns("assistant").nth(1).get_by_test_id("content")).to_have_text("It rains in Oslo.")
    page.until_free()
    assert _roles(server)[-1] == ("tool", '{"sky": "rain"}')
    page.reload()
    expect(page.by("call-result")).to_contain_text("rain")


def test_code_is_coloured_and_copied(page: ChatPage, server: Live) -> None:
    code = "def twice(n):\n    return n * 2  # <b>not bold</b>"
    server.backend.arrange("code", f"Here:\n\n```python\n{code}\n```\n\nDone.")
    answer = page.ask("code")
    block = answer.get_by_test_id("code")
    expect(block.locator(".hljs-keyword").first).to_have_text("def")
    block.get_by_test_id("copy").click()
    assert page.page.evaluate("navigator.clipboard.readText()") == code
    answer.hover()
    answer.get_by_test_id("copy-turn").click()
    assert page.page.evaluate("navigator.clipboard.readText()") == f"Here:\n\n```python\n{code}\n```\n\nDone."


def test_formulas_and_tables_are_drawn_and_prices_are_not(page: ChatPage, server: Live) -> None:
    server.backend.arrange(
        "draw",
        "Is $a^2$ more than \\(b\\)? It costs $5 and $10.\n\n$$\\frac{1}{2}$$\n\n| a | b |\n|---|--:|\n| 1 | 2 |",
    )
    answer = page.ask("draw")
    expect(answer.locator("math")).to_have_count(3)
    expect(answer.locator("mfrac")).to_be_visible()
    expect(answer).to_contain_text("It costs $5 and $10.")
    expect(answer.locator("td")).to_have_text(["1", "2"])


def test_chinese_emphasis_and_right_to_left_text(page: ChatPage, server: Live) -> None:
    server.backend.arrange("中文", "**你好。**世界")
    expect(page.ask("中文").locator("strong")).to_have_text("你好。")
    server.backend.arrange("مرحبا", "أهلا وسهلا بك")
    answer = page.ask("مرحبا")
    direction = "e => getComputedStyle(e).direction"
    assert answer.get_by_test_id("content").locator("p").evaluate(direction) == "rtl"
    assert page.turns("user").nth(1).get_by_test_id("content").evaluate(direction) == "rtl"
    assert page.turns("assistant").first.locator("p").evaluate(direction) == "ltr"


def test_a_failing_engine_is_told_and_tried_again(page: ChatPage, server: Live) -> None:
    page.expected += ["500"]
    server.backend.arrange("fail", ["Half an ans", RuntimeError("broken")], "All is well.")
    answer = page.ask("fail")
    expect(answer).to_have_attribute("data-state", "failed")
    expect(answer.get_by_test_id("content")).to_have_text("Half an ans")
    page.by("note-retry").click()
    expect(page.turns("assistant").first.get_by_test_id("content")).to_have_text("All is well.")
    page.until_free()


def test_settings_are_sent_and_kept_with_the_conversation(page: ChatPage, server: Live) -> None:
    page.settings(system="Be brief.", temperature="0.5", top_p="0.9", seed="7", max_tokens="100")
    page.ask("hi")
    assert _roles(server)[0] == ("system", "Be brief.")
    params = server.backend.requests[-1].params
    assert (params.temperature, params.top_p, params.seed, params.max_tokens) == (0.5, 0.9, 7, 100)
    page.reload()
    page.ask("again")
    assert _roles(server)[0] == ("system", "Be brief.")
    assert server.backend.requests[-1].params.seed == 7


def test_presets_give_a_role(page: ChatPage, server: Live) -> None:
    for name in ("role", "style", "task", "behaviour"):
        page.by(f"preset-{name}").click()
        assert page.prompt.input_value()
    page.prompt.press("Enter")
    expect(page.turns("assistant")).to_contain_text("You said:")
    assert _roles(server)[0][0] == "system"
    assert len(_roles(server)[0][1]) > 20


def test_adapters_can_be_chosen(page: ChatPage, server: Live, tmp_path: object) -> None:
    server.backend.load_adapter("pirate", str(tmp_path))
    try:
        page.reload()
        page.choose_model("pirate")
        page.ask("hi")
        assert server.backend.requests[-1].adapter == "pirate"
        page.reload()
        page.ask("again")
        assert server.backend.requests[-1].adapter == "pirate"
    finally:
        server.backend.unload_adapter("pirate")


def test_headings_of_one_level_stay_on_one(page: ChatPage, server: Live) -> None:
    server.backend.arrange("outline", "### a\n\n### b\n\n##### c\n\n#### d\n\n# e\n\n## f\n\nEnd.")
    answer = page.ask("outline").get_by_test_id("content")
    expect(answer.locator("p")).to_have_text("End.")
    found = answer.locator("h3, h4, h5, h6").evaluate_all(
        "all => all.map(h => h.nodeName + h.textContent.trim())"
    )
    assert found == ["H3a", "H3b", "H4c", "H4d", "H3e", "H4f"]


def test_a_very_long_answer_is_shown_whole_piece_by_piece(page: ChatPage, server: Live) -> None:
    block = "### Part {0}\n\nText **{0}** with $x_{{{0}}}$.\n\n```python\nx = {0}\n```\n\n"
    server.backend.arrange(
        "long", ["".join(block.format(n) + "word " * 60 + "\n\n" for n in range(130)), "THE END"]
    )
    page.ask("long")
    page.reload()
    answer = page.turns("assistant").get_by_test_id("content")
    expect(answer).to_contain_text("THE END")
    expect(answer.locator("h3")).to_have_count(130)
    expect(answer.locator("p").last).to_be_in_viewport()
    assert [text.strip() for text in answer.locator("h3").all_text_contents()] == [
        f"Part {n}" for n in range(130)
    ]
    answer.locator("h3").nth(40).scroll_into_view_if_needed()
    expect(answer.get_by_test_id("code").nth(40).locator(".hljs-number")).to_have_text("40")
    expect(answer.locator(".math").nth(40).locator("math")).to_have_count(1)
    assert answer.locator(".math.drawn").count() < 130


def test_the_view_follows_unless_the_reader_looks_up(page: ChatPage, server: Live) -> None:
    server.backend.arrange("long", Slow([f"Line {n}.\n\n" for n in range(150)], 0.01))
    page.begin("long")
    thread = page.page.locator("#thread")
    expect(page.turns("assistant")).to_contain_text("Line 40.")
    assert thread.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") < 60
    thread.hover()
    page.page.mouse.wheel(0, -400)
    time.sleep(0.1)
    place = thread.evaluate("e => e.scrollTop")
    expect(page.turns("assistant")).to_contain_text("Line 100.")
    assert thread.evaluate("e => e.scrollTop") == pytest.approx(place, abs=2)
    page.page.locator("#jump").click()
    page.until_free()
    assert thread.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") < 60
