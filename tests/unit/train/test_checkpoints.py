"""The folder of a run: claimed once, gone on with, never mixed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenkit.core.errors import CheckpointError, InputError, NumericsError
from qwenkit.train.checkpoints import LOG, RECORD, RunFolder, damage_told, run_identity
from qwenkit.train.options import FinetuneOptions

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
IDENTITY: dict[str, Any] = {"method": "lora", "seed": 1, "data": "abc"}


def _checkpoint(folder: RunFolder, step: int, state: str | None = None) -> Path:
    path = folder.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).touch()
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}) if state is None else state)
    return path


def test_a_fresh_run_and_the_same_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.claim(IDENTITY, restart=False) is None
    assert folder.claim(IDENTITY, restart=False) is None
    _checkpoint(folder, 9)
    newest = _checkpoint(folder, 10)
    _checkpoint(folder, 11, state='{"global_st')
    _checkpoint(folder, 12, state="")
    _checkpoint(folder, 13, state='{"log": [{"loss": 1}')
    (_checkpoint(folder, 14) / "trainer_state.json").unlink()
    assert folder.claim(IDENTITY, restart=False) == newest
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_other_runs_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(IDENTITY, restart=False)
    assert folder.claim(IDENTITY | {"seed": 3}, restart=False) is None  # nothing was computed yet
    folder.claim(IDENTITY, restart=False)
    _checkpoint(folder, 1)
    with pytest.raises(InputError, match="seed was 1, now it is 2"):
        folder.claim(IDENTITY | {"seed": 2}, restart=False)
    with pytest.raises(InputError, match="its data is another"):
        folder.claim(IDENTITY | {"data": "xyz"}, restart=False)
    assert folder.claim(IDENTITY | {"seed": 2}, restart=True) is None


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(IDENTITY, restart=False)
    (folder.path / "adapter_model.safetensors").write_text("x")
    folder.finish({"loss": 1.0})
    with pytest.raises(InputError, match="finished run"):
        folder.claim(IDENTITY, restart=False)
    assert folder.claim(IDENTITY, restart=True) is None
    assert [p.name for p in folder.path.iterdir()] == [RECORD]


def test_looking_writes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.check(IDENTITY, restart=False) is None
    assert not folder.path.exists()
    folder.claim(IDENTITY, restart=False)
    newest = _checkpoint(folder, 5)
    assert folder.check(IDENTITY, restart=False) == newest
    assert folder.check(IDENTITY, restart=True) is None
    assert newest.is_dir()


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for restart in (False, True):
        with pytest.raises(InputError, match="not empty and holds no run"):
            RunFolder(tmp_path).claim(IDENTITY, restart=restart)
    assert (tmp_path / "thesis.txt").is_file()


def test_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        RunFolder(tmp_path).claim(IDENTITY, restart=False)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("garbage", "holds no state"),
        ("\0\0\0", "holds no state"),
        ("[]", "holds no state"),
        ("{}", "holds no state"),
        ('{"global_step": 3}', "is of step 3"),
    ],
)
def test_a_damaged_state(tmp_path: Path, state: str, said: str) -> None:
    """No end of a process leaves this, so nothing is removed and nothing older is taken instead without a word."""
    folder = RunFolder(tmp_path / "run")
    folder.claim(IDENTITY, restart=False)
    _checkpoint(folder, 10)
    newest = _checkpoint(folder, 12, state=state)
    with pytest.raises(CheckpointError, match=said) as caught:
        folder.claim(IDENTITY, restart=False)
    assert str(newest) in str(caught.value)
    assert "remove that folder" in str(caught.value)
    assert newest.is_dir()
    assert folder.claim(IDENTITY, restart=True) is None


@pytest.mark.parametrize(
    ("name", "said"),
    list(zip(FILES, ("no weights", "no optimizer", "no schedule", "no random numbers"), strict=True)),
)
def test_a_checkpoint_with_a_part_missing(tmp_path: Path, name: str, said: str) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(IDENTITY, restart=False)
    (_checkpoint(folder, 12) / name).unlink()
    with pytest.raises(CheckpointError, match=said):
        folder.check(IDENTITY, restart=False)


def test_only_what_fails_while_a_checkpoint_is_read_is_its_damage(tmp_path: Path) -> None:
    bug, ours = ValueError("first line\nsecond line"), NumericsError("the loss became nan")

    def through(checkpoint: Path | None, is_under_way: bool, error: Exception) -> Exception:
        with pytest.raises(Exception) as caught, damage_told(checkpoint, lambda: is_under_way):  # noqa: PT011
            raise error
        return caught.value

    assert through(None, False, bug) is bug
    assert through(tmp_path, True, bug) is bug
    assert through(tmp_path, False, ours) is ours
    told = through(tmp_path, False, bug)
    assert isinstance(told, CheckpointError)
    assert told.__cause__ is bug
    assert f"the checkpoint {tmp_path} is damaged (ValueError: first line)" in str(told)


def test_the_log_goes_back_to_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / LOG).write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    folder.trim_log(1)
    assert (tmp_path / LOG).read_text() == '{"step": 1, "loss": 2}\n'


def test_what_makes_a_run_another(tmp_path: Path) -> None:
    def identity(devices: int = 1, digest: str = "digest", **changes: Any) -> dict[str, Any]:
        options = FinetuneOptions(**({"model": "m", "data": ("d",), "out": "o"} | changes))
        return run_identity(options, "weights", digest, devices)

    assert identity() == identity(out="p", save_every=3, keep=9, model="elsewhere")
    assert identity() != identity(seed=7)
    assert identity() != identity(devices=2)
    assert identity() != identity(max_length=64)
