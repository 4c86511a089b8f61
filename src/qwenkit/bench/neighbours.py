"""How much of the processor other programs used while something was measured: beside them, figures are too low.

Reads Linux's counters of the whole machine, so it tells nothing where only a part of the machine is ours.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from qwenkit.kernels.cpu import usable_cores

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, interrupts twice, and what the host took away


class Neighbours:
    """Watches from its creation on."""

    def __init__(self) -> None:
        self._cores = usable_cores()
        self._begin = self._now()

    def cores(self) -> float | None:
        """Cores that others kept busy since then, on average; None: it cannot be told."""
        begin, end = self._begin, self._now()
        if begin is None or end is None or self._cores != os.cpu_count():
            return None
        seconds, busy, own = (b - a for a, b in zip(begin, end, strict=True))
        if seconds <= 0:
            return None
        return min(max(0.0, busy - own) / seconds, float(self._cores))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Time, seconds of all cores, seconds of this process."""
        try:
            fields = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
            busy = sum(int(fields[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):
            return None
        return time.perf_counter(), busy, time.process_time()
