"""The folder of a run: what it holds, whether it is of the same run, and from where to go on. Knows nothing of training."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenkit.core.errors import CheckpointError, InputError, QwenkitError
from qwenkit.train.options import FinetuneOptions
from qwenkit.weights.write import write_json

RECORD, CHECKPOINTS, LOG, PLOT, BOARD = "finetune.json", "checkpoints", "log.jsonl", "loss.png", "tensorboard"
_STATE = "trainer_state.json"
# Trainer would go on without the last three, and take other steps than the run would have taken.
_NEEDED: dict[str, tuple[str, ...]] = {
    "weights": ("*.safetensors",),
    "schedule": ("scheduler.pt",),
    "random numbers": ("rng_state*.pth",),
    "optimizer": ("optimizer*", "global_step*"),
}
# These change nothing that a run computes.
_FREE = {
    "out",
    "restart",
    "threads",
    "save_every",
    "keep",
    "log_every",
    "loggers",
    "lazy",
    "data",
    "eval_data",
    "model",
}


def run_identity(
    options: FinetuneOptions, model_digest: str, data_digest: str, devices: int
) -> dict[str, Any]:
    """What two runs must share for one to go on where the other stopped."""
    kept = {name: value for name, value in options.to_dict().items() if name not in _FREE}
    return {**kept, "model": model_digest, "data": data_digest, "devices": devices}


class RunFolder:
    """A folder that a run writes to.

    Args:
        path: may exist with an earlier, unfinished part of the same run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    def check(self, identity: Mapping[str, Any], *, restart: bool) -> Path | None:
        """Looks whether the folder can be used, and writes nothing.

        Returns:
            The checkpoint to go on from; None: from the start.

        Raises:
            InputError: it holds something else, another run, or a finished one.
            CheckpointError: the checkpoint is damaged.
        """
        record = self._record()
        if record is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(f"{self.path} is not empty and holds no run; choose a new folder")
            return None
        if restart:
            return None
        if record.get("finished"):
            raise InputError(f"{self.path} holds a finished run; choose another folder, or add --restart")
        newest = self.last_checkpoint()
        earlier = record.get("run", {})
        for name in sorted({*earlier, *identity}):
            if newest is not None and earlier.get(name) != identity.get(name):
                raise InputError(
                    f"{self.path} holds another run: {_difference(name, earlier.get(name), identity.get(name))}; choose another folder, or add --restart"
                )
        return newest

    def claim(self, identity: Mapping[str, Any], *, restart: bool) -> Path | None:
        """Takes the folder for a run; see ``check``."""
        newest = self.check(identity, restart=restart)
        if newest is None:
            self._clear()
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / RECORD, {"run": dict(identity), "finished": False})
        self.drop_incomplete()
        return newest

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as finished."""
        record = self._record() or {}
        write_json(self.path / RECORD, {**record, "finished": True, "result": dict(summary)})

    def last_checkpoint(self) -> Path | None:
        """The newest one that was written to its end: its state is the last file of it.

        Raises:
            CheckpointError: something else than the end of a process has damaged it.
        """
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=_step, reverse=True)
        newest = next((folder for folder in found if not _is_cut_off(folder)), None)
        if newest is not None:
            _check_whole(newest)
        return newest

    def drop_incomplete(self) -> None:
        """Removes what a killed run left half written."""
        for folder in self.checkpoints.glob("checkpoint-*"):
            if _is_cut_off(folder):
                shutil.rmtree(folder)

    def trim_log(self, step: int) -> None:
        """Forgets lines of the log behind a step: they are computed again."""
        log = self.path / LOG
        if not log.is_file():
            return
        kept = []
        for line in log.read_text("utf-8").splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except ValueError:  # cut off by a kill
                continue
        log.write_text("".join(kept), "utf-8")

    def _record(self) -> dict[str, Any] | None:
        file = self.path / RECORD
        if not file.is_file():
            return None
        try:
            loaded = json.loads(file.read_text("utf-8"))
        except ValueError:
            loaded = None
        if not isinstance(loaded, dict):
            raise InputError(f"{file} is damaged; choose another folder, or remove this one")
        return loaded

    def _clear(self) -> None:
        """Removes all that earlier runs wrote; only called on folders that hold a run of ours."""
        for each in self.path.iterdir() if self.path.is_dir() else ():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()


def _step(folder: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else -1


def _is_cut_off(folder: Path) -> bool:
    """Whether a run ended while it wrote this: the last file is not there, or ends too soon."""
    try:
        text = (folder / _STATE).read_text("utf-8").strip()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    if not text or (text.startswith("{") and not text.endswith("}")):
        return True
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    return False


def _check_whole(folder: Path) -> None:
    try:
        step = json.loads((folder / _STATE).read_text("utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder, f"{_STATE} holds no state of a run") from None
    if step != _step(folder):
        raise _damaged(folder, f"{_STATE} is of step {step}")
    for name, patterns in _NEEDED.items():
        if not any(True for pattern in patterns for _ in folder.glob(pattern)):
            raise _damaged(folder, f"no {name} there")


@contextlib.contextmanager
def damage_told(checkpoint: Path | None, is_under_way: Callable[[], bool]) -> Iterator[None]:
    """Turns what libraries raise over a damaged checkpoint into one sentence.

    Args:
        checkpoint: what is gone on from.
        is_under_way: whether it was read to its end; what fails later is not its fault.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        yield
    except Exception as error:
        if checkpoint is None or is_under_way() or isinstance(error, QwenkitError):
            raise
        reason = " ".join(str(error).split("\n")[0].split()) or "it ends too soon"
        raise _damaged(checkpoint, f"{type(error).__name__}: {reason}") from error


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} is damaged ({reason}); remove that folder and run the same command again, "
        "which goes on from the one before it, or begin anew with --restart"
    )


def _difference(name: str, earlier: Any, now: Any) -> str:
    if name in ("model", "data"):
        return f"its {name} is another"
    return f"{name} was {earlier}, now it is {now}"
