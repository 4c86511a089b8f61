"""From rounds to the numbers people ask for: medians with their spread, and how near decoding is to the memory's limit.

Knows nothing of how they are shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwenkit.bench.sessions import SessionResult, SpeedResult
from qwenkit.bench.speed import Case, Kind, Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Of at least one value."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How near generating for one sequence is to reading memory and nothing else."""

    weight_bytes: int
    """Read for a token."""
    cache_bytes: float
    """Read for a token, on average over those generated."""
    bytes_per_second: float
    """Read while generating, at the median speed."""
    share: float | None
    """Of the measured bandwidth; None: it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """One case on one number of threads."""

    kind: Kind
    threads: int
    batch: int
    prompt_tokens: int
    output_tokens: int
    rounds: int
    tokens_per_second: Range
    """Of all sequences together."""
    first_token_seconds: Range | None
    """None for decode, whose prompts were read before."""
    step_seconds: Range | None
    """A token for every sequence; None for prefill."""
    limit: Limit | None
    """For one sequence on a CPU."""
    peak_bytes: int | None
    """Of the process, over all cases of the same loading."""
    peak_gpu_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def speed_rows(result: SpeedResult, unread_weight_bytes: int) -> list[SpeedRow]:
    """A row for every case with at least one whole round.

    Args:
        result: what was measured.
        unread_weight_bytes: what of the weights held is not read for a token.
    """
    return [row for session in result.sessions for row in _session_rows(session, unread_weight_bytes)]


def _session_rows(session: SessionResult, unread_weight_bytes: int) -> Iterator[SpeedRow]:
    for measured in session.measured:
        if measured.samples:
            yield _row(session, measured, session.weights_bytes - unread_weight_bytes)


def _row(session: SessionResult, measured: Measured, weight_bytes: int) -> SpeedRow:
    case, samples = measured.case, measured.samples
    speed = Range.of([s.tokens_per_second for s in samples])
    first = None if case.kind == "decode" else Range.of([s.first_token_seconds for s in samples])
    step = None if case.kind == "prefill" else Range.of([s.seconds / s.steps for s in samples])
    return SpeedRow(
        kind=case.kind,
        threads=session.threads,
        batch=case.batch,
        prompt_tokens=case.prompt_tokens,
        output_tokens=case.output_tokens,
        rounds=len(samples),
        tokens_per_second=speed,
        first_token_seconds=first,
        step_seconds=step,
        limit=_limit(session, case, speed.median, weight_bytes),
        peak_bytes=session.peak_bytes,
        peak_gpu_bytes=session.peak_gpu_bytes,
    )


def _limit(session: SessionResult, case: Case, speed: float, weight_bytes: int) -> Limit | None:
    if case.kind == "prefill" or case.batch > 1 or session.device != "cpu":
        return None
    cache_bytes = session.cache_bytes_per_token * (case.prompt_tokens + case.output_tokens / 2)
    achieved = speed * (weight_bytes + cache_bytes)
    found = session.bandwidth
    return Limit(
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        bytes_per_second=achieved,
        share=None if found is None else achieved / found.bytes_per_second,
    )


def session_facts(session: SessionResult) -> dict[str, Any]:
    """What is true of all cases of one loading, for JSON."""
    return {
        "threads": session.threads,
        "load_seconds": session.load_seconds,
        "weights_bytes": session.weights_bytes,
        "cache_bytes_per_token": session.cache_bytes_per_token,
        "kernels": session.kernels,
        "dtype": session.dtype,
        "quantisation": session.quantisation,
        "head": session.head,
        "cache_type": session.cache_type,
        "device": session.device,
        "peak_bytes": session.peak_bytes,
        "peak_gpu_bytes": session.peak_gpu_bytes,
        "other_cores": session.other_cores,
        "bandwidth": None if session.bandwidth is None else asdict(session.bandwidth),
    }
