"""Texts that want to run scripts, in whatever the page shows: nothing runs, nothing is asked of other servers."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.web.payloads import ALL
from tests.support.chat_page import ChatPage, expect
from tests.support.http import Live
from tests.support.page_backend import tool_call

_LINKS = "all => all.map(a => a.getAttribute('href') ?? a.getAttribute('xlink:href'))"


def _assert_harmless(page: ChatPage) -> None:
    """No element that a text must not make, no attribute that listens, no link that runs; then everything is pressed."""
    inside = page.page.locator("#turns, #conversations, #notes, #title, #panel")
    for host in inside.all():
        assert (
            host.locator(
                "script, iframe, object, embed, form, base, meta, link, style, video, img, template"
            ).count()
            == 0
        )
        assert (
            host.evaluate(
                "e => [...e.querySelectorAll('*')].flatMap(c => [...c.attributes])"
                ".filter(a => a.name.startsWith('on')).length"
            )
            == 0
        )
        for link in host.locator("a").evaluate_all(_LINKS):
            assert link.startswith(("http://", "https://", "mailto:", "#")), link
    page.page.evaluate(
        "document.querySelectorAll('#turns [data-testid=content] *').forEach(e => {"
        " for (const type of ['mouseover', 'focus', 'toggle', 'error', 'load']) e.dispatchEvent(new Event(type)); })"
    )
    assert page.page.evaluate("window.PWNED") is None


def test_nothing_in_answers_runs(page: ChatPage, server: Live) -> None:
    """One answer for each, so that one cannot hide another; then all in one, and while it streams in tiny pieces."""
    server.backend.arrange("all", "\n\n".join(ALL))
    page.ask("all")
    for number, payload in enumerate(ALL):
        server.backend.arrange(f"p{number}", payload)
        page.begin(f"p{number}")
        page.until_free()
    expect(page.turns("assistant")).to_have_count(len(ALL) + 1)
    _assert_harmless(page)
    page.reload()
    _assert_harmless(page)


def test_nothing_in_thoughts_and_calls_runs(page: ChatPage, server: Live) -> None:
    text = "\n\n".join(ALL)
    server.backend.arrange("think", f"<think>\n{text}\n</think>\n\nDone.")
    page.ask("think").get_by_test_id("reasoning").locator("summary").click()
    page.define_tool("look", text[:500], '{"type": "object", "properties": {"x": {}}}')
    server.backend.arrange("call", tool_call("look", x=text))
    answer = page.ask("call")
    answer.get_by_test_id("call-reply").fill(json.dumps({"x": text}))
    page.by("call-send").click()
    expect(page.turns("assistant")).to_have_count(3)
    page.until_free()
    _assert_harmless(page)


def test_nothing_in_questions_names_and_files_runs(page: ChatPage, server: Live, tmp_path: Path) -> None:
    for number, payload in enumerate(ALL[:6]):
        name = payload.replace("/", "_")[:100]
        (tmp_path / f"{name}.txt").write_text(payload)
        page.page.set_input_files("#file-input", [tmp_path / f"{name}.txt"])
        page.by("file-chip").wait_for()
        page.ask(f"{payload} {number}")
        page.rename(payload)
        page.new_chat()
    page.search("PWNED")
    _assert_harmless(page)
    page.reload()
    page.open(0)
    page.turns("user").first.wait_for()
    for file in page.by("file").all():
        file.locator("summary").click()
    _assert_harmless(page)


def test_system_prompts_and_settings_run_nothing(page: ChatPage) -> None:
    page.settings(system="\n".join(ALL))
    page.ask("hi")
    _assert_harmless(page)


_SPOILED = frozenset(
    {
        "title",
        "content",
        "system",
        "text",
        "name",
        "description",
        "reasoning",
        "message",
        "arguments",
        "model",
    }
)


def _poisoned(exported: Any) -> Any:
    """The same with a payload for every text that a person or a model wrote; tools keep their names."""
    number = itertools.count()

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: v if k == "name" and "parameters" in value else spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v, key) for v in value]
        is_text = isinstance(value, str) and key in _SPOILED
        return ALL[next(number) % len(ALL)] if is_text else value

    return spoil(exported)


def _exported(page: ChatPage, server: Live) -> Any:
    """A conversation with all that one can hold, as the page exports it."""
    (page.folder / "a.txt").write_text("text")
    server.backend.arrange("call", "<think>\nhm\n</think>\n\n" + tool_call("look", x=1))
    server.backend.arrange("fail", ["Half", RuntimeError("broken")])
    page.define_tool("look", "Looks", '{"type": "object", "properties": {"x": {"type": "integer"}}}')
    page.page.set_input_files("#file-input", [page.folder / "a.txt"])
    page.by("file-chip").wait_for()
    page.ask("hi")
    page.ask("fail")
    page.ask("call")
    page.by("call-reply").fill("seen")
    page.by("call-send").click()
    expect(page.turns("assistant")).to_have_count(4)
    page.until_free()
    return json.loads(page.export("json").read_text())


def test_nothing_in_an_import_runs(page: ChatPage, server: Live, tmp_path: Path) -> None:
    exported = _exported(page, server)
    for round_ in range(len(ALL) // 20 + 1):
        spoiled = _poisoned(exported)
        for conversation in spoiled["conversations"]:
            conversation["id"] = f"spoiled{round_}"
            conversation["title"] = ALL[round_]
        (tmp_path / "spoiled.json").write_text(json.dumps(spoiled))
        page.import_file(tmp_path / "spoiled.json")
        _assert_harmless(page)
    for number in range(page.by("conversation").count()):
        page.open(number)
        expect(page.by("turn").last).to_be_visible()
        _assert_harmless(page)
    page.panel("tools")
    _assert_harmless(page)
    page.reload()
    _assert_harmless(page)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a value."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from _places(each, (*path, key))


def test_imports_of_any_shape_are_taken_whole_or_refused(page: ChatPage, server: Live) -> None:
    """Every part of an export replaced by something else; what is taken has the shape of an export."""
    exported = _exported(page, server)
    odd = [None, 7, -1, 1e300, "x" * 70, "<b>", [], {}, [[]], {"__proto__": {"PWNED": 1}}, True]
    documents = []
    for path in _places(exported):
        for value in odd:
            spoiled = copy.deepcopy(exported)
            inner = spoiled
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = value
            documents.append(json.dumps(spoiled))
    found = page.page.evaluate(
        """async (documents) => {
          const { readImport, ImportError } = await import(new URL("static/js/validate.js", document.baseURI));
          const counts = { taken: 0, refused: 0, broken: [] };
          for (const text of documents) {
            try {
              for (const { turns } of readImport(text).conversations)
                for (const turn of turns) if (typeof turn.content !== "string") counts.broken.push(text);
              counts.taken += 1;
            } catch (error) {
              if (error instanceof ImportError) counts.refused += 1;
              else counts.broken.push(String(error));
            }
          }
          return counts;
        }""",
        documents,
    )
    assert found["broken"] == []
    assert found["refused"] > 300
    assert found["taken"] > 20
    assert page.page.evaluate("({}).PWNED") is None


def test_what_is_no_export_is_refused_in_one_sentence(page: ChatPage, tmp_path: Path) -> None:
    page.ask("kept")
    for name, content in {
        "empty.json": b"",
        "text.json": b"hello",
        "binary.json": bytes(range(256)),
        "null.json": b"null",
        "number.json": b"7",
        "list.json": b"[]",
        "other.json": b'{"a": 1}',
        "deep.json": b"[" * 100_000,
        "cycle.json": b'{"format": "qwenkit", "conversations": [{"id": "a", "turns": [{"id": "x", "parent": "x"}]}]}',
    }.items():
        (tmp_path / name).write_bytes(content)
        page.import_file(tmp_path / name, is_refused=True)
    expect(page.by("conversation")).to_have_count(1)


def test_a_huge_import_is_refused_politely(page: ChatPage, tmp_path: Path) -> None:
    file = tmp_path / "huge.json"
    with file.open("wb") as out:
        out.write(b'{"conversations": ["')
        for _ in range(50):
            out.write(b"x" * 2**20)
        out.write(b'"]}')
    page.import_file(file, is_refused=True)
    page.ask("still here")
    expect(page.by("content").last).to_have_text("You said: still here")


def test_the_server_forbids_scripts_that_get_in_anyway(page: ChatPage) -> None:
    """The second wall: were markup ever taken as it is, the policy would stop it."""
    page.expected += ["404|Content Security Policy|Content-Security-Policy|policy: |Refused to"]
    page.page.evaluate(
        "document.querySelector('#turns').innerHTML ="
        ' \'<img src=x onerror="window.PWNED=1"><iframe srcdoc="<script>parent.PWNED=1</script>"></iframe>\''
    )
    page.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.PWNED=1'; document.body.append(s); }"
    )
    page.page.wait_for_timeout(200)
    assert page.page.evaluate("window.PWNED") is None
    assert len(page.page.evaluate("window.__violations")) >= 2
