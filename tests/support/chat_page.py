"""The chat page as a test drives it: a browser profile of its own, and everything that went wrong inside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

AXE = Path(__file__).parents[1] / "data" / "axe" / "axe.min.js"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
_WATCH = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (e) =>
  window.__violations.push(`${e.effectiveDirective} ${e.blockedURI} ${e.sample}`));
"""
expect.set_options(timeout=15_000)
_SERIOUS = frozenset({"serious", "critical"})


class ChatPage:
    """The page in a browser.

    Args:
        browser: where.
        url: of the page.
        folder: where files go.
        language: of the browser.
        scheme: light or dark.
        size: of the window.
        context: a profile that has other pages open; None: a new one.
    """

    def __init__(
        self,
        browser: Browser,
        url: str,
        folder: Path,
        *,
        language: str = "en-US",
        scheme: str = "light",
        size: dict[str, int] | None = None,
        context: BrowserContext | None = None,
        **options: Any,
    ) -> None:
        self.url, self.folder = url, folder
        self._is_own = context is None
        if context is None:
            context = browser.new_context(
                locale=language,
                color_scheme=scheme,
                viewport=size or DESKTOP,
                reduced_motion="reduce",
                permissions=["clipboard-read", "clipboard-write"],
                **options,
            )
            context.set_default_timeout(15_000)
            context.add_init_script(_WATCH)
        self.context = context
        self.page: Page = context.new_page()
        self.faults: list[str] = []
        self.foreign: list[str] = []
        self.expected: list[str] = []
        """Patterns of complaints that a test provokes."""
        self._listen()
        self.goto(url)

    def goto(self, url: str) -> None:
        """Goes there, until the page is ready."""
        self.page.goto(url)
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector("html[data-ready=true]")

    def _listen(self) -> None:
        origin = urlsplit(self.url).netloc

        def requested(request: Any) -> None:
            parts = urlsplit(request.url)
            if parts.scheme in ("http", "https") and parts.netloc != origin:
                self.foreign.append(request.url)

        def dialog(box: Any) -> None:
            self.faults.append(f"dialog: {box.message}")
            box.dismiss()

        def said(message: Any) -> None:
            if message.type in ("error", "warning"):
                self.faults.append(f"console: {message.text} {message.location.get('url', '')}")

        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", said)
        self.page.on("dialog", dialog)
        self.page.on("request", requested)

    def restart(self, folder: Path) -> None:
        """Begins anew with an empty profile, which is quicker than another one."""
        self.folder = folder
        self.page.goto("about:blank")
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(self.url))
        session = self.context.new_cdp_session(self.page)
        session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
        session.detach()
        for found in (self.faults, self.foreign, self.expected):
            found.clear()
        self.goto(self.url)

    def look_back(self) -> None:
        """Notes what must not have happened."""
        self.faults += [f"policy: {v}" for v in self.page.evaluate("window.__violations ?? []")]
        if self.page.evaluate("window.PWNED !== undefined"):
            self.faults.append("a script of a text was run")

    def close(self) -> None:
        """Looks back, and closes the profile."""
        if self.page.is_closed():
            return
        self.look_back()
        if self._is_own:
            self.context.close()
        else:
            self.page.close()

    def assert_clean(self) -> None:
        """Fails where the page complained, ran what it must not, or asked another server."""
        left = [f for f in self.faults if not any(re.search(pattern, f) for pattern in self.expected)]
        assert left == [], left
        assert self.foreign == [], self.foreign

    def another(self) -> ChatPage:
        """Another tab of the same profile."""
        return ChatPage(None, self.url, self.folder, context=self.context)  # type: ignore[arg-type]

    def reload(self) -> None:
        """Loads the page again, until it is ready."""
        self.page.reload()
        self.ready()

    @property
    def prompt(self) -> Locator:
        """Where a person writes."""
        return self.page.locator("#prompt")

    def begin(self, text: str) -> Locator:
        """Sends a text; the answer, as soon as it is on its way."""
        before = self.turns("assistant").count()
        self.prompt.fill(text)
        self.prompt.press("Enter")
        answer = self.turns("assistant").nth(before)
        answer.wait_for()
        return answer

    def ask(self, text: str) -> Locator:
        """Sends a text; the answer, at its end."""
        answer = self.begin(text)
        self.until_free()
        return answer

    def until_free(self) -> None:
        """Waits until no answer is on its way."""
        expect(self.page.locator("[data-testid=turn][data-state=streaming]")).to_have_count(0)
        expect(self.page.locator("#stop")).to_be_hidden()

    def turns(self, role: str) -> Locator:
        """What one side said."""
        return self.page.locator(f"[data-testid=turn][data-role={role}]")

    def shows(self, *texts: str) -> None:
        """Expects the words of all turns that are shown."""
        expect(self.by("content")).to_have_text(list(texts))

    def again(self, answer: Locator, variants: str) -> None:
        """Has an answer made once more, which makes so many variants, such as "2 / 2"."""
        self.press(answer, "regenerate")
        expect(answer.get_by_test_id("variant")).to_have_text(variants)
        self.until_free()

    def press(self, turn: Locator, testid: str) -> None:
        """Presses a button of a turn."""
        turn.hover()
        turn.get_by_test_id(testid).click()

    def choose(self, turn: Locator, testid: str) -> None:
        """Chooses from the menu of a turn."""
        self.press(turn, "more")
        self.by("menu").get_by_test_id(testid).click()

    def by(self, testid: str) -> Locator:
        """Elements by their test id."""
        return self.page.get_by_test_id(testid)

    def panel(self, tab: str) -> None:
        """Opens the settings at a tab."""
        if self.by("panel").is_hidden():
            self.by("panel-open").click()
        self.by(f"tab-{tab}").click()

    def settings(self, **values: str) -> None:
        """Types settings: ``system``, or numbers by the name of their field."""
        for name, value in values.items():
            self.panel("prompt" if name == "system" else "sampling")
            field = self.by("system" if name == "system" else f"set-{name}")
            field.fill(value)
            field.press("Tab")
        self.by("panel-close").click()

    def define_tool(self, name: str, description: str, schema: str) -> None:
        """Adds a tool, and offers it to the model."""
        self.panel("tools")
        self.by("tool-new").click()
        for field, text in (("name", name), ("description", description), ("schema", schema)):
            self.by(f"tool-{field}").fill(text)
        self.by("tool-save").click()
        expect(self.by("tool-dialog")).to_have_count(0)
        use = self.page.locator(f"[data-testid=tool][data-name={name}]").get_by_test_id("tool-use")
        use.check()
        self.by("panel-close").click()

    def choose_model(self, name: str) -> None:
        self.by("model").select_option(name)

    def new_chat(self) -> None:
        self.by("new-chat").click()
        expect(self.by("turn")).to_have_count(0)

    def search(self, words: str) -> None:
        self.by("search").fill(words)

    def open(self, number: int) -> None:
        """Shows a conversation of the list."""
        row = self.by("conversation").nth(number)
        row.get_by_test_id("conversation-link").click()
        expect(
            self.page.locator(
                f"[data-testid=conversation][data-id='{row.get_attribute('data-id')}'] [aria-current=page]"
            )
        ).to_have_count(1)

    def choose_in_list(self, item: str, number: int = 0) -> None:
        """Chooses from the menu of a conversation of the list."""
        row = self.by("conversation").nth(number)
        row.hover()
        row.get_by_test_id("conversation-more").click()
        self.by("menu").get_by_test_id(item).click()

    def rename(self, title: str, number: int = 0) -> None:
        """Renames a conversation of the list."""
        self.choose_in_list("rename", number)
        self.by("rename-field").fill(title)
        self.by("rename-field").press("Enter")
        expect(self.by("rename-field")).to_have_count(0)

    def delete_conversation(self, number: int = 0) -> None:
        before = self.by("conversation").count()
        self.choose_in_list("delete-conversation", number)
        expect(self.by("conversation")).to_have_count(before - 1)

    def export(self, kind: str) -> Path:
        """Everything as a file: json or markdown."""
        self.by("open-transfer").click()
        with self.page.expect_download() as download:
            self.by(f"export-all-{kind}").click()
        self.page.keyboard.press("Escape")
        target = self.folder / f"{len(list(self.folder.iterdir()))}-{download.value.suggested_filename}"
        download.value.save_as(target)
        return target

    def import_file(self, file: Path, *, is_refused: bool = False) -> None:
        """Imports a file."""
        self.by("open-transfer").click()
        self.by("import-input").set_input_files(file)
        result = self.by("import-result")
        if is_refused:
            expect(result).to_have_class(re.compile("is-error"))
            assert result.inner_text().strip()
        else:
            expect(result).to_have_attribute("data-t", "import.done")
        self.page.keyboard.press("Escape")

    def enter_key(self, key: str) -> None:
        """Fills in the dialog that asks for a key."""
        self.by("key-field").fill(key)
        self.by("key-save").click()

    def axe(self) -> list[str]:
        """Serious faults that a checker of accessibility finds, one line each."""
        if not self.page.evaluate("typeof axe === 'object'"):
            self.page.evaluate(AXE.read_text(encoding="utf-8") + "\n;0")
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{v['impact']} {v['id']}: {json.dumps([n['target'] for n in v['nodes']])[:300]}"
            for v in found["violations"]
            if v["impact"] in _SERIOUS
        ]


__all__ = ["DESKTOP", "PHONE", "ChatPage", "expect"]
