"""Every environment variable of ours is read here and nowhere else.

QWENKIT_CACHE      where fetched models go; else qwenkit in XDG_CACHE_HOME, else ~/.cache/qwenkit
QWENKIT_HOME       where the chat history lives; else qwenkit in XDG_DATA_HOME, else ~/.local/share/qwenkit
QWENKIT_ISA        instruction set of the CPU kernels: amx, avx512, avx2, portable, or reference for plain torch
QWENKIT_API_KEY    key that is sent to a server; else OPENAI_API_KEY
QWENKIT_API_KEYS   keys that `qwenkit serve` accepts, between commas
DASHSCOPE_API_KEY  key that is sent to DashScope for models named dashscope:NAME
DASHSCOPE_HTTP_BASE_URL  where DashScope is; else https://dashscope.aliyuncs.com/api/v1
QWENKIT_TRACEBACK  1 prints the traceback of an error of the command line
LOCAL_RANK         set by torchrun and other launchers of several processes
"""

from __future__ import annotations

import os
from pathlib import Path

from qwenkit.core.errors import InputError


def cache_dir() -> Path:
    """Where fetched models go; need not exist.

    Raises:
        InputError: nothing names a folder and the user has no home.
    """
    return _folder("QWENKIT_CACHE", "XDG_CACHE_HOME", "~/.cache")


def data_dir() -> Path:
    """Where the chat history lives; need not exist.

    Raises:
        InputError: nothing names a folder and the user has no home.
    """
    return _folder("QWENKIT_HOME", "XDG_DATA_HOME", "~/.local/share")


def forced_isa() -> str | None:
    """The instruction set that was asked for, in lower case; None: the best one."""
    return os.environ.get("QWENKIT_ISA", "").strip().lower() or None


def api_key() -> str | None:
    """The key to send to a server when none is given; None: none."""
    return os.environ.get("QWENKIT_API_KEY") or os.environ.get("OPENAI_API_KEY") or None


def dashscope_api_key() -> str | None:
    """The key to send to DashScope when none is given; None: none."""
    return os.environ.get("DASHSCOPE_API_KEY", "").strip() or None


def dashscope_url() -> str:
    """Where DashScope is."""
    return os.environ.get("DASHSCOPE_HTTP_BASE_URL", "").strip() or "https://dashscope.aliyuncs.com/api/v1"


def server_api_keys() -> tuple[str, ...]:
    """The keys that a server of ours accepts; empty: none is named."""
    return tuple(key.strip() for key in os.environ.get("QWENKIT_API_KEYS", "").split(",") if key.strip())


def wants_traceback() -> bool:
    """Whether errors of the command line show where they came from."""
    return os.environ.get("QWENKIT_TRACEBACK") == "1"


def local_rank() -> int | None:
    """Which of the processes that a launcher such as torchrun started on this machine this is; None: it was started alone."""
    number = os.environ.get("LOCAL_RANK", "")
    return int(number) if number.isdigit() else None


def let_threads_sleep() -> None:
    """Asks OpenMP, before torch loads it, not to spin while threads wait for each other, unless the user has said how.

    A spinning thread keeps the core that the thread it waits for may need: beside one other busy program a step of
    training then takes three times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _folder(own: str, base: str, fallback: str) -> Path:
    try:
        if chosen := os.environ.get(own):
            return Path(chosen).expanduser()
        root = os.environ.get(base, "")
        # The XDG rules say: a relative path is to be ignored.
        return (Path(root) if os.path.isabs(root) else Path(fallback).expanduser()) / "qwenkit"
    except RuntimeError:  # neither HOME nor an entry for this user
        raise InputError(f"this user has no home folder; set {own} to a folder") from None
