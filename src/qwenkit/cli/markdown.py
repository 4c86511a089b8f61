"""Markdown that is shown while it is being written.

A block (paragraph, list, table, code) is final once the next one has begun; final blocks are printed for good and
scroll away as ordinary output. Only the last block is redrawn, and of it only as much as fits the screen; its whole
text is printed when it is final. Nothing is lost or cut, whatever the height of the reply.

The dialect keeps what models write: line breaks stay, HTML, backslashes (LaTeX) and links are shown as text.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rich.markdown import CodeBlock, Heading, ListItem
from rich.markdown import Markdown as RichMarkdown
from rich.segment import Segment
from rich.syntax import Syntax

from qwenkit.cli.live import LiveRegion, reflows
from qwenkit.cli.pipes import without_controls

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, RenderResult

_FRAME_SECONDS = 0.06
_LOST_BY_RICH = ("html_block", "html_inline", "reference", "link", "image", "autolink", "escape")
_TRAILING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
_THINK_TAGS = ("<think>", "</think>")


class _Code(CodeBlock):
    """Code in the terminal's own colours, with nothing around it, so that it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(
            str(self.text).rstrip(),
            self.lexer_name,
            theme="ansi_dark",
            word_wrap=True,
            background_color="default",
        )


class _LeftHeading(Heading):
    LEVEL_ALIGN: ClassVar = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _ListItem(ListItem):
    """Numbers keep their dot."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        head = f" {number}. "
        style = console.get_style("markdown.item.number", default="none")
        inner = options.update(width=max(1, options.max_width - len(head)))
        for line in console.render_lines(self.elements, inner, style=self.style):
            yield Segment(head, style)
            yield from line
            yield Segment.line()
            head = " " * len(head)


class _Markdown(RichMarkdown):
    """Tokens parsed in our dialect."""

    elements: ClassVar = {
        **RichMarkdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _LeftHeading,
        "list_item_open": _ListItem,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)
        for token in tokens:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
        self.parsed = tokens


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt().enable(["strikethrough", "table"]).disable(list(_LOST_BY_RICH))


def split_blocks(text: str) -> list[tuple[int, list[Any]]]:
    """The top-level blocks of ``text``: the line each starts at, and its tokens."""
    blocks: list[tuple[int, list[Token]]] = []
    depth = 0
    for token in _parser().parse(text):
        if depth == 0:
            blocks.append((token.map[0] if token.map else 0, []))
        blocks[-1][1].append(token)
        depth += token.nesting
    return blocks


class MarkdownView:
    """Shows a reply as Markdown while it streams.

    Args:
        console: where to; must be a terminal.
        clock: seconds that only grow; a frame is drawn at most every 60 ms, less often when drawing is slow.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._region = LiveRegion(console.file, reflows=reflows())
        self._pending = ""  # text of blocks that are not final yet
        self._held = ""  # the end of the text so far, as long as it may become a tag
        self._is_thought = False
        self._has_blocks = False
        self._next_frame = 0.0

    def feed(self, text: str) -> None:
        """Shows more text."""
        self._take(self._held + without_controls(text))
        now = self._clock()
        if now >= self._next_frame:
            self._draw(is_final=False)
            took = self._clock() - now
            self._next_frame = now + max(_FRAME_SECONDS, 4 * took)

    def finish(self) -> None:
        """Prints what is left, for good."""
        self._pending += self._held
        self._held = ""
        self._draw(is_final=True)

    def _take(self, text: str) -> None:
        """Adds text to the pending block; thought tags end the block and switch to dim and back."""
        tag = _THINK_TAGS[self._is_thought]
        while (at := text.find(tag)) >= 0:
            self._pending += text[:at]
            self._draw(is_final=True)
            text = text[at + len(tag) :]
            self._is_thought = not self._is_thought
            tag = _THINK_TAGS[self._is_thought]
        self._held = next((tag[:n] for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), "")
        self._pending += text[: len(text) - len(self._held)]

    def _draw(self, *, is_final: bool) -> None:
        width, height = terminal_size(self._console)
        permanent: list[str] = []
        if is_final:
            permanent = self._lines(split_blocks(self._pending), width)
            self._pending = ""
        else:
            permanent = self._lines(self._cut_final_blocks(), width)
        self._has_blocks = self._has_blocks or bool(permanent)
        live = self._lines(split_blocks(self._pending), width)
        self._region.draw(permanent, live[-max(1, height - 1) :], width)

    def _cut_final_blocks(self) -> list[tuple[int, list[Token]]]:
        """Takes the blocks that cannot change any more out of the pending text.

        The start of a line may yet turn out to continue the block before it, so only whole lines count; but nothing
        can continue a block behind an empty line, unless it is a list.
        """
        lines = self._pending.split("\n")
        blocks = split_blocks(self._pending)
        is_settled = (
            len(blocks) > 1 and not lines[blocks[-1][0] - 1].strip() and "list" not in blocks[-2][1][0].type
        )
        if not is_settled:
            blocks = split_blocks("\n".join([*lines[:-1], ""]))
        if len(blocks) < 2:
            return []
        self._pending = "\n".join(lines[blocks[-1][0] :])
        return blocks[:-1]

    def _lines(self, blocks: Sequence[tuple[int, list[Token]]], width: int) -> list[str]:
        """Screen lines of some blocks, with an empty line between any two; one column stays free."""
        lines: list[str] = []
        for _, tokens in blocks:
            if lines or self._has_blocks:
                lines.append("")
            with self._console.capture() as capture:
                style = "dim" if self._is_thought else None
                self._console.print(_Markdown(tokens), width=max(8, width - 1), style=style)
            lines += _without_empty_ends([_TRAILING.sub(r"\1", line) for line in capture.get().split("\n")])
        return lines


def _without_empty_ends(lines: list[str]) -> list[str]:
    filled = [index for index, line in enumerate(lines) if _STYLES.sub("", line).strip()]
    return lines[filled[0] : filled[-1] + 1] if filled else []


def terminal_size(console: Console) -> tuple[int, int]:
    """Columns and rows now, whatever the environment says; 80 by 24 when the terminal does not know."""
    try:
        size = os.get_terminal_size(console.file.fileno())
    except (OSError, ValueError):
        return console.width, console.height
    return size.columns or 80, size.lines or 24
