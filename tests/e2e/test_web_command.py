"""``qwenkit web`` as a process: it opens the browser once the page is there, and ends on a signal."""

from __future__ import annotations

import signal
import subprocess
import urllib.request
from pathlib import Path

from tests.support.http import until
from tests.support.process import QWENKIT, environment


def test_web_opens_a_browser_that_finds_page_and_model(smollm2_gguf: Path, tmp_path: Path) -> None:
    script, seen = tmp_path / "browser", tmp_path / "seen"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/part && mv {tmp_path}/part {seen}\n')
    script.chmod(0o755)
    command = [QWENKIT, "web", "-m", str(smollm2_gguf), "--port", "0", "--max-context", "256"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(BROWSER=f"{script} %s")
    ) as process:
        try:
            until(seen.exists, 60)
            url = seen.read_text()
            with urllib.request.urlopen(url, timeout=20) as page:
                assert page.headers.get_content_type() == "text/html"
            with urllib.request.urlopen(f"{url}v1/models", timeout=20) as models:
                assert b"smollm2" in models.read().lower()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stdout is not None
            assert f"chat page: {url}\n" in process.stdout.read()
        finally:
            process.kill()
