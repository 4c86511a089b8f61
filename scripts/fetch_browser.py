"""Sees to it that there is a Chromium for the tests of the page: an installed one, else Debian's, else playwright's.

    python -m scripts.fetch_browser

Where none can be had it says so and succeeds; those tests are skipped then, or fail where QWENKIT_TEST_NEEDS_BROWSER is set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.browser import find_browser

_TIMEOUT = 600
_DEBIAN = (
    ["apt-get", "update", "-q"],
    ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"],
)


def _run(command: list[str]) -> bool:
    """Runs quietly; whether it went well."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, capture_output=True, env=env, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _is_debian() -> bool:
    """Elsewhere, a package of that name may be something else."""
    release = Path("/etc/os-release")
    return release.is_file() and "ID=debian" in release.read_text(encoding="utf-8").splitlines()


def _install() -> None:
    print("Fetching a browser for the tests of the page ...", flush=True)
    is_root = os.geteuid() == 0
    if is_root and _is_debian() and all(_run(command) for command in _DEBIAN) and find_browser():
        return
    needs = ["--with-deps"] if is_root else []
    _run([sys.executable, "-m", "playwright", "install", *needs, "chromium"])


if __name__ == "__main__":
    if find_browser() is None:
        _install()
    if find_browser() is None:
        print("No Chromium could be installed; set QWENKIT_TEST_BROWSER to one to run the tests of the page.")
