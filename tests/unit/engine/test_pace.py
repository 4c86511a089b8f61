"""What steps cost is learned, and guesses are made as far as they bring more tokens a second."""

from __future__ import annotations

import random
import time

from qwenkit.engine.pace import Pace

SURE = [0.95**n for n in range(1, 8)]


def measured(*, jump: float) -> Pace:
    """A machine where more than four tokens take a jump."""
    pace = Pace()
    for _ in range(20):
        for size in range(1, 9):
            pace.note(size, 0.004 + 0.0002 * size + (jump if size > 4 else 0.0))
    return pace


def test_cheap_rows_are_used_and_dear_ones_are_not() -> None:
    assert measured(jump=0.0).worth(1, 1.0, SURE) == 7
    assert measured(jump=0.016).worth(1, 1.0, SURE) == 3
    assert measured(jump=0.002).worth(1, 1.0, SURE) == 7, "a jump that many right guesses outweigh"
    assert measured(jump=0.0).worth(1, 1.0, [0.02, 0.01]) == 0
    assert measured(jump=0.0).worth(1, 1.0, []) == 0


def test_the_best_count_is_that_of_trying_all() -> None:
    chance = random.Random(1)
    for _ in range(200):
        pace, times = Pace(), {size: chance.random() for size in range(1, 9)}
        for size, seconds in times.items():
            pace.note(size, seconds)
        chances = sorted((chance.random() for _ in range(7)), reverse=True)
        rates = [(1 + sum(chances[:count])) / times[1 + count] for count in range(8)]
        assert pace.worth(1, 1.0, chances) == rates.index(max(rates))


def test_what_never_ran_is_tried() -> None:
    pace = Pace()
    assert pace.worth(1, 1.0, SURE) == 7, "before anything is known"
    pace.note(1, 0.004)
    assert pace.worth(1, 1.0, SURE) == 7
    pace.note(8, 0.02)
    assert 0 < pace.worth(1, 1.0, SURE) < 7
    large = Pace()
    large.note(64, 0.1)
    assert large.worth(64, 64.0, [0.5]) == 0, "beside many others a guess costs as much as a token"


def test_one_slow_step_is_not_held_against_a_size() -> None:
    pace = measured(jump=0.0)
    usual = pace.cost(8)
    pace.note(8, 5.0)
    assert pace.cost(8) < 1.5 * usual
    for _ in range(12):
        pace.note(8, usual)
    assert pace.cost(8) < 1.01 * usual


def test_old_measurements_are_made_again() -> None:
    pace = Pace()
    pace.note(1, 0.004)
    pace.note(8, 5.0)  # something else kept the machine busy
    assert pace.cost(8) == 5.0
    for _ in range(1100):
        pace.note(1, 0.004)
    assert pace.cost(8) < 0.01
    assert pace.worth(1, 1.0, SURE) == 7


def test_a_clock_that_stands_still_tells_nothing() -> None:
    pace = Pace()
    pace.note(1, 0.0)
    pace.note(8, 0.0)
    assert pace.cost(8) == 24.0


def test_many_sizes_cost_little_to_look_through() -> None:
    pace = Pace()
    for size in range(1, 512):
        pace.note(size, size * 0.001)
    start = time.perf_counter()
    for _ in range(100):
        pace.worth(64, 64.0, SURE)
    assert time.perf_counter() - start < 0.2
