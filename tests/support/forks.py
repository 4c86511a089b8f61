"""``qwenkit`` as processes of their own that start at once: forked from one that has imported everything.

They differ from started ones in that alone. ``python -m tests.support.forks`` is what forks; it reads an order a line.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.process import Done, environment

ROOT = Path(__file__).parents[2]
TIMEOUT = 240
_TURN = threading.Lock()
_MODULES = ("qwenkit.llm", "qwenkit.backends.local", "qwenkit.quantize.run", "qwenkit.train.run")
_SLOW = (
    "qwenkit.train.trainer",
    "qwenkit.hf",
    "transformers.trainer",
    "peft",
    "matplotlib.pyplot",
    "deepspeed",
)


class Forked:
    """A command under way, of one process or of several that make a group."""

    def __init__(self, folder: Path, arguments: tuple[str, ...]) -> None:
        self._folder, self._arguments = folder, arguments
        self.pids: list[int] = self._read("pids")

    def send_signal(self, number: int) -> None:
        """Sends it to every process."""
        for pid in self.pids:
            os.kill(pid, number)

    @property
    def has_ended(self) -> bool:
        """Whether all of its processes have."""
        return (self._folder / "codes").exists()

    def wait(self) -> Done:
        """What was printed; the exit code is the first that is not 0."""
        codes = self._read("codes")
        texts = [(self._folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr")]
        shutil.rmtree(self._folder)
        return Done(self._arguments, next((code for code in codes if code), 0), *texts)

    def _read(self, name: str) -> Any:
        deadline = time.monotonic() + TIMEOUT + 10
        while not (self._folder / name).exists():
            assert time.monotonic() < deadline, f"no {name} of {self._arguments}"
            time.sleep(0.005)
        return json.loads((self._folder / name).read_text())


def qwenkit(*arguments: str, **options: Any) -> Done:
    """Runs ``qwenkit ARGUMENTS`` to its end; see ``begin``."""
    return begin(*arguments, **options).wait()


def together(*commands: tuple[str, ...]) -> list[Done]:
    """Several commands, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda command: qwenkit(*command), commands))


def begin(
    *arguments: str,
    stdin: str = "",
    processes: int = 1,
    before: str = "",
    cwd: Path | None = None,
    **changes: str | None,
) -> Forked:
    """Starts ``qwenkit ARGUMENTS``.

    Args:
        arguments: of the command.
        stdin: what it reads.
        processes: with more than one, each gets the variables that torchrun would set.
        before: Python code to run first, in every process.
        cwd: where it runs.
        changes: of environment variables; those that libraries read when they are imported come too late.
    """
    folder = Path(tempfile.mkdtemp(prefix="forked"))
    (folder / "stdin").write_text(stdin, "utf-8")
    order = {
        "folder": str(folder),
        "arguments": arguments,
        "processes": processes,
        "before": before,
        "cwd": None if cwd is None else str(cwd),
        "environment": environment(**changes),
    }
    with _TURN:
        parent = _parent()
        assert parent.stdin is not None
        parent.stdin.write(json.dumps(order) + "\n")
        parent.stdin.flush()
    return Forked(folder, arguments)


@cache
def _parent() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.forks"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    parent = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **pipes)

    def end() -> None:
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait()

    atexit.register(end)
    return parent


def main() -> None:
    """Obeys until there are no more orders."""
    for name in (*_MODULES, *_SLOW):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _supervise(json.loads(line))
            os._exit(0)


def _supervise(order: dict[str, Any]) -> None:
    folder, count = Path(order["folder"]), order["processes"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            _become(order, rank, port)
        pids.append(pid)
    _write(folder / "pids", pids)
    _write(folder / "codes", [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])


def _become(order: dict[str, Any], rank: int, port: int) -> None:
    """Turns this process into the command."""
    signal.alarm(TIMEOUT)
    folder = Path(order["folder"])
    os.dup2(os.open(folder / "stdin", os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(order["environment"])
    if order["processes"] > 1:
        size, place = str(order["processes"]), str(rank)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=place, LOCAL_RANK=place)
        os.environ.update(WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, GLOO_SOCKET_IFNAME="lo")
    if order["cwd"] is not None:
        os.chdir(order["cwd"])
    sys.argv = ["qwenkit", *order["arguments"]]
    _run(order["before"])


def _run(before: str) -> None:
    """Ends as a program does, threads and handlers included."""
    from qwenkit.cli.main import run

    code: Any = 0
    try:
        exec(before, {})
        run()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


def _write(path: Path, value: list[int]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.rename(path)


if __name__ == "__main__":
    main()
