"""What plans the engine's steps needs no torch, so that it can be tested and read by itself."""

from __future__ import annotations

import subprocess
import sys


def test_the_scheduler_loads_no_torch() -> None:
    code = "import sys, qwenkit.engine.scheduler; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
