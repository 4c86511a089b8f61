"""A program at a pseudo-terminal of 80x24, read back through a terminal emulator."""

from __future__ import annotations

import re
import time

import pexpect
import pyte


class Terminal:
    """A process at a terminal; ``text`` is everything it ever showed, scrolled away or not."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self.process = pexpect.spawn(command[0], command[1:], env=environ, dimensions=(24, 80), timeout=20)
        self.screen = pyte.HistoryScreen(80, 24, history=5000, ratio=0.01)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def pump(self) -> bool:
        """Takes what has come; False at the end."""
        try:
            data = self.process.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        # The input line asks where the cursor is, as a terminal would tell it.
        for _ in range(data.count(b"\x1b[6n")):
            self.process.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        self.raw += data
        self.stream.feed(data)
        return True

    @property
    def text(self) -> str:
        above = ["".join(row[x].data for x in range(80)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    def wait_for(self, pattern: str, seconds: float = 15) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            alive = self.pump()
            if re.search(pattern, self.text):
                return self.text
            if not alive:
                break
        raise AssertionError(f"{pattern!r} was not shown:\n{self.text}")

    def wait_for_prompt(self, count: int, seconds: float = 15) -> str:
        """Waits for the count-th input line; the first one is 1."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump()
            lines = self.text.split("\n")
            if len(re.findall(r"^>", self.text, re.MULTILINE)) >= count and lines[-1].strip() == ">":
                return self.text
        raise AssertionError(f"no input line:\n{self.text}")

    def send(self, keys: str) -> None:
        self.process.send(keys)

    def exit_code(self) -> int | None:
        end = time.monotonic() + 15
        while self.pump() and time.monotonic() < end:
            pass
        self.process.close()
        return self.process.exitstatus
