"""Rounds of a measurement, on a model whose every step takes a known time and on a tiny real one."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from qwenkit import LLM
from qwenkit.bench import speed
from qwenkit.bench.speed import (
    Case,
    Measured,
    Progress,
    SpeedOptions,
    SpeedRun,
    plan_cases,
    random_prompts,
    run_round,
)
from qwenkit.core.errors import InputError
from qwenkit.core.types import Delta, SamplingParams, Usage
from tests.support.backends import tiny_backend
from tests.support.tiny_models import byte_level


class Clock:
    """Time that passes only when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(speed, "time", made)
    return made


class TimedModel:
    """Reads a prompt in a second per 100 tokens, then a step of all sequences takes half a second.

    Args:
        clock: its time.
        late: steps by which the last sequence starts after the others.
        cached: tokens of each prompt that it claims to know.
    """

    def __init__(self, clock: Clock, *, late: int = 0, cached: int = 0) -> None:
        self.clock, self.late, self.cached = clock, late, cached
        self.asked: list[tuple[list[list[int]], SamplingParams]] = []
        self.info = types.SimpleNamespace(vocab_size=50)
        self.backend = types.SimpleNamespace(tokenizer=None)

    def stream_generate(self, prompts: Sequence[list[int]], params: SamplingParams) -> Iterator[Delta]:
        self.asked.append(([list(p) for p in prompts], params))
        count = params.max_tokens or 0
        self.clock.now += len(prompts[0]) / 100
        for step in range(count + self.late):
            self.clock.now += 0.5 if step else 0.0
            for index in range(len(prompts)):
                own = step - (self.late if index == len(prompts) - 1 else 0)
                if 0 <= own < count:
                    self.clock.now += 0.001  # one after the other
                    yield self._delta(index, len(prompts[index]), own + 1, count)

    def _delta(self, index: int, prompt: int, done: int, count: int) -> Delta:
        if done < count:
            return Delta(index=index, token_ids=(7,))
        usage = Usage(prompt_tokens=prompt, completion_tokens=count, cached_tokens=self.cached)
        return Delta(index=index, token_ids=(7,), finish_reason="length", usage=usage)


def sample(model: TimedModel, case: Case) -> speed.Sample:
    llm: Any = model
    prompts = random_prompts(llm, case, seed=0, number=0)
    return run_round(llm, case, prompts, case.output_tokens, lambda done: None)


def test_prefill_ends_with_the_first_token(clock: Clock) -> None:
    found = sample(TimedModel(clock), Case(kind="prefill", prompt_tokens=200))
    assert found.tokens == 200
    assert found.seconds == found.first_token_seconds == pytest.approx(2.001)
    assert found.tokens_per_second == pytest.approx(99.95, abs=0.01)


def test_decode_counts_from_the_first_tokens_on(clock: Clock) -> None:
    found = sample(TimedModel(clock), Case(kind="decode", batch=3, prompt_tokens=200, output_tokens=11))
    assert (found.tokens, found.steps) == (30, 10)
    assert found.seconds == pytest.approx(10 * 0.503)


def test_only_steps_in_which_all_take_part_count(clock: Clock) -> None:
    model = TimedModel(clock, late=4)
    found = sample(model, Case(kind="decode", batch=3, prompt_tokens=50, output_tokens=11))
    assert found.steps == 6  # the first two are through when the last one still has four to go
    assert found.tokens == 18
    assert found.seconds == pytest.approx(6 * 0.503, abs=0.01)


def test_sequences_that_never_ran_together(clock: Clock) -> None:
    with pytest.raises(InputError, match="the 2 sequences did not run at the same time"):
        sample(TimedModel(clock, late=5), Case(kind="decode", batch=2, prompt_tokens=5, output_tokens=5))


def test_generate_counts_reading_as_well(clock: Clock) -> None:
    found = sample(TimedModel(clock), Case(kind="generate", prompt_tokens=100, output_tokens=5))
    assert (found.tokens, found.steps) == (5, 5)
    assert found.seconds == pytest.approx(1 + 4 * 0.5 + 0.005)
    assert found.first_token_seconds == pytest.approx(1.001)


def test_a_prompt_that_was_known_is_no_measurement(clock: Clock) -> None:
    with pytest.raises(InputError, match="16 tokens of a new prompt were in the prefix cache"):
        sample(TimedModel(clock, cached=16), Case(kind="prefill", prompt_tokens=200))
    sample(TimedModel(clock, cached=16), Case(kind="decode", prompt_tokens=200, output_tokens=3))


def run(model: Any, options: SpeedOptions, cases: Sequence[Case]) -> tuple[list[Measured], list[Progress]]:
    shown: list[Progress] = []
    measured: list[Measured] = []
    rounds = sum(1 for _ in SpeedRun(options, len(cases), shown.append).run(model, cases, measured))
    assert rounds == sum(len(m.samples) for m in measured)
    return measured, shown


def test_rounds_of_a_run(clock: Clock) -> None:
    model = TimedModel(clock)
    cases = plan_cases([40, 40], [2], [60], 50)
    assert [case.label for case in cases] == ["prefill 40", "decode 2 x 60"]
    measured, shown = run(model, SpeedOptions(repeats=2, warmup=1, seed=3), cases)
    assert [len(m.samples) for m in measured] == [2, 2]
    prefill, decode = model.asked[:3], model.asked[3:]
    assert [params.max_tokens for _, params in prefill] == [1, 1, 1]
    assert len({tuple(prompts[0]) for prompts, _ in prefill}) == 3  # never the same prompt twice
    # Prompts are read one by one, then a short warm-up and two rounds ask all of them.
    assert [(len(prompts), params.max_tokens) for prompts, params in decode] == [
        (1, 1),
        (1, 1),
        (2, 32),
        (2, 50),
        (2, 50),
    ]
    assert decode[2][0] == decode[3][0] == [decode[0][0][0], decode[1][0][0]]
    assert decode[0][0] != decode[1][0]
    assert all(p.temperature == 0.0 and p.ignore_eos and p.repetition_penalty == 1.0 for _, p in model.asked)
    assert all(0 <= token < 50 for prompts, _ in model.asked for prompt in prompts for token in prompt)
    assert next((s.stage, s.number, s.total) for s in shown) == ("warm-up", 1, 2)
    assert {(s.stage, s.rounds) for s in shown} == {("read", 1), ("warm-up", 1), ("measure", 2)}
    assert shown[-1].done <= shown[-1].expected == 100


def test_time_left(clock: Clock) -> None:
    case = Case(kind="generate", prompt_tokens=1, output_tokens=100)
    _, shown = run(TimedModel(clock), SpeedOptions(repeats=2, warmup=1), [case])
    assert all(s.seconds_left is None for s in shown if s.stage == "warm-up")
    first = next(s for s in shown if s.stage == "measure")
    assert first.seconds_left == pytest.approx(200 * 0.5, rel=0.05)
    assert shown[-1].seconds_left == pytest.approx(0.5, abs=1.0)


def test_prompts_depend_on_the_seed_alone(clock: Clock) -> None:
    llm: Any = TimedModel(clock)
    case = Case(kind="prefill", prompt_tokens=20)
    assert random_prompts(llm, case, seed=1, number=0) == random_prompts(llm, case, seed=1, number=0)
    assert random_prompts(llm, case, seed=1, number=0) != random_prompts(llm, case, seed=2, number=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens=0 is not possible; use a whole number from 1 up"),
        ({"batch": 0}, "batch=0"),
        ({"output_tokens": 1}, "output_tokens=1 is not possible; use a whole number from 2 up"),
    ],
)
def test_impossible_cases(changes: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Case(**{"kind": "decode", "prompt_tokens": 8, "output_tokens": 8} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"repeats": 0}, {"warmup": -1}])
def test_impossible_rounds(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="is not possible"):
        SpeedOptions(**changes)


def test_a_real_engine_runs_all_sequences_together() -> None:
    with LLM.from_backend(tiny_backend(byte_level())) as llm:
        cases = [
            Case(kind="prefill", prompt_tokens=70),
            Case(kind="decode", batch=5, prompt_tokens=70, output_tokens=20),
            Case(kind="generate", prompt_tokens=1, output_tokens=20),
        ]
        measured, _ = run(llm, SpeedOptions(repeats=2), cases)
        stats = llm.backend.stats()
    assert [len(m.samples) for m in measured] == [2, 2, 2]
    for found in measured[1].samples:
        assert found.steps >= 15
        assert found.tokens == 5 * found.steps
    assert all(s.seconds > 0 for m in measured for s in m.samples)
    assert stats.cached_tokens >= 3 * 5 * 64  # rounds of decoding found the prompts read before
    assert stats.running == stats.waiting == 0
