"""Several processes train as one: the same curve, the same folder, and the same again after a kill in the middle."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from qwenkit.train.trainer import deepspeed_settings
from tests.support.forks import qwenkit
from tests.support.process import Done, environment
from tests.support.tiny_models import write_model

pytestmark = pytest.mark.slow

STEPS, SAVE_EVERY, BREAK_AT = 5, 2, 3
TIMEOUT = 600
FULL = ("--method", "full", "--learning-rate", "1e-3")
LORA = ("--lora-r", "8", "--lora-dropout", "0", "--learning-rate", "3e-3")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)

# A signal behind a step, from within: no clock is needed to hit the middle of a run. What the launcher gets reaches
# its processes a little later.
BREAKS_OFF = """
import os, signal, time
from qwenkit.train import progress
plain = progress.Meter.on_step_end
def breaking(self, args, state, control, **rest):
    if state.global_step == {step} and str(args.process_index) in "{ranks}":
        if "{sends}" != "to the launcher":
            os.kill(os.getpid(), getattr(signal, "{sends}"))
        else:
            stop, heard = signal.getsignal(signal.SIGTERM), []
            signal.signal(signal.SIGTERM, lambda *call: heard.append(stop(*call)))
            if args.process_index == 0:
                os.kill(os.getppid(), signal.SIGTERM)
            while not heard:
                time.sleep(0.01)
    return plain(self, args, state, control, **rest)
progress.Meter.on_step_end = breaking
"""


def breaks_off(sends: str, ranks: str, step: int = BREAK_AT) -> str:
    """Code that sends a signal to the processes of these ranks."""
    return BREAKS_OFF.format(sends=sends, ranks=ranks, step=step)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, some conversations, and a program that is told to stop in the middle of a run."""
    folder = tmp_path_factory.mktemp("distributed")
    for family in ("qwen", "llama"):
        write_model(folder / family, family)
    chooser, words = random.Random(0), ["red", "green", "blue", "one", "two", "cat", "dog", "sun"]
    samples = []
    for _ in range(48):
        asked, said = (" ".join(chooser.choices(words, k=chooser.randint(1, 7))) for _ in range(2))
        turns = [{"from": "user", "value": asked}, {"from": "assistant", "value": said}]
        samples.append({"conversations": turns})
    (folder / "data.json").write_text(json.dumps(samples))
    code = f"{breaks_off('to the launcher', '01')}\nfrom qwenkit.cli.main import run\nrun()\n"
    (folder / "told_to_stop.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def alone(root: Path) -> Any:
    """Runs of one process by model and method, each made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(model: str, *method: str) -> Path:
        key = (model, *method)
        if key not in made:
            out = root / f"alone{len(made)}"
            done = qwenkit(*command(root, out, model, *method, accumulate=4))
            assert done.returncode == 0, done.stderr
            made[key] = out
        return made[key]

    return run


def command(root: Path, out: Path, model: str, *options: str, accumulate: int = 2) -> list[str]:
    """What follows ``qwenkit``."""
    fixed = ("--dtype", "float32", "--batch-size", "2", "--max-length", "96", "--max-steps", str(STEPS))
    often = ("--save-every", str(SAVE_EVERY), "--accumulate", str(accumulate))
    places = ("-m", str(root / model), "--data", str(root / "data.json"), "--out", str(out))
    return ["finetune", *places, *fixed, *often, *options]


def launched(launcher: tuple[str, ...], program: list[str]) -> Done:
    """By one of the launchers that the documentation names."""
    env = environment(HF_HUB_OFFLINE="1", GLOO_SOCKET_IFNAME="lo")
    scripts = str(Path(sys.executable).parent)
    env["PATH"] = f"{scripts}:{env.get('PATH', '')}"
    return subprocess.run(
        [*launcher, *program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        timeout=TIMEOUT,
    )


def assert_same(out: Path, reference: Path) -> None:
    """Curve, record and weights."""
    log, wanted = read_log(out), read_log(reference)
    assert [line["step"] for line in log] == [line["step"] for line in wanted] == list(range(1, STEPS + 1))
    for line, other in zip(log, wanted, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-3)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
        assert line["learning_rate"] == other["learning_rate"]
    assert wanted[0]["loss"] - wanted[-1]["loss"] > 0.05
    assert json.loads((out / "finetune.json").read_text())["finished"] is True
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in reference.iterdir())
    weights, others = read_weights(out), read_weights(reference)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.shape == others[name].shape
        # An early step of Adam has the size of the learning rate even where the gradient is all but zero.
        assert float((weight.float() - others[name].float()).abs().mean()) < 1e-4, name


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def read_weights(out: Path) -> dict[str, Tensor]:
    return {name: t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}


def checkpoints(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").iterdir())


def test_a_launch_is_told_to_stop_and_goes_on(root: Path, alone: Any, tmp_path: Path) -> None:
    """SIGTERM to the launcher; then Ctrl-C that reaches one of the processes."""
    out = tmp_path / "out"
    program = command(root, out, "qwen", *FULL)
    launcher = ("torchrun", "--standalone", "--nproc-per-node", "2", "--shutdown-timeout", "600")
    stopped = launched((*launcher, str(root / "told_to_stop.py")), program)
    assert stopped.returncode != 0
    assert stopped.stderr.count("run the same command again") == 1, stopped.stderr
    assert checkpoints(out) == [f"checkpoint-{SAVE_EVERY}", f"checkpoint-{BREAK_AT}"]
    once_more = qwenkit(*program, processes=2, before=breaks_off("SIGINT", "1", BREAK_AT + 1))
    assert f"going on at step {BREAK_AT}" in once_more.stderr
    assert once_more.stderr.count("run the same command again") == 1, once_more.stderr
    done = qwenkit(*program, processes=2)
    assert done.returncode == 0, done.stderr
    assert f"going on at step {BREAK_AT + 1}" in done.stderr
    assert done.stderr.count(f"step {STEPS} of {STEPS}") == done.stdout.count("5 steps, loss") == 1
    assert_same(out, alone("qwen", *FULL))


SHARDED = [
    pytest.param("llama", LORA, ("--fsdp",), "01", id="fsdp-lora"),
    pytest.param("qwen", FULL, ("--deepspeed", "zero2"), "1", id="zero2-full", marks=needs_deepspeed),
    pytest.param("qwen", LORA, ("--deepspeed", "zero3"), "01", id="zero3-lora", marks=needs_deepspeed),
]


@pytest.mark.parametrize(("model", "method", "sharding", "killed"), SHARDED)
def test_sharded_and_killed(
    root: Path,
    alone: Any,
    tmp_path: Path,
    model: str,
    method: tuple[str, ...],
    sharding: tuple[str, ...],
    killed: str,
) -> None:
    out = tmp_path / "out"
    program = command(root, out, model, *method, *sharding)
    broken = qwenkit(*program, processes=2, before=breaks_off("SIGKILL", killed))
    assert broken.returncode != 0
    if killed == "1":
        assert broken.stderr.count("qwenkit: another process of this run has ended") == 1, broken.stderr
    assert checkpoints(out) == [f"checkpoint-{SAVE_EVERY}"]
    assert max(line["step"] for line in read_log(out)) >= SAVE_EVERY
    done = qwenkit(*program, processes=2)
    assert done.returncode == 0, done.stderr
    assert f"going on at step {SAVE_EVERY}" in done.stderr
    assert "Warning" not in done.stderr + done.stdout
    assert_same(out, alone(model, *method))


@needs_deepspeed
def test_a_configuration_of_ones_own(root: Path, alone: Any, tmp_path: Path) -> None:
    """Adam's moments in the memory of the machine, with torch's Adam, so that nothing has to be compiled."""
    settings = deepspeed_settings("zero2")
    assert settings is not None
    settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    settings["zero_force_ds_cpu_optimizer"] = False
    (tmp_path / "own.json").write_text(json.dumps(settings))
    program = command(root, tmp_path / "out", "qwen", *FULL, "--deepspeed", str(tmp_path / "own.json"))
    built = tmp_path / "built"
    done = qwenkit(*program, processes=2, TORCH_EXTENSIONS_DIR=str(built))
    assert done.returncode == 0, done.stderr
    assert not built.exists()
    assert_same(tmp_path / "out", alone("qwen", *FULL))


def test_an_error_is_told_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    launcher = ("accelerate", "launch", "--multi-gpu", "--num-processes", "2", "-m", "qwenkit")
    done = launched(launcher, command(root, tmp_path / "other", "llama", *LORA))
    assert done.returncode == 1  # of the launcher
    assert done.stderr.count("qwenkit: ") == 1, done.stderr
    assert "holds no run; choose a new folder" in done.stderr
    assert "exitcode  : 2" in done.stderr


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Names of two network namespaces that reach each other and nothing else; the first has the address 10.77.0.1."""
    names = [f"qwenkit{os.getpid()}{letter}" for letter in "ab"]
    ends = [f"qk{os.getpid() % 100000}{letter}" for letter in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "link", "set", end, "name", "veth0")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_two_machines(root: Path, alone: Any, tmp_path: Path, two_machines: list[str]) -> None:
    out = tmp_path / "out"
    where = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29577")
    processes = []
    for rank, name in enumerate(two_machines):
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *where,
            "--node-rank",
            str(rank),
            "-m",
            "qwenkit",
        ]
        arguments = ["ip", "netns", "exec", name, *launch, *command(root, out, "llama", *LORA)]
        env = environment(HF_HUB_OFFLINE="1", GLOO_SOCKET_IFNAME="veth0")
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(arguments, text=True, env=env, **pipes))
    told = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert_same(out, alone("llama", *LORA))
    assert told[1][0] == ""  # the second machine prints nothing
