"""``qwenkit quantize`` and ``dequantize`` as processes: what they print, what stops them, and going on afterwards."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.forks import Forked, begin, qwenkit
from tests.support.process import assert_one_sentence
from tests.support.tiny_models import write_model, write_text

LAYERS = 80  # enough that a signal behind the first block finds many before it
OPTIONS = ("--group-size", "32", "--samples", "8", "--length", "64")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", num_layers=LAYERS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "t.txt")


@pytest.fixture(scope="module")
def whole(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = qwenkit("quantize", str(model), str(out), "--calibration", str(text), *OPTIONS, "--report")
    assert done.returncode == 0, done.stderr
    assert f"layer {LAYERS} of {LAYERS}: error " in done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith(f"{out}: gptq, 4 bit, gptq, ")
    assert "peak memory" in second
    assert third.startswith("perplexity ")
    assert "Beside the original" in (out / "README.md").read_text()
    return out


def started(model: Path, out: Path, text: Path) -> Forked:
    """A run whose first block is done."""
    process = begin("quantize", str(model), str(out), "--calibration", str(text), *OPTIONS)
    first = out.with_name("out.partial") / "block-00000.safetensors"
    deadline = time.monotonic() + 60
    while not first.exists():
        assert not process.has_ended, process.wait()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def go_on(model: Path, out: Path, text: Path, whole: Path) -> None:
    """Finishes a run that was stopped, and compares."""
    assert not out.exists()
    done = qwenkit("quantize", str(model), str(out), "--calibration", str(text), *OPTIONS, "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert 1 <= row["resumed_layers"] < LAYERS
    assert row["folder"] == str(out)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not out.with_name("out.partial").exists()


def test_a_killed_run_goes_on_to_the_same_bytes(model: Path, text: Path, whole: Path, tmp_path: Path) -> None:
    process = started(model, tmp_path / "out", text)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    go_on(model, tmp_path / "out", text, whole)


def test_ctrl_c_says_how_to_go_on(model: Path, text: Path, whole: Path, tmp_path: Path) -> None:
    process = started(model, tmp_path / "out", text)
    process.send_signal(signal.SIGINT)
    done = process.wait()
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "qwenkit: stopped; run the same command again to go on from there"
    assert "Traceback" not in done.stderr
    go_on(model, tmp_path / "out", text, whole)


def test_the_result_is_used_and_turned_back(whole: Path, text: Path, tmp_path: Path) -> None:
    reply = qwenkit("generate", "-m", str(whole), "-n", "4", "--greedy", "--json", "12 apples")
    assert reply.returncode == 0, reply.stderr
    done = qwenkit("dequantize", str(whole), str(tmp_path / "plain"), "--dtype", "float32", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dtype"] == "float32"
    numbers = [
        json.loads(qwenkit("perplexity", str(text), "-m", str(m), "--dtype", "float32", "--json").stdout)
        for m in (whole, tmp_path / "plain")
    ]
    assert numbers[0]["perplexity"] == pytest.approx(numbers[1]["perplexity"], rel=1e-3)


def test_errors_are_one_sentence(model: Path, text: Path, whole: Path, tmp_path: Path) -> None:
    base = ("quantize", str(model), str(tmp_path / "out"), "--calibration", str(text))
    assert "did you mean 'gptq'?" in assert_one_sentence(qwenkit(*base, "--method", "gptqq"))
    assert "use 4 or 8" in assert_one_sentence(qwenkit(*base, "--bits", "3"))
    assert "size 'big' is not possible" in assert_one_sentence(qwenkit(*base, "--shard-size", "big"))
    assert "name one with --report-text" in assert_one_sentence(
        qwenkit("quantize", str(model), str(tmp_path / "out"), "--method", "rtn", "--report")
    )
    assert "exists already" in assert_one_sentence(
        qwenkit("quantize", str(model), str(whole), "--calibration", str(text))
    )
    assert "is not quantised" in assert_one_sentence(qwenkit("dequantize", str(model), str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["samples", "length", "seed"])
def test_options_of_calibration_without_it(model: Path, tmp_path: Path, option: str) -> None:
    done = qwenkit("quantize", str(model), str(tmp_path / "out"), "--method", "rtn", f"--{option}", "64")
    assert f"--{option} 64 says nothing without calibration text; add --calibration" in assert_one_sentence(
        done
    )
