"""The bottom lines of a terminal that are redrawn in place; everything above them is permanent and never touched.

Only lines that changed are written, in one write, over the old ones: nothing is blanked first, so nothing flickers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import IO

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def reflows(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the terminal breaks long lines anew when it gets narrower (all modern ones; not xterm, not the console)."""
    env = os.environ if environ is None else environ
    return "XTERM_VERSION" not in env and env.get("TERM") != "linux"


def _cells(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(_ESCAPES.sub("", line))


class LiveRegion:
    """Lines that may still change.

    Args:
        file: the terminal.
        reflows: whether it breaks long lines anew when resized.
    """

    def __init__(self, file: IO[str], *, reflows: bool = True) -> None:
        self._file = file
        self._reflows = reflows
        self._lines: list[
            str
        ] = []  # on the screen; the cursor is on the last one, or on an empty row if there is none
        self._width = 0

    def draw(self, permanent: Sequence[str], live: Sequence[str], width: int) -> None:
        """Replaces the lines on the screen by ``permanent``, which stay for good, and ``live``.

        Args:
            permanent: lines that will not change any more.
            live: lines that the next call may replace; no more than the screen is high.
            width: columns of the terminal now; every line must fit.
        """
        new = [*permanent, *live]
        same_width = width == self._width
        kept = _common_prefix(self._lines, new) if same_width else 0
        out = self._cursor_to(kept, width)
        rest = new[kept:]
        if kept and kept == len(self._lines) and rest:
            out += "\n"
        out += "\n".join(line + "\x1b[K" for line in rest)
        if kept + len(rest) < len(self._lines) or not same_width:
            out += "\x1b[J"
        if new and not live:
            out += "\n"
        self._lines, self._width = list(live), width
        if out:
            self._file.write(out)
            self._file.flush()

    def _cursor_to(self, kept: int, width: int) -> str:
        """Moves to the first column of the first line to rewrite, or stays when only new lines follow."""
        if not self._lines or kept == len(self._lines):
            return ""
        rows = sum(self._rows(line, width) for line in self._lines[kept:]) - 1
        return "\r" + (f"\x1b[{rows}A" if rows else "")

    def _rows(self, line: str, width: int) -> int:
        return max(1, -(-_cells(line) // width)) if self._reflows else 1


def _common_prefix(old: Sequence[str], new: Sequence[str]) -> int:
    count = 0
    for a, b in zip(old, new, strict=False):
        if a != b:
            break
        count += 1
    return count
