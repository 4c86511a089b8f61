"""Runs measurements on freshly loaded models, one after the other: another number of threads, another size of cache.

Takes down what loading took, the memory held, and how fast the machine's memory was read before and after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenkit.bench.neighbours import Neighbours
from qwenkit.bench.process_memory import PeakMemory
from qwenkit.bench.speed import Case, Measured, OnProgress, SpeedOptions, SpeedRun
from qwenkit.core.errors import InputError
from qwenkit.kernels.bandwidth import Bandwidth, read_bandwidth
from qwenkit.kernels.cpu import release_freed_memory, usable_cores

if TYPE_CHECKING:
    from qwenkit.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Cases that one loaded model runs."""

    cases: tuple[Case, ...]
    threads: int | None = None
    """None: as torch chooses."""

    @property
    def max_batch_size(self) -> int:
        """Sequences the engine is to take: one more than run, so that the cache may have spare pages."""
        return max(case.batch for case in self.cases) + 1


@dataclass(slots=True, kw_only=True)
class SessionResult:
    """What one loaded model showed."""

    threads: int
    load_seconds: float
    """Reading and packing weights, tokenizer and engine included; files may have been in memory already."""
    weights_bytes: int
    cache_bytes_per_token: float
    kernels: str
    dtype: str
    quantisation: str | None
    """How the checkpoint is packed; None: it is not."""
    head: str
    """What the output head is kept in."""
    cache_type: str
    device: str
    peak_bytes: int | None = None
    """Of the process; None: it cannot be told here."""
    peak_gpu_bytes: int | None = None
    other_cores: float | None = None
    """Kept busy by other programs meanwhile, on average; None: it cannot be told here."""
    bandwidth: Bandwidth | None = None
    """Of reading memory with as many threads, the best of before and after loads; None: not measured."""
    measured: list[Measured] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class SpeedResult:
    """Everything that was measured."""

    sessions: list[SessionResult] = field(default_factory=list)
    was_stopped: bool = False


def run_sessions(
    sessions: Sequence[Session],
    open_llm: Callable[[Session], LLM],
    options: SpeedOptions,
    *,
    device: str,
    show: OnProgress | None = None,
) -> SpeedResult:
    """Measures; Ctrl-C ends it early, with what was measured so far.

    Args:
        sessions: each gets a model of its own.
        open_llm: loads the model of a session.
        options: how often.
        device: cpu or cuda:N, where the model will be.
        show: called now and then.

    Raises:
        QwenkitError: the model cannot be loaded or does not do what is asked.
    """
    result = SpeedResult()
    total = sum(len(session.cases) for session in sessions)
    run = SpeedRun(options, total, show or (lambda progress: None))
    memory = _Memory()
    try:
        for session in sessions:
            is_limited = device == "cpu" and any(c.kind != "prefill" and c.batch == 1 for c in session.cases)
            if is_limited and session.threads not in memory.best:
                memory.measure(session.threads)
            _run_session(session, open_llm, run, device, result)
            if is_limited:
                memory.measure(session.threads)
    except KeyboardInterrupt:
        result.was_stopped = True
    for session, taken in zip(sessions, result.sessions, strict=False):  # the rest was stopped
        taken.bandwidth = memory.best.get(session.threads)
    return result


class _Memory:
    """The best speeds at which memory was read, by the threads that were asked for."""

    def __init__(self) -> None:
        self.best: dict[int | None, Bandwidth] = {}

    def measure(self, threads: int | None) -> None:
        """Once more; nothing comes of it where there is too little memory to tell."""
        import torch

        try:
            found = read_bandwidth(min(threads or torch.get_num_threads(), usable_cores()))
        except (InputError, MemoryError):
            return
        known = self.best.get(threads, found)
        self.best[threads] = max(known, found, key=lambda bandwidth: bandwidth.bytes_per_second)


def _run_session(
    session: Session, open_llm: Callable[[Session], LLM], run: SpeedRun, device: str, result: SpeedResult
) -> None:
    release_freed_memory()
    peak = PeakMemory(device)
    start = time.perf_counter()
    with open_llm(session) as llm:
        taken = _taken_down(llm, time.perf_counter() - start)
        result.sessions.append(taken)
        neighbours = Neighbours()
        try:
            for _ in run.run(llm, session.cases, taken.measured):
                peak.sample()
        finally:
            taken.peak_bytes, taken.peak_gpu_bytes = peak.process_bytes(), peak.gpu_bytes()
            taken.other_cores = neighbours.cores()


def _taken_down(llm: LLM, load_seconds: float) -> SessionResult:
    details = llm.info.details
    cache = details["cache"]
    return SessionResult(
        threads=details["threads"],
        load_seconds=load_seconds,
        weights_bytes=details["weights_bytes"],
        cache_bytes_per_token=cache["bytes"] / cache["tokens"],
        kernels=details["kernels"],
        dtype=llm.info.dtype,
        quantisation=details["quantisation"],
        head=details["head"],
        cache_type=cache["type"],
        device=llm.info.device,
    )
