"""Sees to it that there is a Chromium for the tests of the page: an installed one, else playwright's, else Debian's.

    python -m scripts.fetch_browser

Where none can be had it says so and succeeds; those tests are skipped then, or fail where QWENKIT_TEST_NEEDS_BROWSER is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

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


def _install() -> None:
    print("Fetching a browser for the tests of the page ...", flush=True)
    may_install = os.geteuid() == 0 and shutil.which("apt-get") is not None
    needs = ["--with-deps"] if may_install else []
    if _run([sys.executable, "-m", "playwright", "install", *needs, "chromium"]) and find_browser():
        return
    if may_install:
        for command in _DEBIAN:
            if not _run(command):
                return


if __name__ == "__main__":
    if find_browser() is None:
        _install()
    if find_browser() is None:
        print("No Chromium could be installed; set QWENKIT_TEST_BROWSER to one to run the tests of the page.")
