"""``qwenkit bench speed`` and what ``doctor`` expects, as processes on real models: what they say is plausible."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import forks
from tests.support.process import QWENKIT, assert_one_sentence, environment, qwenkit
from tests.support.terminal import Terminal
from tests.support.tiny_models import write_model

pytestmark = pytest.mark.serial

SMALL = ("--prefill", "40", "--batch", "1,3", "--context", "40", "--output-tokens", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", context_length=512)


def found_in(*arguments: str) -> dict[str, Any]:
    done = qwenkit("bench", "speed", *arguments, "--json", "-")
    assert done.returncode == 0, done
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_default_model(smollm2_gguf: Path) -> None:
    found = found_in("-m", str(smollm2_gguf), *SMALL, "--repeats", "2")
    assert found["complete"] is True
    assert found["about"]["num_params"] == 134_515_008
    [session] = found["sessions"]
    assert session["threads"] == 1
    assert session["cache_bytes_per_token"] in (23_040, 46_080)  # bf16 or fp32
    assert session["weights_bytes"] > 90e6
    assert found["about"]["unread_weight_bytes"] == 0  # its embedding is its output head
    assert session["peak_bytes"] is None or session["peak_bytes"] > session["weights_bytes"]
    prefill, one, three = found["results"]
    assert (prefill["kind"], one["kind"], three["batch"]) == ("prefill", "decode", 3)
    for row in (prefill, one, three):
        speed = row["tokens_per_second"]
        assert row["rounds"] == 2
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    seconds = prefill["first_token_seconds"]["low"]
    assert prefill["tokens_per_second"]["high"] == pytest.approx(40 / seconds)
    limit = one["limit"]
    assert limit["weight_bytes"] == session["weights_bytes"]
    assert limit["cache_bytes"] == 44 * session["cache_bytes_per_token"]
    assert limit["bytes_per_second"] == pytest.approx(
        one["tokens_per_second"]["median"] * (limit["weight_bytes"] + limit["cache_bytes"])
    )
    assert limit["share"] == pytest.approx(
        limit["bytes_per_second"] / session["bandwidth"]["bytes_per_second"]
    )
    assert three["limit"] is None


def test_tables_files_and_options(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ("--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    model = (
        "-m",
        str(folder),
        "--dtype",
        "float32",
        "--kv-cache",
        "int8",
        "--head",
        "int8",
        "--threads",
        "1,1",
    )
    done = qwenkit("bench", "speed", *model, *SMALL, *files, "--repeats", "1", "--warmup", "0")
    assert done.returncode == 0, done
    for part in ("Reading a prompt", "Generating 8 tokens behind a context", "One sequence against"):
        assert part in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())
    [session] = json.loads((tmp_path / "a.json").read_text())["sessions"]
    assert (session["dtype"], session["head"], session["cache_type"]) == ("float32", "8 bit", "int8")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_released_protocol(folder: Path) -> None:
    found = found_in("-m", str(folder), "--protocol", "qwen", "--output-tokens", "20,100", "--warmup", "0")
    assert [(r["kind"], r["prompt_tokens"], r["output_tokens"]) for r in found["results"]] == [
        ("generate", 1, 20),
        ("generate", 1, 100),
    ]
    assert len(found["sessions"]) == 2
    assert all(r["rounds"] == 1 for r in found["results"])
    done = qwenkit("bench", "speed", "-m", str(folder), "--protocol", "qwen", "--output-tokens", "20")
    assert "Quantization" in done.stdout
    assert "Speed (Tokens/s)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--context", "500"),
            "500 tokens of context and 64 of output make 564 tokens, the context holds 512",
        ),
        (("--protocol", "qwen"), "give --output-tokens 511"),
        (("--batch", "100000000"), "a batch of"),
        (("--threads", "100000"), "is more than the"),
        (("--json", "/nowhere/a.json"), "there is no folder /nowhere"),
        (("--device", "cuda:9"), "cuda:9"),
        (("--dtype", "int3"), "dtype='int3'"),
        (("--activations", "int3"), "activations='int3'"),
        (("--prefill", "-3"), "--prefill -3 is not possible"),
    ],
)
def test_what_does_not_fit_is_refused_first(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in assert_one_sentence(forks.qwenkit("bench", "speed", "-m", str(folder), *arguments))


def test_ctrl_c_still_reports(folder: Path) -> None:
    command = [QWENKIT, "bench", "speed", "-m", str(folder), *SMALL, "--repeats", "1000000"]
    process = Terminal(command, environment(TERM="xterm"))
    process.wait_for(r"1/3 prefill 40 · round (?:[3-9]|\d\d+)/1000000", 30)
    process.process.sendintr()
    text = process.wait_for("stopped early", 30)
    assert "Reading a prompt" in text
    assert "Generating" not in text
    while process.pump():
        pass
    process.process.close()
    assert process.process.exitstatus == 130


def test_ctrl_c_leaves_json_whole(folder: Path) -> None:
    command = [QWENKIT, "bench", "speed", "-m", str(folder), *SMALL, "--repeats", "1000000", "--json", "-"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == ""
    found = json.loads(out)
    assert found["complete"] is False
    assert len(found["results"]) <= 1


def test_doctor_expects_what_memory_allows(smollm2_gguf: Path) -> None:
    done = qwenkit("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    speed, expected = checks["memory read"]["numbers"], checks["expected speed"]["numbers"]
    assert 1e8 < speed["bytes_per_second"] < 1e13
    assert expected["tokens_per_second"] == pytest.approx(
        speed["bytes_per_second"] / expected["bytes_per_token"]
    )
    quick = qwenkit("doctor", "--no-speed")
    assert "memory read" not in quick.stdout
    assert "network" in quick.stdout
