"""``python -m qwenkit`` is the command line; launchers such as torchrun start it so."""

from __future__ import annotations

from qwenkit.cli.main import run

if __name__ == "__main__":
    run()
