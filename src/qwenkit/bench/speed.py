"""Measures a model in this process: reading prompts, and generating for one and for many, in the real engine.

Times are of tokens as they come out of it, greedy and past every end token. Knows nothing of how numbers are shown.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from qwenkit.core.errors import InputError
from qwenkit.core.types import SamplingParams

if TYPE_CHECKING:
    from qwenkit.llm import LLM

Kind: TypeAlias = Literal["prefill", "decode", "generate"]
Stage: TypeAlias = Literal["read", "warm-up", "measure"]
_TICK_SECONDS = 0.25
_WARMUP_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure.

    prefill reads a prompt up to its first token; decode generates behind prompts that were read before; generate does
    both and counts it all, as the released Qwen figures do.
    """

    kind: Kind
    batch: int = 1
    prompt_tokens: int
    output_tokens: int = 1

    def __post_init__(self) -> None:
        least = 2 if self.kind == "decode" else 1  # the first token comes of reading
        for name, value, lowest in (
            ("batch", self.batch, 1),
            ("prompt_tokens", self.prompt_tokens, 1),
            ("output_tokens", self.output_tokens, least),
        ):
            if value < lowest:
                raise InputError(f"{name}={value} is not possible; use a whole number from {lowest} up")

    @property
    def length(self) -> int:
        """Tokens of each sequence at its end."""
        return self.prompt_tokens + self.output_tokens

    @property
    def label(self) -> str:
        """For people."""
        if self.kind == "prefill":
            return f"prefill {self.prompt_tokens}"
        if self.kind == "generate":
            return f"generate {self.output_tokens}"
        return f"decode {self.batch} x {self.prompt_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedOptions:
    """How often to measure, and on what."""

    repeats: int = 3
    warmup: int = 1
    """Rounds of each case before those that count."""
    seed: int = 0
    """Of the prompts, which are random tokens."""

    def __post_init__(self) -> None:
        for name, value, least in (("repeats", self.repeats, 1), ("warmup", self.warmup, 0)):
            if value < least:
                raise InputError(f"{name}={value} is not possible; use a whole number from {least} up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of a case."""

    tokens: int
    seconds: float
    """In which these tokens were read or generated."""
    steps: int
    """Tokens of the slowest sequence within them; of a prompt 1."""
    first_token_seconds: float
    """From asking to the first token of every sequence."""

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.tokens / self.seconds


@dataclass(slots=True)
class Measured:
    """A case and its rounds so far."""

    case: Case
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a measurement is."""

    number: int
    """Of the case, from 1."""
    total: int
    case: Case
    stage: Stage
    round: int
    rounds: int
    done: int
    """Tokens of this round so far; prompts while the stage is read."""
    expected: int
    seconds_left: float | None
    """Of this case; None: no round of it is over yet."""


OnProgress: TypeAlias = Callable[[Progress], None]


def plan_cases(
    prefill: Sequence[int], batches: Sequence[int], contexts: Sequence[int], output_tokens: int
) -> tuple[Case, ...]:
    """Prompts of some lengths, then every batch at every context."""
    cases = [Case(kind="prefill", prompt_tokens=n) for n in dict.fromkeys(prefill)]
    cases += [
        Case(kind="decode", batch=batch, prompt_tokens=context, output_tokens=output_tokens)
        for context in dict.fromkeys(contexts)
        for batch in dict.fromkeys(batches)
    ]
    return tuple(cases)


class SpeedRun:
    """Measures cases; what is there can be looked at whenever it is interrupted.

    Args:
        options: how often.
        total: cases in all, for the progress.
        show: called now and then.
    """

    def __init__(self, options: SpeedOptions, total: int, show: OnProgress) -> None:
        self._options, self._total, self._show = options, total, show
        self._number = 0

    def run(self, llm: LLM, cases: Sequence[Case], measured: list[Measured]) -> Iterator[None]:
        """Measures one case after the other, adding to ``measured``; yields after each round."""
        for case in cases:
            self._number += 1
            own = Measured(case)
            measured.append(own)
            for sample in self._rounds(llm, case):
                own.samples.append(sample)
                yield

    def _rounds(self, llm: LLM, case: Case) -> Iterator[Sample]:
        if case.kind == "decode":
            self._read_prompts(llm, case)
        options, per_token = self._options, None
        for number in range(options.warmup + options.repeats):
            is_warmup = number < options.warmup
            count = min(case.output_tokens, _WARMUP_TOKENS) if is_warmup else case.output_tokens
            prompts = random_prompts(llm, case, seed=options.seed, number=number)
            tick = self._tick(
                case,
                stage="warm-up" if is_warmup else "measure",
                number=number if is_warmup else number - options.warmup,
                expected=case.batch * count,
                seconds_per_token=per_token,
            )
            start = time.perf_counter()
            sample = run_round(llm, case, prompts, count, tick)
            per_token = (time.perf_counter() - start) / (case.batch * count)
            if not is_warmup:
                yield sample

    def _read_prompts(self, llm: LLM, case: Case) -> None:
        """Lets the engine keep the prompts of a case, so that its rounds need not read them."""
        prompts = random_prompts(llm, case, seed=self._options.seed, number=0)
        tick = self._tick(case, stage="read", number=0, expected=len(prompts), seconds_per_token=None)
        for done, prompt in enumerate(prompts):
            tick(done)
            for _ in llm.stream_generate([prompt], _params(1)):
                pass

    def _tick(
        self, case: Case, *, stage: Stage, number: int, expected: int, seconds_per_token: float | None
    ) -> Callable[[int], None]:
        """What is to be called with the tokens of a round so far; it shows them now and then."""
        rounds = {"read": 1, "warm-up": self._options.warmup, "measure": self._options.repeats}[stage]
        to_come = self._options.repeats if stage == "warm-up" else rounds - number - 1
        shown = float("-inf")

        def tick(done: int) -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown < _TICK_SECONDS:
                return
            shown = now
            tokens_left = expected - done + to_come * case.batch * case.output_tokens
            self._show(
                Progress(
                    number=self._number,
                    total=self._total,
                    case=case,
                    stage=stage,
                    round=number + 1,
                    rounds=rounds,
                    done=done,
                    expected=expected,
                    seconds_left=None if seconds_per_token is None else seconds_per_token * tokens_left,
                )
            )

        return tick


def random_prompts(llm: LLM, case: Case, *, seed: int, number: int) -> list[list[int]]:
    """The prompts of a round: other ones each time where reading them is measured, else always the same."""
    number = 0 if case.kind == "decode" else number
    source = random.Random(f"{seed}/{case.label}/{number}")
    vocabulary = llm.info.vocab_size
    if llm.backend.tokenizer is not None:  # ids beyond are padding
        vocabulary = min(vocabulary, llm.backend.tokenizer.vocab_size)
    return [[source.randrange(vocabulary) for _ in range(case.prompt_tokens)] for _ in range(case.batch)]


def run_round(
    llm: LLM, case: Case, prompts: Sequence[Sequence[int]], output_tokens: int, tick: Callable[[int], None]
) -> Sample:
    """One round of a case.

    Args:
        llm: the model.
        case: what is measured.
        prompts: one per sequence.
        output_tokens: of each sequence.
        tick: called with the number of tokens so far, with each.

    Raises:
        InputError: what was to be read was known already, or not all sequences ran at the same time.
    """
    times: list[list[float]] = [[] for _ in prompts]
    cached = done = 0
    tick(0)
    start = time.perf_counter()
    for delta in llm.stream_generate(prompts, _params(output_tokens)):
        times[delta.index] += [time.perf_counter()] * len(delta.token_ids)
        done += len(delta.token_ids)
        cached += delta.usage.cached_tokens if delta.usage is not None else 0
        tick(done)
    first = max(own[0] for own in times) - start
    if case.kind == "decode":
        return _decoded(times, start, first)
    if cached:
        raise InputError(f"{cached} tokens of a new prompt were in the prefix cache; use another seed")
    if case.kind == "prefill":
        return Sample(tokens=case.prompt_tokens, seconds=first, steps=1, first_token_seconds=first)
    seconds = times[0][-1] - start
    return Sample(tokens=output_tokens, seconds=seconds, steps=output_tokens, first_token_seconds=first)


def _decoded(times: Sequence[Sequence[float]], start: float, first: float) -> Sample:
    """Counts from where every sequence has its first token to where the first one is through: all run between."""
    begin = start + first
    after = [[at for at in own if at > begin] for own in times]
    steps = min(map(len, after))
    if not steps:
        raise InputError(
            f"the {len(times)} sequences did not run at the same time; let them generate more tokens"
        )
    end = max(own[steps - 1] for own in after)
    tokens = sum(at <= end for own in after for at in own)
    return Sample(tokens=tokens, seconds=end - begin, steps=steps, first_token_seconds=first)


def _params(output_tokens: int) -> SamplingParams:
    # All of it is said, because a model's own defaults may ask for sampling or penalties.
    return SamplingParams(
        max_tokens=output_tokens,
        ignore_eos=True,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
    )
