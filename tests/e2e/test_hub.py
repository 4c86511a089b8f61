"""Fetching from a hub, as a process of its own with the real huggingface_hub, against a hub on the loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fake_hub import FakeHub, FakeRepo

SCRIPT = """
import json, logging, sys
from pathlib import Path
from qwenkit.weights import cache, sources
logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
options = json.loads(sys.argv[2])
if options.pop("blind", False):
    cache.free_space = lambda folder: None
ticks = []
try:
    path = sources.fetch(sys.argv[1], on_progress=lambda done, total: ticks.append((done, total)), **options)
    out = {"path": str(path), "ticks": ticks, "files": sorted(p.name for p in Path(path).parent.rglob("*"))}
    out["inside"] = sorted(p.name for p in Path(path).iterdir()) if Path(path).is_dir() else []
except Exception as error:
    out = {"error": str(error), "type": type(error).__name__}
print(json.dumps(out))
"""
WEIGHTS = bytes(range(256)) * 2048  # 512 KiB
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
SMALL = {
    "config.json": b'{"model_type": "qwen"}',
    "generation_config.json": b"{}",
    "qwen.tiktoken": b"IQ== 0\n",
}
NOT_NEEDED = {
    "modeling_qwen.py": b"raise SystemExit('never run')",
    "README.md": b"#",
    "pytorch_model.bin": b"old",
    "onnx/model.safetensors": b"other",
    "assets/logo.json": b"{}",
}
QWEN = FakeRepo({**SMALL, **NOT_NEEDED, "model.safetensors": WEIGHTS, "chat_template.jinja": b"{{ 1 }}"})
SHARDED = FakeRepo(
    {
        **SMALL,
        "model.safetensors.index.json": json.dumps(INDEX).encode(),
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    }
)
GGUF = FakeRepo({"a-q4.gguf": WEIGHTS, "a-q8.gguf": WEIGHTS[::-1], "README.md": b"#"})


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({"acme/qwen": QWEN, "acme/big": SHARDED, "acme/gguf": GGUF}) as running:
        yield running


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def environment(home: Path, endpoint: str, **extra: str) -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()
    }
    own = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint, "QWENKIT_CACHE": str(home / "own")}
    return {**kept, **own, **extra}


def fetch(
    home: Path, endpoint: str, model: str, *, env: dict[str, str] | None = None, **options: Any
) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, json.dumps(options)],
        env=environment(home, endpoint, **(env or {})),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


def leftovers(home: Path) -> list[str]:
    return [str(path) for path in home.rglob("*.incomplete")]


def test_fetches_only_what_is_needed_then_works_offline(
    tmp_path: Path, hub: FakeHub, closed_port: str
) -> None:
    first = fetch(tmp_path, hub.url, "acme/qwen")
    assert first["inside"] == sorted([*SMALL, "model.safetensors", "chat_template.jinja"])
    assert (Path(first["path"]) / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(QWEN.files[name]) for name in first["inside"])
    assert first["ticks"][-1] == [total, total]
    assert not list(tmp_path.rglob("*.py"))
    assert first["stderr"] == ""  # no bars, no chatter

    again = fetch(tmp_path, hub.url, "acme/qwen")
    assert again["path"] == first["path"]
    assert len(hub.got("model.safetensors")) == 1
    forced = fetch(tmp_path, hub.url, "acme/qwen", force=True)
    assert forced["path"] == first["path"]
    assert len(hub.got("model.safetensors")) == 2

    unplugged = fetch(tmp_path, closed_port, "acme/qwen")
    assert unplugged["path"] == first["path"]
    assert "using the copy in the cache" in unplugged["stderr"]
    offline = fetch(tmp_path, closed_port, "acme/qwen", env={"HF_HUB_OFFLINE": "1"})
    assert offline["path"] == first["path"]
    assert offline["stderr"] == ""
    pinned = fetch(tmp_path, closed_port, f"acme/qwen@{QWEN.commit}")
    assert pinned["path"] == first["path"]

    other = fetch(tmp_path, closed_port, "acme/other")
    assert "no connection to the hub" in other["error"]
    assert "already here and ready: acme/qwen;" in other["error"]


def test_new_commit_is_fetched_and_old_one_stays_pinned(tmp_path: Path, hub: FakeHub) -> None:
    old = fetch(tmp_path, hub.url, "acme/qwen")
    hub.repos["acme/qwen"] = FakeRepo({**QWEN.files, "config.json": b'{"model_type": "qwen", "new": 1}'})
    new = fetch(tmp_path, hub.url, "acme/qwen@main")
    assert new["path"] != old["path"]
    assert len(hub.got("model.safetensors")) == 1  # the same blob serves both
    assert (Path(new["path"]) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("acme/nothing", "shows no model 'acme/nothing'"),
        ("acme/qwen@v9", "acme/qwen has no revision 'v9'"),
        ("acme/gguf", "holds 2 .gguf files: a-q4.gguf, a-q8.gguf; choose one as 'acme/gguf:a-q4.gguf'"),
        ("acme/gguf:b.gguf", "its .gguf files are: a-q4.gguf, a-q8.gguf"),
    ],
)
def test_what_the_hub_does_not_have(tmp_path: Path, hub: FakeHub, model: str, said: str) -> None:
    answer = fetch(tmp_path, hub.url, model)
    assert answer["type"] == "SourceError"
    assert said in answer["error"]
    assert "\n" not in answer["error"]


def test_one_gguf_file_of_several(tmp_path: Path, hub: FakeHub) -> None:
    answer = fetch(tmp_path, hub.url, "acme/gguf:a-q8.gguf")
    assert Path(answer["path"]).read_bytes() == WEIGHTS[::-1]
    assert not hub.got("a-q4.gguf")
    assert not hub.got("README.md")


@pytest.mark.parametrize("status", [401, 403])
def test_gated(tmp_path: Path, hub: FakeHub, status: int) -> None:
    hub.repos["acme/gated"] = FakeRepo(QWEN.files, gated=status)
    refused = fetch(tmp_path, hub.url, "acme/gated")
    assert refused["error"].startswith("acme/gated is gated; accept its terms at")
    assert "HF_TOKEN" in refused["error"]
    allowed = fetch(tmp_path, hub.url, "acme/gated", env={"HF_TOKEN": "good"})
    assert "model.safetensors" in allowed["inside"]


def test_cut_connection_is_resumed(tmp_path: Path, hub: FakeHub) -> None:
    large = WEIGHTS * 48  # the library keeps whole chunks of 10 MiB
    hub.repos["acme/large"] = FakeRepo({**SMALL, "model.safetensors": large})
    hub.cuts = 1
    answer = fetch(tmp_path, hub.url, "acme/large")
    assert (Path(answer["path"]) / "model.safetensors").read_bytes() == large
    assert [request.range for request in hub.got("model.safetensors")] == [None, f"bytes={10 << 20}-"]


def test_hub_that_dies_midway_leaves_nothing_half_written(tmp_path: Path, hub: FakeHub) -> None:
    hub.cuts, hub.dies_on_cut = 1, True
    failed = fetch(tmp_path, hub.url, "acme/big")
    assert "answers HTTP 503" in failed["error"]
    assert "a local folder or a .gguf file works without network" in failed["error"]
    assert leftovers(tmp_path) == []
    hub.status = None
    assert "path" in fetch(tmp_path, hub.url, "acme/big")


def test_snapshot_with_a_missing_shard_is_reported_not_used(
    tmp_path: Path, hub: FakeHub, closed_port: str
) -> None:
    snapshot = Path(fetch(tmp_path, hub.url, "acme/big")["path"])
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    answer = fetch(tmp_path, closed_port, "acme/big")
    assert "the copy in the cache is incomplete: model-00002-of-00002.safetensors missing" in answer["error"]
    assert "already here" not in answer["error"]
    healed = fetch(tmp_path, hub.url, "acme/big")
    assert (Path(healed["path"]) / "model-00002-of-00002.safetensors").read_bytes() == WEIGHTS[::-1]


def test_partial_download_of_another_tool_is_not_taken_for_whole(
    tmp_path: Path, hub: FakeHub, closed_port: str
) -> None:
    code = (
        "import huggingface_hub as h; h.snapshot_download('acme/qwen', ignore_patterns=['*.jinja', '*.py'])"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path, hub.url),
        check=True,
        capture_output=True,
        timeout=60,
    )
    answer = fetch(tmp_path, closed_port, "acme/qwen")
    assert "chat_template.jinja missing" in answer["error"]


def test_interrupt_stops_at_once_and_cleans_up(tmp_path: Path, hub: FakeHub) -> None:
    hub.stalls = True
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "acme/qwen", "{}"],
        env=environment(tmp_path, hub.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert hub.stalled.wait(30)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert b"KeyboardInterrupt" in stderr
    assert leftovers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_without_room_is_refused_before_the_download(small_disk: Path, hub: FakeHub) -> None:
    answer = fetch(small_disk, hub.url, "acme/qwen")
    assert "acme/qwen needs 0.5 MB" in answer["error"]
    assert not hub.got("model.safetensors")


def test_disk_that_fills_up_leaves_nothing_half_written(small_disk: Path, hub: FakeHub) -> None:
    hub.has_sizes = False
    answer = fetch(small_disk, hub.url, "acme/qwen", blind=True)
    assert answer["error"].startswith("the disk filled up while fetching acme/qwen; ")
    assert leftovers(small_disk) == []
