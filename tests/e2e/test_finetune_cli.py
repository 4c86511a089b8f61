"""``qwenkit finetune`` as a process: what it prints, what stops it, going on afterwards, and bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.finetuning import losses, write_conversations
from tests.support.process import QWENKIT, Done, assert_one_sentence, environment, qwenkit
from tests.support.tiny_models import write_model

OPTIONS = (
    "--dtype",
    "float32",
    "--max-length",
    "128",
    "--lora-r",
    "4",
    "--threads",
    "1",
    "--learning-rate",
    "1e-2",
)
SHORT = (*OPTIONS, "--max-steps", "4", "--accumulate", "2")
LONG = (*OPTIONS, "--max-steps", "80", "--accumulate", "1", "--save-every", "5")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m", "qwen")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "chats.json")


@pytest.fixture(scope="module")
def whole(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a long run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = qwenkit("finetune", "-m", str(model), "--data", str(data), "--out", str(out), *LONG)
    assert done.returncode == 0, done.stderr
    return out


def begin(model: Path, data: Path, out: Path) -> subprocess.Popen[bytes]:
    """Starts the long run and waits until its first checkpoint is there."""
    command = (QWENKIT, "finetune", "-m", str(model), "--data", str(data), "--out", str(out), *LONG)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def refused(done: Done, said: str) -> None:
    """In one sentence that says this."""
    assert said in assert_one_sentence(done)


def go_on(model: Path, data: Path, out: Path, whole: Path) -> None:
    """The same command finishes, with the curve and the weights of a run that nothing stopped."""
    done = qwenkit("finetune", "-m", str(model), "--data", str(data), "--out", str(out), *LONG)
    assert done.returncode == 0, done.stderr
    assert "going on at step" in done.stderr
    assert losses(out) == losses(whole)
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_from_data_to_an_answer(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model}\ndata: {data}\nout: nowhere\nloggers: [jsonl, tensorboard]\neval_share: 0.2\n"
    )
    done = qwenkit("finetune", str(config), "--out", str(out), *SHORT)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "24 samples" not in done.stderr  # a fifth is held out
    assert "step 4 of 4, loss " in done.stderr
    assert "tokens/s" in done.stderr
    assert "memory about" in done.stderr
    assert done.stdout.startswith(f"{out}: 4 steps, loss ")
    assert "held-out loss" in done.stdout
    assert (out / "loss.png").is_file()
    assert list((out / "tensorboard").iterdir())
    answer = qwenkit("chat", "-m", str(out), "--dtype", "float32", "Colour 1?")
    assert answer.returncode == 0, answer.stderr
    again = qwenkit("finetune", str(config), "--out", str(out), *SHORT)
    refused(again, "holds a finished run")
    once_more = qwenkit("finetune", str(config), "--out", str(out), *SHORT, "--restart", "--json")
    assert once_more.returncode == 0, once_more.stderr
    assert json.loads(once_more.stdout)["steps"] == 4


def test_looking_before_training(model: Path, data: Path, tmp_path: Path) -> None:
    start = ("finetune", "-m", str(model), "--data", str(data), "--out", str(tmp_path / "out"), *SHORT)
    shown = qwenkit(*start, "--preview", "2")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("tokens, ") == 2
    assert "⟦red" in shown.stdout
    planned = qwenkit(*start, "--plan", "--json")
    plan = json.loads(planned.stdout)
    assert plan["steps"] == 4
    assert plan["data"]["samples"] == 24
    assert plan["memory"]["total"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_same_command_goes_on(
    model: Path, data: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = begin(model, data, out)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert (
        stderr.decode().splitlines()[-1] == "qwenkit: stopped; run the same command again to go on from there"
    )
    assert not (out / "adapter_model.safetensors").exists()
    assert stdout
    other = qwenkit(
        "finetune", "-m", str(model), "--data", str(data), "--out", str(out), *LONG, "--seed", "9"
    )
    refused(other, "holds another run: seed was 42, now it is 9")
    go_on(model, data, out, whole)


def test_kill_in_mid_run(model: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(model, data, out)
    process.kill()
    process.communicate(timeout=60)
    newest = sorted(out.glob("checkpoints/checkpoint-*"))[-1]
    (newest.parent / "checkpoint-79").mkdir()  # as a kill in the middle of writing leaves it
    (newest.parent / "checkpoint-79" / "adapter_model.safetensors").write_bytes(b"half")
    go_on(model, data, out, whole)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "chats.json"),
        ('[{"conversations": [{"from": "user", "value": "a"}, {"from": "robot", "value": "b"}]}]', "robot"),
    ],
)
def test_broken_data(model: Path, tmp_path: Path, text: str, said: str) -> None:
    data = tmp_path / "chats.json"
    data.write_text(text)
    done = qwenkit("finetune", "-m", str(model), "--data", str(data), "--out", str(tmp_path / "out"))
    refused(done, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--dtype", "float16"), "float16 cannot be trained on a CPU"),
        (("--lora-targets", "c_atn"), "did you mean 'c_attn'?"),
        (("--data", "nowhere.json"), "nowhere.json"),
        (("no-such.yaml",), "no-such.yaml"),
    ],
)
def test_bad_options(model: Path, data: Path, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    start = ("finetune", "-m", str(model), "--data", str(data), "--out", str(tmp_path / "out"))
    refused(qwenkit(*start, *more), said)


def test_folders_of_others_are_left_alone(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    done = qwenkit("finetune", "-m", str(model), "--data", str(data), "--out", str(tmp_path), "--restart")
    refused(done, "not empty and holds no run")
    assert (tmp_path / "thesis.txt").read_text() == "x"


def test_an_adapter_of_another_base(model: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    for number, family in enumerate(("llama", "qwen")):
        other = write_model(tmp_path / f"m{number}", family, ffn_size=160)
        start = ("finetune", "-m", str(other), "--data", str(data), "--out", str(tmp_path / "out"))
        refused(qwenkit(*start, "--lora-adapter", str(whole)), str(whole))


def test_a_device_as_the_folder(model: Path, data: Path) -> None:
    out = Path("/dev/full")
    done = qwenkit("finetune", "-m", str(model), "--data", str(data), "--out", str(out), *SHORT)
    refused(done, "/dev/full")
