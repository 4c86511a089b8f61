"""Models loaded one after the other, measured, and what is left when somebody presses Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from qwenkit import LLM
from qwenkit.bench import sessions as module
from qwenkit.bench.room import read_room
from qwenkit.bench.sessions import Session, SpeedResult, run_sessions
from qwenkit.bench.speed import Case, Progress, SpeedOptions
from qwenkit.bench.speed_report import session_facts, speed_rows
from qwenkit.core.errors import InputError
from qwenkit.kernels.bandwidth import Bandwidth
from tests.support.tiny_models import write_model

DECODE = Case(kind="decode", batch=1, prompt_tokens=40, output_tokens=8)
PREFILL = Case(kind="prefill", prompt_tokens=40)
ONCE = SpeedOptions(repeats=1, warmup=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path)


@pytest.fixture
def open_llm(folder: Path) -> Callable[[Session], LLM]:
    def opened(session: Session) -> LLM:
        return LLM(
            folder,
            dtype="float32",
            max_batch_size=session.max_batch_size,
            num_threads=session.threads,
            cache_memory=1 << 22,
        )

    return opened


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Bandwidths to be measured, in turn."""
    values = [10.0, 40.0, 30.0, 20.0]

    def measured(count: int) -> Bandwidth:
        return Bandwidth(bytes_per_second=values.pop(0), threads=count, buffer_bytes=1)

    monkeypatch.setattr(module, "read_bandwidth", measured)
    return values


def test_sessions_and_their_bandwidths(
    open_llm: Callable[[Session], LLM], speeds: list[float], folder: Path
) -> None:
    asked = [Session(cases=(PREFILL, DECODE), threads=1), Session(cases=(DECODE,), threads=1)]
    shown: list[Progress] = []
    result = run_sessions(asked, open_llm, ONCE, device="cpu", show=shown.append)
    assert not result.was_stopped
    first, second = result.sessions
    assert [m.case for m in first.measured] == [PREFILL, DECODE]
    assert [m.case for m in second.measured] == [DECODE]
    assert first.bandwidth is not None
    assert first.bandwidth.bytes_per_second == 40.0
    assert second.bandwidth is not None
    assert second.bandwidth.bytes_per_second == 40.0
    assert (first.threads, first.device, first.dtype, first.quantisation) == (1, "cpu", "float32", None)
    assert first.cache_bytes_per_token == 2 * 4 * 3 * 32
    assert first.load_seconds > 0
    assert first.peak_bytes is None or first.peak_bytes > first.weights_bytes
    assert first.peak_gpu_bytes is None
    assert {(s.number, s.total) for s in shown} == {(1, 3), (2, 3), (3, 3)}
    json.dumps(session_facts(first))
    assert set(session_facts(first)) == set(asdict(first)) - {"measured"}


def test_rows_know_how_near_the_limit_is(
    open_llm: Callable[[Session], LLM], speeds: list[float], folder: Path
) -> None:
    import torch

    room = read_room(folder, device=torch.device("cpu"), dtype=torch.float32)
    step = room.weights_bytes - room.unread_weight_bytes
    result = run_sessions([Session(cases=(PREFILL, DECODE), threads=1)], open_llm, ONCE, device="cpu")
    prefill, decode = speed_rows(result, room.unread_weight_bytes)
    assert prefill.limit is None
    assert decode.limit is not None
    assert decode.limit.weight_bytes == step
    assert decode.limit.cache_bytes == 44 * 768  # 40 tokens at the start, 48 at the end
    achieved = decode.tokens_per_second.median * (step + 44 * 768)
    assert decode.limit.bytes_per_second == pytest.approx(achieved)
    assert decode.limit.share == pytest.approx(achieved / 40.0)


def test_bandwidth_is_measured_only_where_it_is_the_limit(
    open_llm: Callable[[Session], LLM], speeds: list[float]
) -> None:
    many = Case(kind="decode", batch=2, prompt_tokens=40, output_tokens=8)
    result = run_sessions([Session(cases=(PREFILL, many), threads=1)], open_llm, ONCE, device="cpu")
    assert result.sessions[0].bandwidth is None
    assert len(speeds) == 4


def test_bandwidth_that_cannot_be_measured(
    open_llm: Callable[[Session], LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(count: int) -> Bandwidth:
        raise InputError("too little memory")

    monkeypatch.setattr(module, "read_bandwidth", measured)
    result = run_sessions([Session(cases=(DECODE,), threads=1)], open_llm, ONCE, device="cpu")
    [row] = speed_rows(result, 1000)
    assert row.limit is not None
    assert row.limit.share is None


def stopped_at(number: int, open_llm: Callable[[Session], LLM], cases: tuple[Case, ...]) -> SpeedResult:
    """Presses Ctrl-C when the number-th case is shown first."""

    def show(progress: Progress) -> None:
        if progress.number == number:
            raise KeyboardInterrupt

    return run_sessions([Session(cases=cases, threads=1)], open_llm, ONCE, device="cpu", show=show)


def test_ctrl_c_keeps_what_was_measured(open_llm: Callable[[Session], LLM], speeds: list[float]) -> None:
    result = stopped_at(2, open_llm, (PREFILL, DECODE))
    assert result.was_stopped
    assert [len(m.samples) for m in result.sessions[0].measured] == [1, 0]
    assert [row.kind for row in speed_rows(result, 1000)] == ["prefill"]
    assert len(speeds) == 3  # the second look at the memory would only keep people waiting


def test_ctrl_c_while_loading(speeds: list[float]) -> None:
    def open_llm(session: Session) -> LLM:
        raise KeyboardInterrupt

    result = run_sessions([Session(cases=(DECODE,))], open_llm, ONCE, device="cpu")
    assert result.was_stopped
    assert speed_rows(result, 1000) == []


def test_the_engine_may_take_one_more_than_run() -> None:
    many = Case(kind="decode", batch=7, prompt_tokens=40, output_tokens=8)
    assert Session(cases=(DECODE, many)).max_batch_size == 8
