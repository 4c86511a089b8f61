"""What the CPU can do and how much of the machine is ours: instruction sets, cores, memory.

Reads /proc and the control group files of Linux, so that a container's share counts, not the whole machine.
Knows nothing of torch; cheap enough to call at any time.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
# Version 1 writes "no limit" as the largest number it can.
_UNLIMITED = 1 << 60
_HUGEPAGE = 14  # MADV_HUGEPAGE of Linux


@functools.cache
def cpu_model() -> str:
    """The processor's name, or ``"unknown"``."""
    return _cpuinfo("model name") or "unknown"


@functools.cache
def cpu_features() -> frozenset[str] | None:
    """Feature flags as Linux spells them (``avx2``, ``avx512_bf16``, ``amx_int8``); None where they cannot be read."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")  # x86, ARM
    return frozenset(flags.split()) if flags else None


def cpu_has_bf16() -> bool:
    """True if the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX), so that bf16 beats fp32."""
    return not (cpu_features() or frozenset()).isdisjoint({"avx512_bf16", "amx_bf16"})


def usable_cores() -> int:
    """Cores this process may use: its affinity, and its control group's quota rounded up; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on Linux
        cores = os.cpu_count() or 1
    quotas = [q for q in (*_quotas_v2(), *_quotas_v1()) if q > 0]
    return max(1, min([cores, *(math.ceil(q) for q in quotas)]))


def use_large_pages(address: int, size: int) -> None:
    """Asks for 2 MiB pages behind a block of memory: reading weights misses the address cache far less often.

    Does nothing where the system cannot.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        page = os.sysconf("SC_PAGE_SIZE")
        start = -(-address // page) * page
        libc.madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(max(address + size - start, 0) // page * page), _HUGEPAGE
        )
    except (AttributeError, OSError, ValueError):  # not Linux
        return


def release_freed_memory() -> None:
    """Hands memory that the allocator keeps for later back to the system, where the C library can (glibc)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    except (AttributeError, OSError):
        return


def total_memory() -> int | None:
    """Bytes of memory this process could ever have: the machine's, or its control group's limit; None if unknown."""
    machine = _meminfo("MemTotal")
    amounts = [limit for limit, _ in _memory_groups()]
    return min([*amounts, *([] if machine is None else [machine])], default=None)


def available_memory() -> int:
    """Bytes this process can still use without swapping; 0 if that cannot be read."""
    machine = _meminfo("MemAvailable")
    if machine is None:
        machine = _sysconf_available()
    rooms = [max(0, limit - used) for limit, used in _memory_groups()]
    return min([*rooms, *([] if machine is None else [machine])], default=0)


def _cpuinfo(key: str) -> str:
    """The first value of a key; every core has the same ones on the machines we know."""
    for line in _read(_PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _meminfo(key: str) -> int | None:
    for line in _read(_PROC / "meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.split()
        if name == key and number and number[0].isdigit():
            return int(number[0]) * 1024  # written in KiB
    return None


def _sysconf_available() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _group_folders(controller: str) -> Iterator[Path]:
    """This process's group and the groups around it: all their limits hold.

    Args:
        controller: a version 1 controller, or ``""`` for the one tree of version 2.
    """
    for line in _read(_PROC / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller not in controllers.split(","):
            continue
        root = _CGROUP / controller if controller else _CGROUP
        inner = root / path.lstrip("/")
        yield inner
        for parent in inner.parents:
            if parent == root or root in parent.parents:
                yield parent


def _quotas_v2() -> Iterator[float]:
    for folder in _group_folders(""):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _quotas_v1() -> Iterator[float]:
    for folder in _group_folders("cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period:
            yield quota / period


def _memory_groups() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every group that limits memory; cache that can be dropped is not use."""
    for controller, limit_name, used_name, cache_key in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _group_folders(controller):
            limit = _number(folder / limit_name)
            if limit is not None and limit < _UNLIMITED:
                used = _number(folder / used_name) or 0
                yield limit, max(0, used - _stat(folder / "memory.stat", cache_key))


def _stat(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None  # "max" and "-1" mean: no limit


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
