"""How soon is the chat page there, and does it keep up? First paint, frames while text streams, long conversations.

    python benchmarks/page.py [--rounds 5] [--rate 200] [--seconds 8] [--json]

Opens the page of a server without a model in Chromium without a window. First paint: profiles of their own, nothing
cached, over loopback. Frames: an answer in Markdown of that many tokens a second; a frame counts as dropped for each
60th of a second that passed without one, beside the same page at rest. Then a conversation of 2,000 turns and an answer
of 100 kB are opened: until they are painted and the page is at rest; and scrolled up, 60 pixels a frame for 4 seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from qwenkit.web.page import page_handlers

sys.path.insert(0, str(Path(__file__).parents[1]))
import itertools

from tests.support.browser import find_browser
from tests.support.http import live
from tests.support.page_backend import PageBackend, Slow

TURNS, LONG_ANSWER = 2000, 100_000
PARAGRAPH = (
    "The **quick** brown fox jumps over the `lazy` dog, and *nobody* minds. It is said that $a^2 + b^2 = c^2$ holds.\n\n"
    "- one thing\n- another thing\n\n```python\ndef fox(n: int) -> int:\n    return n * 2  # twice\n```\n\n"
    "| name | value |\n|---|---|\n| a | 1 |\n| b | 2 |\n\n"
)
_FRAMES = """
() => new Promise((done) => {
  const stamps = [];
  let shift = 0, blocked = 0;
  new PerformanceObserver((list) => { for (const e of list.getEntries()) if (!e.hadRecentInput) shift += e.value; })
    .observe({ type: "layout-shift" });
  new PerformanceObserver((list) => { for (const e of list.getEntries()) blocked += e.duration - 50; })
    .observe({ type: "longtask" });
  const tick = (now) => { stamps.push(now); if (!window.__stop) requestAnimationFrame(tick); else done({ stamps, shift, blocked }); };
  window.__stop = false;
  requestAnimationFrame(tick);
})
"""
_AT_REST = """
() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>
  (window.requestIdleCallback ?? setTimeout)(() => done(performance.now())))))
"""
_SCROLL = """
() => new Promise((done) => {
  const box = document.querySelector("#thread"), start = performance.now();
  const step = (now) => { box.scrollTop -= 60; now - start < 4000 ? requestAnimationFrame(step) : done(); };
  requestAnimationFrame(step);
})
"""
_FILL = """
async ([conversation, turns]) => {
  const request = indexedDB.open("qwenkit");
  const db = await new Promise((resolve, reject) => { request.onsuccess = () => resolve(request.result); request.onerror = reject; });
  const transaction = db.transaction(["conversations", "turns"], "readwrite");
  transaction.objectStore("conversations").put(conversation);
  for (const turn of turns) transaction.objectStore("turns").put(turn);
  await new Promise((resolve, reject) => { transaction.oncomplete = resolve; transaction.onerror = reject; });
  db.close();
}
"""


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """The page in a profile of its own, once it is ready."""
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("html[data-ready=true]")
    yield page
    context.close()


def paint(browser: Browser, url: str, rounds: int) -> dict[str, float]:
    """Milliseconds from the request to the first paint, and bytes that came."""
    first, size = [], 0
    for _ in range(rounds):
        with opened(browser, url) as page:
            page.wait_for_load_state("networkidle")
            entries = page.evaluate(
                "[performance.getEntriesByName('first-contentful-paint')[0].startTime,"
                " performance.getEntries().reduce((sum, e) => sum + (e.transferSize ?? 0), 0)]"
            )
            first.append(entries[0])
            size = entries[1]
    return {"first_paint_ms": statistics.median(first), "worst_ms": max(first), "bytes": size}


def frames(page: Page, run: Callable[[], None]) -> dict[str, float]:
    """What became of the frames while ``run`` ran."""
    page.evaluate(f"window.__frames = ({_FRAMES})(); 0")
    run()
    page.evaluate("window.__stop = true")
    found = page.evaluate("window.__frames")
    stamps = found["stamps"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    dropped = sum(max(round(gap * 60 / 1000) - 1, 0) for gap in gaps)
    return {
        "frames": len(gaps),
        "dropped": dropped,
        "longest_ms": max(gaps),
        "blocked_ms": found["blocked"],
        "layout_shift": found["shift"],
    }


def streaming(browser: Browser, url: str, backend: PageBackend, rate: int, seconds: float) -> dict[str, Any]:
    """Frames at rest and while an answer streams."""
    text = PARAGRAPH * (int(rate * seconds * 4 / len(PARAGRAPH)) + 1)
    pieces = [text[i : i + 4] for i in range(0, len(text), 4)][: int(rate * seconds)]
    backend.arrange("stream", Paced(pieces, rate))
    with opened(browser, url) as page:
        at_rest = frames(page, lambda: time.sleep(3))
        box = page.get_by_test_id("prompt")
        box.fill("stream")

        def run() -> None:
            box.press("Enter")
            page.get_by_test_id("stop").wait_for()
            page.get_by_test_id("stop").wait_for(state="hidden", timeout=120_000)

        return {"at_rest": at_rest, "streaming": frames(page, run)}


class Paced(Slow):
    """Pieces at a rate that does not drift."""

    def __init__(self, pieces: list[str], rate: int) -> None:
        super().__init__(pieces, 0.0)
        self._rate = rate

    def __iter__(self) -> Iterator[str]:
        start = time.monotonic()
        for index, piece in enumerate(self._pieces):
            time.sleep(max(start + index / self._rate - time.monotonic(), 0.0))
            yield piece


def conversation(name: str, texts: list[str]) -> list[Any]:
    """A conversation as the page keeps it: questions and answers in turn."""
    turns: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        parent = turns[-1]["id"] if turns else None
        turn = {
            "id": f"{name}-{index}",
            "conversation": name,
            "parent": parent,
            "content": text,
            "created": index + 1,
        }
        role = {"role": "user"} if index % 2 == 0 else {"role": "assistant", "state": "done"}
        turns.append(turn | role)
    settings: dict[str, Any] = dict.fromkeys(
        ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed", "thinking")
    )
    facts = {"title": name, "named": True, "created": 1, "updated": 1, "model": None, "choices": []}
    return [{"id": name, **facts, "settings": settings | {"system": "", "tools": []}}, turns]


def opening(browser: Browser, url: str, name: str, texts: list[str]) -> dict[str, Any]:
    """Milliseconds from the click on a conversation until it is painted and the page at rest."""
    with opened(browser, url) as page:
        page.evaluate(_FILL, conversation(name, texts))
        page.reload()
        entry = page.get_by_test_id("conversation-link").first
        entry.wait_for()
        found: dict[str, Any] = {}

        def run() -> None:
            start = page.evaluate("performance.now()")
            entry.click()
            page.get_by_test_id("turn").last.wait_for()
            found["open_ms"] = page.evaluate(_AT_REST) - start
            time.sleep(0.5)

        found |= frames(page, run)
        found["elements"] = page.evaluate("document.querySelectorAll('*').length")
        found["scrolling"] = frames(page, lambda: page.evaluate(_SCROLL))
        return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    backend = PageBackend()
    program = find_browser()
    if program is None:
        raise SystemExit("no Chromium is here; set QWENKIT_TEST_BROWSER to one")
    turns = [f"Question {n}?" if n % 2 == 0 else f"Answer {n}. {PARAGRAPH[:110]}" for n in range(TURNS)]
    long = PARAGRAPH * (LONG_ANSWER // len(PARAGRAPH) + 1)
    with live(backend, pages=page_handlers()) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        url = f"{server.url}/"
        found = {
            "browser": browser.version,
            "paint": paint(browser, url, args.rounds),
            **streaming(browser, url, backend, args.rate, args.seconds),
            "turns": opening(browser, url, "turns", turns),
            "long_answer": opening(browser, url, "long answer", ["Tell me all.", long]),
        }
        browser.close()
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=200, help="tokens a second")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    print(f"Chromium {found['browser']}\n\n| | figure |\n|---|--:|")
    size, first = found["paint"]["bytes"] / 1000, found["paint"]
    print(f"| first paint | {first['first_paint_ms']:.0f} ms (worst {first['worst_ms']:.0f}) |")
    print(f"| loaded | {size:.0f} kB |")
    for name in ("at_rest", "streaming", "turns", "long_answer"):
        row = found[name]
        opened_in = f"open in {row['open_ms']:.0f} ms; " if "open_ms" in row else ""
        rest = f"blocked {row['blocked_ms']:.0f} ms, layout shift {row['layout_shift']:.3f}"
        print(f"| {name} | {opened_in}{_dropped(row)}, {rest} |")
        if "scrolling" in row:
            print(f"| {name}, scrolled | {_dropped(row['scrolling'])} |")


def _dropped(row: dict[str, Any]) -> str:
    return f"{row['dropped']} of {row['frames']} frames dropped, longest {row['longest_ms']:.0f} ms"


if __name__ == "__main__":
    main()
