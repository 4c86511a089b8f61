"""``qwenkit finetune`` as a process: what it prints, what stops it, going on afterwards, and bad input."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.finetuning import losses, write_conversations
from tests.support.forks import Forked, begin, qwenkit
from tests.support.process import Done, assert_one_sentence
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
CHECKPOINTS = "checkpoints/checkpoint-*/trainer_state.json"
SHORT = (*OPTIONS, "--max-steps", "4", "--accumulate", "2")
LONG = (*OPTIONS, "--max-steps", "60", "--accumulate", "1", "--save-every", "5")


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


def begin_again(model: Path, data: Path, out: Path) -> Forked:
    """Starts the long run, or goes on with it, and waits until it has written one more checkpoint."""
    written = set(out.glob(CHECKPOINTS))
    process = begin("finetune", "-m", str(model), "--data", str(data), "--out", str(out), *LONG)
    deadline = time.monotonic() + 120
    while not set(out.glob(CHECKPOINTS)) - written:
        assert not process.has_ended, process.wait()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def refused(done: Done, said: str) -> None:
    """In one sentence that says this."""
    assert said in assert_one_sentence(done)


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


def test_whatever_stops_a_run_the_same_command_goes_on(
    model: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """Ctrl-C, SIGTERM and SIGKILL; then curve and weights are those of a run that nothing stopped."""
    out = tmp_path / "out"
    command = ("finetune", "-m", str(model), "--data", str(data), "--out", str(out), *LONG)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = begin_again(model, data, out)
        process.send_signal(number)
        done = process.wait()
        assert done.returncode == 130, done.stderr
        assert done.stderr.splitlines()[-1] == (
            "qwenkit: stopped; run the same command again to go on from there"
        )
        assert done.stdout
        assert not (out / "adapter_model.safetensors").exists()
    refused(qwenkit(*command, "--seed", "9"), "holds another run: seed was 42, now it is 9")
    process = begin_again(model, data, out)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    (out / "checkpoints" / "checkpoint-59").mkdir()  # as a kill in the middle of writing leaves it
    (out / "checkpoints" / "checkpoint-59" / "adapter_model.safetensors").write_bytes(b"half")
    done = qwenkit(*command)
    assert done.returncode == 0, done.stderr
    assert "going on at step" in done.stderr
    assert losses(out) == losses(whole)
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_damaged_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin_again(model, data, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = max((path.parent for path in out.glob(CHECKPOINTS)), key=lambda p: int(p.name.split("-")[1]))
    (newest / "optimizer.pt").write_bytes(b"PK")
    done = qwenkit("finetune", "-m", str(model), "--data", str(data), "--out", str(out), *LONG)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"qwenkit: the checkpoint {newest} is damaged (")


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
