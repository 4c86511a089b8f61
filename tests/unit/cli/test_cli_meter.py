"""Counting tokens and times."""

from __future__ import annotations

from qwenkit.cli.meter import Meter
from qwenkit.cli.texts import EN
from qwenkit.core.types import Delta, Usage


def test_rates_leave_the_prompt_out() -> None:
    times = iter([0.0, 2.0, 2.5, 3.0, 3.0])
    meter = Meter(lambda: next(times))
    for _ in range(3):
        meter.see(Delta(index=0, text="a", token_ids=(1,)))
    meter.see(Delta(index=0, finish_reason="stop", usage=Usage(prompt_tokens=7, completion_tokens=3)))
    assert meter.first_token_seconds == 2.0
    assert meter.tokens_per_second == 2.0
    assert meter.finish_reason == "stop"
    assert meter.line(EN.stats) == "7 prompt tokens, 3 generated, 2.0 tokens/s, first after 2.00 s"
    assert meter.to_dict()["completion_tokens"] == 3


def test_nothing_seen() -> None:
    meter = Meter(lambda: 1.0)
    assert (meter.tokens_per_second, meter.first_token_seconds, meter.generated_tokens) == (0.0, 0.0, 0)


def test_a_reply_cut_off_counts_what_was_seen() -> None:
    meter = Meter()
    meter.see(Delta(index=0, text="a", token_ids=(1, 2)))
    assert meter.generated_tokens == 2
