"""Which Chromium the tests of the page use: one that is installed, or the one that playwright fetched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The program's path; None: there is none."""
    chosen = os.environ.get("QWENKIT_TEST_BROWSER")
    if chosen:
        return chosen
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    return _of_playwright()


def needed_browser() -> str:
    """The same; without one the test is skipped, or fails where QWENKIT_TEST_NEEDS_BROWSER is set."""
    found = find_browser()
    if found is not None:
        return found
    reason = "no Chromium is here; `make test-data` installs one, or set QWENKIT_TEST_BROWSER to a program"
    if os.environ.get("QWENKIT_TEST_NEEDS_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


def _of_playwright() -> str | None:
    """Looked for by hand, since playwright tells only while it runs."""
    root = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or "~/.cache/ms-playwright").expanduser()
    patterns = ("chromium-*/chrome-linux*/chrome", "chromium_headless_shell-*/chrome-*linux*/*headless*shell")
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return str(found[0]) if found else None
