"""Runs the real command line with weights of any size kept for the next start: ``python packed_launcher.py SECONDS ARGUMENTS...``.

Every write to the file takes so many seconds more.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from qwenkit.cli.main import run
from qwenkit.weights import packed_cache, packed_file


def main() -> None:
    delay, write = float(sys.argv.pop(1)), os.pwrite

    def slowly(*arguments: Any) -> int:
        time.sleep(delay)
        return write(*arguments)

    os.pwrite = slowly
    packed_cache._MIN_BYTES = packed_cache._MIN_FREE = 0
    packed_file._CHUNK = 2**14
    run()


if __name__ == "__main__":
    main()
