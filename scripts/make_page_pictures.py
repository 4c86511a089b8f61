"""Makes the pictures of docs/page.md: the page in Chromium before a server without a model.

    python -m scripts.make_page_pictures

Needs a browser (see scripts/fetch_browser.py), fonts for Chinese and Pillow.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from tests.support.browser import find_browser
from tests.support.chat_page import PHONE, ChatPage
from tests.support.http import live
from tests.support.page_backend import PageBackend, Slow

from qwenkit.web.page import page_handlers

TARGET = Path(__file__).parents[1] / "docs" / "images"
_QUALITY = 78
_PIECE, _DELAY = 6, 0.045
"""So that the figures under the answers are those of a model."""
ENGLISH = (
    "Show me how merge sort joins two halves, and why it is fast.",
    r'''Two sorted halves become one: of the two heads, the smaller goes next.

```python
def merge(left: list[int], right: list[int]) -> list[int]:
    """Two sorted lists as one."""
    out, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            out.append(left[i])
            i += 1
        else:
            out.append(right[j])
            j += 1
    return out + left[i:] + right[j:]
```

Each level moves every element once, and there are $\log_2 n$ levels: $O(n \log n)$ steps.''',
    ("Plan a weekend in Hangzhou", "Rewrite this more formally", "What is a monad?"),
)
CHINESE = (
    "用 Python 写归并排序，并解释它的复杂度。",
    r"""归并排序把数组分成两半，分别排序，再合并：

```python
def merge_sort(a: list[int]) -> list[int]:
    if len(a) < 2:
        return a
    m = len(a) // 2
    return merge(merge_sort(a[:m]), merge_sort(a[m:]))
```

**每一层**移动 $n$ 个元素，一共有 $\log_2 n$ 层，所以时间是 $O(n \log n)$。

1. 稳定：相等的元素保持原来的顺序。
2. 需要 $O(n)$ 的额外空间。""",
    ("周末去杭州怎么玩？", "把这段话改得正式一些", "什么是单子？"),
)


def _slowly(text: str) -> Slow:
    return Slow([text[i : i + _PIECE] for i in range(0, len(text), _PIECE)], _DELAY)


def _hold(page: ChatPage, backend: PageBackend, words: tuple[str, str, tuple[str, ...]]) -> None:
    """A conversation, with others in the list."""
    question, answer, others = words
    for other in others:
        page.ask(other)
        page.page.keyboard.press("Control+Shift+KeyO")
    backend.arrange(
        question,
        f"<think>\n{question}\n</think>\n\n{answer}",
        _slowly(f"<think>\n{question}\n</think>\n\n{answer}"),
    )
    page.again(page.ask(question), "2 / 2")
    page.page.mouse.move(5, 400)
    page.page.evaluate("document.activeElement.blur()")


def _keep(page: ChatPage, name: str) -> None:
    page.page.wait_for_timeout(800)
    picture = Image.open(io.BytesIO(page.page.screenshot()))
    picture.convert("RGB").save(TARGET / f"{name}.webp", quality=_QUALITY, method=6)


def main() -> None:
    """Writes all of them."""
    program = find_browser()
    if program is None:
        raise SystemExit("no Chromium is here; set QWENKIT_TEST_BROWSER to one")
    TARGET.mkdir(exist_ok=True)
    backend = PageBackend(context=32_768)
    views: dict[str, tuple[Any, dict[str, Any]]] = {
        "page-light": (ENGLISH, {}),
        "page-dark": (ENGLISH, {"scheme": "dark"}),
        "page-zh": (CHINESE, {"language": "zh-CN"}),
        "page-phone": (ENGLISH, {"size": PHONE, "has_touch": True, "is_mobile": True}),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        live(backend, pages=page_handlers(), served_names=("example",)) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (words, options) in views.items():
            page = ChatPage(browser, f"{server.url}/", Path(folder), **options)
            _hold(page, backend, words)
            _keep(page, name)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
