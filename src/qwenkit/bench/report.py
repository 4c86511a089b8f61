"""From the records of a load test to the numbers people ask for; knows nothing of how they are shown."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qwenkit.bench.load import LoadResult, Record

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a duration spreads, in seconds; percentiles between two values are interpolated."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of some values; None when there are none."""
        if not values:
            return None
        import numpy as np

        found = np.percentile(values, PERCENTILES)
        p50, p90, p95, p99 = (float(v) for v in found)
        return cls(mean=float(np.mean(values)), p50=p50, p90=p90, p95=p95, p99=p99, max=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load test found."""

    ok: int
    failed: Mapping[str, int]
    """Requests without a whole answer, by kind of error."""
    examples: Mapping[str, str]
    """What the server said with one error of each kind, where it said something."""
    cut: int
    """Requests that this side ended; only the tokens they had got count."""
    seconds: float
    most_running: int
    requests_per_second: float
    output_tokens: int
    output_tokens_per_second: float
    prompt_tokens: int | None
    """Of all answered requests; None: the server does not say."""
    total_tokens_per_second: float | None
    cached_tokens: int
    counts_are_reported: bool
    """Whether output tokens are as the server counts; else they are the pieces that came."""
    first_token: Spread | None
    """From when a request was due to the first piece of its answer."""
    inter_token: Spread | None
    """Between one piece and the next, over all answers."""
    end_to_end: Spread | None
    texts_digest: str
    """SHA-256 over all texts in order: the same in another run with the same seed and greedy picking."""
    num_verified: int = 0
    mismatches: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def make_report(result: LoadResult) -> LoadReport:
    """The numbers of a load test; tokens of requests that failed do not count, those of requests that were cut do."""
    ok = [r for r in result.records if r.is_ok]
    failed = [r.error for r in result.records if r.error is not None]
    seconds = max(result.end - result.start, 1e-9)
    output = sum(r.output_tokens for r in result.records if r.error is None)
    prompts = [r.prompt_tokens for r in ok if r.prompt_tokens is not None]
    prompt_tokens = sum(prompts) if ok and len(prompts) == len(ok) else None
    gaps: list[float] = []
    for record in ok:
        gaps += inter_token_gaps(record)
    return LoadReport(
        ok=len(ok),
        failed=dict(Counter(error.kind for error in failed).most_common()),
        examples={error.kind: error.detail for error in reversed(failed) if error.detail},
        cut=sum(r.is_cut for r in result.records),
        seconds=seconds,
        most_running=result.most_running,
        requests_per_second=len(ok) / seconds,
        output_tokens=output,
        output_tokens_per_second=output / seconds,
        prompt_tokens=prompt_tokens,
        total_tokens_per_second=None if prompt_tokens is None else (prompt_tokens + output) / seconds,
        cached_tokens=sum(r.cached_tokens for r in ok),
        counts_are_reported=bool(ok) and all(r.completion_tokens is not None for r in ok),
        first_token=Spread.of([r.times[0] - r.start for r in ok if r.times]),
        inter_token=Spread.of(gaps),
        end_to_end=Spread.of([r.end - r.start for r in ok]),
        texts_digest=_digest(ok),
        num_verified=result.num_verified,
        mismatches=[asdict(m) for m in result.mismatches],
    )


def inter_token_gaps(record: Record) -> list[float]:
    """Seconds between the pieces of one answer."""
    return [b - a for a, b in zip(record.times, record.times[1:], strict=False)]


def requests_table(result: LoadResult) -> list[dict[str, Any]]:
    """One row a request, for JSON; times in seconds from the start of the test."""
    rows = []
    for record in sorted(result.records, key=lambda r: r.index):
        rows.append(
            {
                "index": record.index,
                "start": round(record.start - result.start, 6),
                "first_token": round(record.times[0] - record.start, 6) if record.times else None,
                "seconds": round(record.end - record.start, 6),
                "prompt_tokens": record.prompt_tokens,
                "output_tokens": record.output_tokens,
                "error": None if record.error is None else str(record.error),
                "is_cut": record.is_cut,
            }
        )
    return rows


def _digest(records: Sequence[Record]) -> str:
    found = hashlib.sha256()
    for record in sorted(records, key=lambda r: r.index):
        found.update(f"{record.index}\0{record.text}\0".encode("utf-8", errors="replace"))
    return found.hexdigest()
