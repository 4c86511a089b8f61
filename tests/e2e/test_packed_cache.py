"""Processes that keep packed weights for the next start: one after the other, two at once, interrupted and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwenkit.kernels import native
from qwenkit.tokenizer.save import save_tokenizer
from tests.support.process import environment
from tests.support.quantised import copied
from tests.support.tiny_models import byte_tiktoken

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")
LAUNCHER = Path(__file__).with_name("packed_launcher.py")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny quantised model that was last written a while ago."""
    folder = copied("qwen1-tiny-gptq-int4", tmp_path / "model")
    save_tokenizer(folder, byte_tiktoken())
    settings = {"chat_format": "raw", "do_sample": False, "eos_token_id": 256}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    for file in folder.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where weights are kept."""
    return tmp_path / "cache" / "packed"


def start(model: Path, *options: str, delay: float = 0) -> subprocess.Popen[str]:
    command = [sys.executable, str(LAUNCHER), str(delay), "generate", "one two", "-m", str(model), "-n", "8"]
    return subprocess.Popen(
        [*command, "--head", "int8", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(QWENKIT_CACHE=str(model.parent / "cache")),
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a process that ended well and without complaint has written."""
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    return out


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def test_one_start_after_the_other(model: Path, kept: Path) -> None:
    plain = finished(start(model, "--packed-cache", "off"))
    assert plain
    assert not kept.exists()
    assert finished(start(model)) == plain
    (file,) = kept.iterdir()
    written = file.stat()
    assert finished(start(model)) == plain
    assert list(kept.iterdir()) == [file]
    assert file.stat().st_ino == written.st_ino  # not written again
    assert file.stat().st_mtime_ns > written.st_mtime_ns  # used


def test_two_at_once(model: Path, kept: Path) -> None:
    both = [start(model, delay=0.02) for _ in range(2)]
    answers = {finished(process) for process in both}
    assert [path.suffix for path in kept.iterdir()] == [".weights"]
    assert answers == {finished(start(model))}


def test_interrupted_while_writing(model: Path, kept: Path) -> None:
    process = start(model, delay=0.3)
    wait_for(kept, "*.tmp", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(kept.iterdir()) == []


def test_killed_while_writing(model: Path, kept: Path) -> None:
    process = start(model, delay=0.3)
    wait_for(kept, "*.tmp", process)
    process.kill()
    process.communicate(timeout=60)
    assert [path.suffix for path in kept.iterdir()] == [".tmp"]
    plain = finished(start(model, "--packed-cache", "off"))
    assert finished(start(model)) == plain
    assert [path.suffix for path in kept.iterdir()] == [".weights"]
