"""What the page keeps: conversations listed, searched, renamed, deleted, exported and imported; files that are sent along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.web.conftest import OpenPage
from tests.support.chat_page import ChatPage, expect
from tests.support.http import Live
from tests.support.page_backend import tool_call


def _names(page: ChatPage) -> list[str]:
    return [text.strip() for text in page.by("conversation").all_inner_texts()]


def test_conversations_are_listed_and_opened_again(page: ChatPage) -> None:
    page.ask("about apples")
    page.new_chat()
    page.ask("about pears")
    expect(page.by("conversation")).to_have_count(2)
    assert [name for name in ("pears", "apples") if name in " ".join(_names(page))] == ["pears", "apples"]
    page.open(1)
    page.shows("about apples", "You said: about apples")
    page.page.go_back()
    page.shows("about pears", "You said: about pears")
    page.reload()
    page.shows("about pears", "You said: about pears")


def test_search_finds_words_of_titles_and_turns(page: ChatPage, server: Live) -> None:
    server.backend.arrange("fruit", "There is a *quince* in it, and Straße.")
    page.ask("fruit")
    page.new_chat()
    page.ask("vegetables")
    for words, found in {
        "quince": 1,
        "QUINCE": 1,
        "vegetab": 1,
        "nothing at all": 0,
        "straße": 1,
        "": 2,
    }.items():
        page.search(words)
        expect(page.by("conversation")).to_have_count(found)


def test_a_conversation_is_renamed_and_deleted(page: ChatPage) -> None:
    page.ask("one")
    page.rename("My own name")
    expect(page.by("conversation").first).to_contain_text("My own name")
    page.ask("two")
    page.reload()
    expect(page.by("conversation").first).to_contain_text("My own name")
    page.delete_conversation()
    expect(page.by("conversation")).to_have_count(0)
    page.by("note-action").click()
    expect(page.by("conversation")).to_have_count(1)
    page.delete_conversation()
    page.reload()
    expect(page.by("conversation")).to_have_count(0)
    expect(page.by("turn")).to_have_count(0)


def test_an_export_imported_elsewhere_is_the_same(open_page: OpenPage, server: Live) -> None:
    server.backend.arrange("again", "one", "two")
    server.backend.arrange("why", "<think>\nBecause.\n</think>\n\nSo it is. 你好 🌍")
    page = open_page()
    page.settings(system="Be kind.", seed="3")
    page.define_tool("look", "Looks", '{"type": "object", "properties": {"x": {"type": "string"}}}')
    page.ask("again")
    page.again(page.turns("assistant").first, "2 / 2")
    page.ask("why")
    server.backend.arrange("call", tool_call("look", x="y"))
    page.ask("call").get_by_test_id("call-reply").fill("seen")
    page.by("call-send").click()
    page.until_free()
    page.new_chat()
    page.ask("other")
    exported = json.loads(page.export("json").read_text())
    file = page.folder / "export.json"
    file.write_text(json.dumps(exported))
    other = open_page()
    other.import_file(file)
    expect(other.by("conversation")).to_have_count(2)
    again = json.loads(other.export("json").read_text())
    for value in (exported, again):
        for name in ("exported", "created", "date"):
            value.pop(name, None)
    assert again == exported
    other.open(1)
    expect(other.turns("assistant").first.get_by_test_id("variant")).to_have_text("2 / 2")
    expect(other.by("content").nth(1)).to_have_text("two")
    other.import_file(file)
    assert len(json.loads(other.export("json").read_text())["conversations"]) in (2, 4)


def test_an_export_as_markdown_reads_like_the_conversation(page: ChatPage, server: Live) -> None:
    server.backend.arrange("code", "Here:\n\n```python\nx = 1\n```")
    page.settings(system="Be kind.")
    page.ask("code")
    text = page.export("markdown").read_text()
    for part in ("Be kind.", "code", "Here:\n\n```python\nx = 1\n```"):
        assert part in text
    assert text.startswith("# ")


def test_files_are_sent_along_and_kept(page: ChatPage, server: Live, tmp_path: Path) -> None:
    (tmp_path / "fox.py").write_text("print('```fox```')\n")
    (tmp_path / "notes.txt").write_text("你好\n", encoding="gb18030")
    page.page.set_input_files("#file-input", [tmp_path / "fox.py", tmp_path / "notes.txt"])
    expect(page.by("file-chip")).to_have_count(2)
    page.ask("read them")
    sent = server.backend.requests[-1].prompt[-1].content
    for part in ("fox.py", "print('```fox```')", "notes.txt", "你好", "read them"):
        assert part in sent
    assert "````python" in sent
    expect(page.by("file")).to_have_count(2)
    page.reload()
    expect(page.by("file")).to_have_count(2)


@pytest.mark.parametrize(
    ("name", "content"),
    [("large.txt", b"x" * (512 * 1024 + 1)), ("binary.bin", bytes(range(256)) * 8), ("empty.txt", b"")],
)
def test_files_that_do_not_fit_are_refused(page: ChatPage, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    page.page.set_input_files("#file-input", [tmp_path / name])
    expect(page.by("note")).to_contain_text(name)
    expect(page.by("file-chip")).to_have_count(0)
