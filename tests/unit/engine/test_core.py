"""Scheduler, pages and steps together, with a runner that checks what lies in the pages."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.core.errors import NumericsError
from qwenkit.core.sampling import SamplingParams
from qwenkit.core.types import Delta
from qwenkit.engine.admission import Admission, EngineModel
from qwenkit.engine.blocks import PAGE_SIZE, BlockManager, root_digest
from qwenkit.engine.core import EngineCore
from qwenkit.engine.scheduler import Scheduler
from qwenkit.engine.sequence import Sequence as Reading
from tests.unit.engine.fake_runner import VOCAB, FakeRunner, next_token, repeating_token


class World:
    """An engine core over the fake runner, and everything it delivered."""

    def __init__(
        self,
        num_pages: int = 64,
        max_running: int = 4,
        budget: int = 64,
        caching: bool = True,
        *,
        draft: int = 0,
        says: Callable[[Sequence[int]], int] = next_token,
    ) -> None:
        self.runner, self.blocks = FakeRunner(says), BlockManager(num_pages, caching=caching)
        self.budget = max(budget, max_running)
        scheduler = Scheduler(self.blocks, max_running=max_running, max_step_tokens=budget, max_draft=draft)
        model = EngineModel(
            tokenizer=None, vocab_size=VOCAB, context_length=4096, end_ids=(), ntk_length=None, explain=str
        )
        self.admission = Admission(model, num_pages * PAGE_SIZE)
        self.core = EngineCore(
            self.runner,  # type: ignore[arg-type]
            self.blocks,
            scheduler,
            deliver=lambda sequence, delta: self.got.setdefault(sequence.number, []).append(delta),
            explain=lambda tokens: "numbers are gone",
            clock=lambda: 0.0,  # so that what is guessed does not depend on the time of day
        )
        self.got: dict[int, list[Delta | BaseException]] = {}
        self.sequences: list[Reading] = []

    def add(self, prompt: Sequence[int], **params: Any) -> list[Reading]:
        settings_ = SamplingParams(temperature=0, **params)
        limit = self.admission.limit(prompt, settings_)
        added: list[Reading] = []
        for reply in self.admission.replies(prompt, settings_, None, 0):
            leader = added[0] if added else None
            number = len(self.sequences)
            sequence = Reading(
                number, list(prompt), reply.params, limit=limit, root=root_digest(1, None), leader=leader
            )
            sequence.state = reply
            added.append(sequence)
            self.sequences.append(sequence)
        for sequence in added:
            self.core.scheduler.add(sequence)
        return added

    def run(self, most: int = 10_000) -> None:
        for _ in range(most):
            if self.core.scheduler.is_idle:
                return
            self.core.step()
            self.blocks.check()
        raise AssertionError("the engine never came to an end")

    def tokens(self, number: int) -> list[int]:
        deltas = self.got[number]
        assert all(isinstance(d, Delta) for d in deltas), deltas
        return [i for d in deltas if isinstance(d, Delta) for i in d.token_ids]


def expected(
    prompt: Sequence[int], count: int, says: Callable[[Sequence[int]], int] = next_token
) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(says(tokens))
    return tokens[len(prompt) :]


def test_many_prompts_get_what_each_gets_alone() -> None:
    world = World()
    prompts = [[i] * (10 * i + 1) for i in range(1, 12)]
    for prompt in prompts:
        world.add(prompt, max_tokens=20)
    world.run()
    assert [world.tokens(i) for i in range(len(prompts))] == [expected(p, 20) for p in prompts]
    assert world.blocks.num_used == 0


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    world = World(budget=32)
    world.add([1], max_tokens=30)
    world.core.step()
    world.add([2] * 300, max_tokens=2)
    world.run()
    reading = [
        step for step in world.runner.steps if any(number == 1 and count > 1 for number, count in step)
    ]
    assert len(reading) == 10
    assert all((0, 1) in step for step in reading), "the first reply had to wait for the prompt of the second"


def test_a_prompt_read_before_is_found() -> None:
    world = World()
    prompt = list(range(80)) * 2
    world.add(prompt, max_tokens=3)
    world.run()
    first = len(world.runner.steps)
    (again,) = world.add([*prompt, 5], max_tokens=3)
    world.run()
    assert again.cached == 160 // PAGE_SIZE * PAGE_SIZE
    assert world.runner.steps[first] == [(1, 161 - again.cached)]
    assert world.tokens(1) == expected([*prompt, 5], 3)
    delta = world.got[1][-1]
    assert isinstance(delta, Delta)
    assert delta.usage is not None
    assert (delta.usage.prompt_tokens, delta.usage.cached_tokens) == (161, again.cached)


def test_the_whole_prompt_is_never_taken_from_the_cache() -> None:
    world = World()
    prompt = list(range(2 * PAGE_SIZE))
    for _ in range(2):
        world.add(prompt, max_tokens=2)
        world.run()
    assert world.sequences[1].cached == PAGE_SIZE
    assert world.tokens(1) == expected(prompt, 2)


@pytest.mark.parametrize("caching", [True, False])
def test_replies_to_one_prompt_share_its_pages(caching: bool) -> None:
    world = World(caching=caching)
    prompt = list(range(90)) + [3] * 30  # 3 full pages and a bit
    world.add(prompt, max_tokens=40, n=3)
    while not all(s.has_read_prompt for s in world.sequences):
        world.core.step()
    pages = [s.pages[:3] for s in world.sequences]
    assert pages[0] == pages[1] == pages[2]
    assert len({s.pages[3] for s in world.sequences}) == 3
    world.run()
    assert all(world.tokens(i) == expected(prompt, 40) for i in range(3))


@pytest.mark.parametrize("caching", [True, False])
def test_preemption_loses_nothing(caching: bool) -> None:
    world = World(num_pages=8, max_running=4, caching=caching)
    prompts = [[i, 7, i] * 10 for i in range(1, 5)]
    for prompt in prompts:
        world.add(prompt, max_tokens=90)
    world.run()
    assert world.core.scheduler.num_preemptions > 0
    assert [world.tokens(i) for i in range(4)] == [expected(p, 90) for p in prompts]
    assert world.blocks.num_used == 0


def test_who_came_first_is_answered_first() -> None:
    world = World(num_pages=6, max_running=2)
    for i in range(6):
        world.add([i + 1] * 40, max_tokens=10)
    first_seen: list[int] = []
    while not world.core.scheduler.is_idle:
        world.core.step()
        first_seen += [number for number in world.got if number not in first_seen]
    assert first_seen == sorted(first_seen)


def test_an_error_ends_one_request_alone() -> None:
    world = World()
    world.runner.fail_on = {13}
    world.runner.nan_on = {14}
    for first in (1, 13, 14, 2):
        world.add([first, 5], max_tokens=5)
    world.run()
    assert isinstance(world.got[1][-1], RuntimeError)
    assert isinstance(world.got[2][-1], NumericsError)
    assert world.tokens(0) == expected([1, 5], 5)
    assert world.tokens(3) == expected([2, 5], 5)
    assert world.blocks.num_used == 0


def test_an_aborted_sequence_frees_its_pages_at_once() -> None:
    world = World()
    (sequence,) = world.add([1] * 100, max_tokens=50)
    (waiting,) = world.add([2] * 100, max_tokens=50)
    world.core.step()
    world.core.abort([sequence, waiting])
    assert world.blocks.num_used == 0
    assert world.core.scheduler.is_idle
    world.core.abort([sequence])  # harmless


def test_a_prompt_that_is_only_scored_brings_no_token() -> None:
    world = World()
    world.add([1, 2, 3], max_tokens=0)
    world.run()
    (delta,) = world.got[0]
    assert isinstance(delta, Delta)
    assert (delta.token_ids, delta.finish_reason) == ((), "length")
    assert delta.usage is not None
    assert (delta.usage.prompt_tokens, delta.usage.completion_tokens) == (3, 0)


def test_what_is_only_scored_leaves_nothing_in_the_cache() -> None:
    world = World()
    world.add(list(range(90)), max_tokens=0)
    world.run()
    assert world.blocks.num_cached == 0
    world.add(list(range(90)), max_tokens=1)
    world.run()
    assert world.blocks.num_cached == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    num_pages=st.integers(5, 24),
    max_running=st.integers(1, 6),
    budget=st.integers(1, 80),
    caching=st.booleans(),
    draft=st.sampled_from([0, 0, 1, 7, 40]),
    says=st.sampled_from([next_token, repeating_token]),
)
def test_random_days(
    seed: int,
    num_pages: int,
    max_running: int,
    budget: int,
    caching: bool,
    draft: int,
    says: Callable[[Sequence[int]], int],
) -> None:
    """Requests of all sizes come and go, some are aborted; all others get exactly what they get alone."""
    chance = random.Random(seed)
    world = World(num_pages, max_running, budget, caching, draft=draft, says=says)
    beginnings = [[chance.randrange(VOCAB) for _ in range(chance.randrange(1, 70))] for _ in range(3)]
    aborted: set[int] = set()
    for _ in range(chance.randrange(5, 40)):
        action = chance.random()
        if action < 0.3:
            prompt = chance.choice(beginnings) + [
                chance.randrange(VOCAB) for _ in range(chance.randrange(20))
            ]
            world.add(prompt, max_tokens=chance.randrange(0, 60), n=chance.choice([1, 1, 1, 2, 4]))
        elif action < 0.36 and world.sequences:
            victim = chance.choice(world.sequences)
            if victim.number not in world.got or not _is_over(world, victim):
                aborted.add(victim.number)
            world.core.abort([victim])
        elif not world.core.scheduler.is_idle:
            world.core.step()
        world.blocks.check()
        assert len(world.core.scheduler.running) <= max_running
        assert sum(len(set(s.pages)) for s in world.sequences) >= world.blocks.num_used
    world.run()
    assert world.blocks.num_used == 0
    for sequence in world.sequences:
        if sequence.number in aborted:
            continue
        assert _is_over(world, sequence)
        count = len(world.tokens(sequence.number))
        assert count == sequence.limit
        assert world.tokens(sequence.number) == expected(sequence.tokens[: sequence.num_prompt], count, says)
    assert all(sum(count for _, count in step) <= world.budget for step in world.runner.steps)


def _is_over(world: World, sequence: Reading) -> bool:
    last = world.got.get(sequence.number, [None])[-1]
    return isinstance(last, BaseException) or (isinstance(last, Delta) and last.finish_reason is not None)


@pytest.mark.parametrize("fails_in_runner", [False, True])
def test_a_failing_reply_takes_those_of_its_request_along_and_nobody_else(fails_in_runner: bool) -> None:
    world = World(budget=512)
    world.add([1] * 5, max_tokens=20)
    family = world.add([2] * 2 * PAGE_SIZE, max_tokens=9, n=2)
    note = world.core._deliver

    def deliver(sequence: Reading, delta: Delta | BaseException) -> None:
        note(sequence, delta)
        if isinstance(delta, BaseException):  # as the engine does
            world.core.abort(family)
        elif sequence is family[0] and sequence.num_output == 1:
            # What is left of the second reply's prompt, a whole page, comes in the step that fails.
            if fails_in_runner:
                world.runner.fail_on.add(2)
            else:
                family[0].state = None

    world.core._deliver = deliver
    world.run()
    assert world.tokens(0) == expected([1] * 5, 20)
    assert isinstance(world.got[1][0], Delta)
    assert isinstance(world.got[1][-1], Exception)
    assert 2 not in world.got
    assert world.blocks.num_used == 0


def counting(tokens: Sequence[int]) -> int:
    """A model whose replies are easy to guess."""
    return (tokens[-1] + 1) % 10


class TestGuesses:
    """Tokens that were guessed, computed behind the last one, and kept as long as they are what is chosen."""

    def test_fewer_steps_and_the_same_tokens(self) -> None:
        world = World(draft=7, says=counting)
        world.add(list(range(10)) * 3, max_tokens=65)
        world.run()
        assert world.tokens(0) == [i % 10 for i in range(65)]
        counters = world.core.counters
        assert counters.steps == 1 + 9  # the prompt, and up to eight tokens a step
        assert (counters.proposed_tokens, counters.accepted_tokens) == (55, 55)
        assert counters.generated_tokens == 65
        assert world.blocks.num_used == 0

    def test_every_token_is_told_of_as_without_guesses(self) -> None:
        plain, guessing = World(says=repeating_token), World(draft=7, says=repeating_token)
        for world in (plain, guessing):
            world.add([1, 2, 3], max_tokens=80)
            world.run()
        assert guessing.got[0] == plain.got[0]
        assert guessing.core.counters.steps < plain.core.counters.steps

    def test_wrong_guesses_leave_nothing_behind(self) -> None:
        """Their pages are given back, and none of their content is ever found by others."""
        world = World(draft=7, says=repeating_token)
        (sequence,) = world.add([1, 2, 3, 4, 5, 6] * 5, max_tokens=300)
        while not world.core.scheduler.is_idle:
            world.core.step()
            world.blocks.check()
            assert len(sequence.pages) == -(-sequence.computed // PAGE_SIZE)
        counters = world.core.counters
        assert 0 < counters.accepted_tokens < counters.proposed_tokens
        # Whatever is found in the cache now is checked against the tokens by the runner.
        (again,) = world.add(sequence.tokens, max_tokens=5)
        world.run()
        assert again.cached == (len(sequence.tokens) - 1) // PAGE_SIZE * PAGE_SIZE

    def test_a_reply_is_never_longer_than_it_may_be(self) -> None:
        for limit in range(1, 12):
            world = World(draft=7, says=counting)
            world.add(list(range(10)) * 2, max_tokens=limit)
            world.run()
            assert len(world.tokens(0)) == limit
            computed = sum(count for step in world.runner.steps for _, count in step)
            assert computed == 20 + limit - 1, "its last token is not computed, nor anything behind it"

    def test_a_reply_that_stops_among_right_guesses(self) -> None:
        world = World(draft=7, says=counting)
        world.add(list(range(10)) * 2, max_tokens=50, stop_token_ids=[4])
        world.run()
        assert world.tokens(0) == [0, 1, 2, 3, 4]
        assert world.blocks.num_used == 0

    def test_guesses_take_only_what_others_leave(self) -> None:
        """A prompt being read is not held up, and nobody loses pages to a guess."""
        world = World(num_pages=6, max_running=2, budget=16, draft=7, says=counting)
        world.add(list(range(10)) * 2, max_tokens=60)
        world.core.step()
        world.core.step()
        world.add([5] * 60, max_tokens=5)
        world.core.step()
        assert world.runner.steps[-1] == [(0, 1), (1, 15)]
        world.run()
        assert world.tokens(0) == [i % 10 for i in range(60)]
        assert world.core.scheduler.num_preemptions == 0

    def test_a_full_cache_shortens_guesses(self) -> None:
        world = World(num_pages=2, draft=7, says=counting)
        world.add(list(range(10)) * 2, max_tokens=100)
        world.run()
        assert len(world.tokens(0)) == 2 * PAGE_SIZE - 20
        assert world.core.counters.accepted_tokens > 0

    def test_an_error_behind_accepted_guesses_ends_one_request_alone(self) -> None:
        world = World(draft=7, says=counting)
        (broken,) = world.add([3, *range(10), *range(10)], max_tokens=40)
        world.add(list(range(10)) * 2, max_tokens=40)
        inner = world.core._runner.run

        def run(plan: Any) -> Any:
            results = inner(plan)
            for result in results:
                if result.work.sequence is broken and len(result.work.draft) > 2:
                    result.highest = [1.0, 1.0, float("nan"), *result.highest[3:]]
            return results

        world.runner.run = run  # type: ignore[method-assign]
        world.run()
        *before, error = world.got[0]
        assert isinstance(error, NumericsError)
        assert [d.token_ids for d in before if isinstance(d, Delta)] == [(0,), (1,), (2,)]
        assert world.tokens(1) == [i % 10 for i in range(40)]
        assert world.blocks.num_used == 0

    def test_a_receiver_that_ends_its_request_gets_no_more(self) -> None:
        world = World(draft=7, says=counting)
        (sequence,) = world.add(list(range(10)) * 2, max_tokens=40)
        note = world.core._deliver

        def deliver(reading: Reading, delta: Delta | BaseException) -> None:
            note(reading, delta)
            if sequence.num_output == 4:
                world.core.abort([sequence])

        world.core._deliver = deliver
        world.run()
        assert world.tokens(0) == [0, 1, 2, 3]
        assert world.blocks.num_used == 0
