"""The control store in a simulated world, seed by seed, and broken ones that the same checks must catch.

Repeat one seed with ``python -m tests.sim.gcs_seeds --seed <seed>``.
"""

from __future__ import annotations

import pytest

from tests.sim.gcs_seeds import repeat
from tests.sim.gcs_sim.broken import BROKEN, broken
from tests.sim.gcs_sim.history import Violation
from tests.sim.gcs_sim.scenarios import FAULTS, WEATHERS, run

SEEDS = 200
"""In the test run; ``gcs_seeds`` runs more."""
BROKEN_SEEDS_MAX = 1_000
"""A broken store must be caught within so many seeds."""


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_promises_hold(first: int) -> None:
    for seed in range(first, first + 20):
        try:
            run(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} fails; repeat it with: {repeat(seed)}\n{error}") from error


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_happens_and_is_survived(fault: str, weather: str) -> None:
    world = run(1, [fault, fault], weather, replicas=3)
    assert len(world.history.calls) > 40
    assert sum(map(len, world.told.values())) > 10
    assert world.ends or fault not in ("crash", "crash_two", "crash_all", "crash_joiner", "fill_disk")


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_nothing_is_concluded_from_words_of_earlier_lives(first: int) -> None:
    """Masters that concluded something emptied the last disk that had everything, in seed 21, or took its server for
    the one that it had been before, again and again: seed 29 then served as a tail without rows."""
    for seed in range(first, first + 10):
        run(seed, ["echo", "crash_inside", "freeze_inside", "crash_masters"], replicas=3)


def test_a_seed_is_a_schedule() -> None:
    one, other = run(3), run(3)
    assert one.commits.entries == other.commits.entries
    assert one.schedule.events == other.schedule.events
    assert one.commits.entries != run(4).commits.entries


@pytest.mark.parametrize("name", BROKEN)
def test_broken_stores_are_caught(name: str) -> None:
    with broken(name):
        for seed in range(BROKEN_SEEDS_MAX):
            try:
                run(seed)
            except Violation:
                return
    pytest.fail(f"a store that {name} passes {BROKEN_SEEDS_MAX} seeds")
