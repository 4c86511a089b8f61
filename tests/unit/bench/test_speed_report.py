"""Numbers and the picture that are made of rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenkit.bench.sessions import SessionResult, SpeedResult
from qwenkit.bench.speed import Case, Measured, Sample
from qwenkit.bench.speed_plot import draw_speed
from qwenkit.bench.speed_report import Range, SpeedRow, speed_rows
from qwenkit.core.errors import InputError
from qwenkit.kernels.bandwidth import Bandwidth


def session(*measured: Measured, threads: int = 2, device: str = "cpu") -> SessionResult:
    return SessionResult(
        threads=threads,
        load_seconds=1.5,
        weights_bytes=1000,
        cache_bytes_per_token=10.0,
        kernels="native amx",
        dtype="bfloat16",
        quantisation=None,
        head="bfloat16",
        cache_type="bfloat16",
        device=device,
        bandwidth=Bandwidth(bytes_per_second=40_000, threads=threads, buffer_bytes=1),
        measured=list(measured),
    )


def decoded(batch: int, context: int, *speeds: float) -> Measured:
    case = Case(kind="decode", batch=batch, prompt_tokens=context, output_tokens=20)
    samples = [
        Sample(tokens=batch * 10, seconds=batch * 10 / s, steps=10, first_token_seconds=9.0) for s in speeds
    ]
    return Measured(case, samples)


def rows(*sessions: SessionResult) -> list[SpeedRow]:
    return speed_rows(SpeedResult(sessions=list(sessions)), 100)


def test_medians_and_spread() -> None:
    [row] = rows(session(decoded(4, 100, 30.0, 10.0, 20.0)))
    assert row.tokens_per_second == Range(median=20.0, low=10.0, high=30.0)
    assert row.step_seconds is not None
    assert row.step_seconds.median == pytest.approx(4 / 20)
    assert row.first_token_seconds is None  # the prompt was read before
    assert (row.rounds, row.limit) == (3, None)
    assert json.loads(json.dumps(row.to_dict()))["tokens_per_second"]["high"] == 30.0


def test_the_limit_of_one_sequence() -> None:
    [row] = rows(session(decoded(1, 100, 20.0)))
    assert row.limit is not None
    assert row.limit.cache_bytes == 10 * 110
    assert row.limit.bytes_per_second == pytest.approx(20 * 2000)
    assert row.limit.share == pytest.approx(1.0)
    assert [r.limit for r in rows(session(decoded(1, 100, 20.0), device="cuda:0"))] == [None]


def test_reading_and_generating() -> None:
    prefill = Measured(
        Case(kind="prefill", prompt_tokens=50),
        [Sample(tokens=50, seconds=0.5, steps=1, first_token_seconds=0.5)],
    )
    generate = Measured(
        Case(kind="generate", prompt_tokens=1, output_tokens=20),
        [Sample(tokens=20, seconds=2.0, steps=20, first_token_seconds=0.2)],
    )
    first, second = rows(session(prefill, generate, Measured(prefill.case)))
    assert (first.tokens_per_second.median, first.step_seconds, first.limit) == (100.0, None, None)
    assert first.first_token_seconds == Range(median=0.5, low=0.5, high=0.5)
    assert second.tokens_per_second.median == 10.0
    assert second.limit is not None
    assert second.limit.cache_bytes == 10 * 11


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_picture(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = rows(
        session(decoded(1, 128, 20.0, 22.0), decoded(4, 128, 60.0), decoded(1, 256, 15.0)),
        session(decoded(1, 128, 11.0), threads=1),
    )
    draw_speed(found, tmp_path / name, "a title")
    assert (tmp_path / name).stat().st_size > 10_000
    if name.endswith("svg"):
        text = (tmp_path / name).read_text()
        for label in ("a title", "batch 4, threads 2", "context 256", "limit, batch 1"):
            assert f"<!-- {label}" in text or label in text


def test_nothing_to_draw(tmp_path: Path) -> None:
    prefill = Measured(
        Case(kind="prefill", prompt_tokens=5),
        [Sample(tokens=5, seconds=1.0, steps=1, first_token_seconds=1.0)],
    )
    with pytest.raises(InputError, match="no decoding was measured"):
        draw_speed(rows(session(prefill)), tmp_path / "a.png", "")
