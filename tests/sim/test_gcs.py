"""The control store in a simulated world, seed by seed, and broken members that the same checks must catch.

Repeat one seed with ``python -m tests.sim.gcs_seeds --seed <seed>``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshray.gcs.chain import ChainMember
from meshray.gcs.log import Persist
from meshray.gcs.watches import Watches
from tests.sim.gcs_seeds import repeat
from tests.sim.gcs_sim.history import Violation
from tests.sim.gcs_sim.scenarios import FAULTS, WEATHERS, run

SEEDS = 200
"""In the test run; ``gcs_seeds`` runs more."""
BROKEN_SEEDS_MAX = 1_000
"""A broken member must be caught within so many seeds."""


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
    world = run(1, [fault, fault], weather)
    assert len(world.history.calls) > 50
    assert sum(map(len, world.told.values())) > 10


def test_a_seed_is_a_schedule() -> None:
    one, other = run(3), run(3)
    assert one.commits.entries == other.commits.entries
    assert one.schedule.events == other.schedule.events
    assert one.commits.entries != run(4).commits.entries


class AnswersEarly(ChainMember):
    """Broken: answers before its turn is persisted."""

    def _append(self, entry: Any, now_ns: int) -> list[Any]:
        effects = super()._append(entry, now_ns)
        early = super()._persisted(1, now_ns)
        return [effect for effect in effects if isinstance(effect, Persist)] + early

    def _persisted(self, count: int, now_ns: int) -> list[Any]:
        return []


class DropsChanges(ChainMember):
    """Broken: thins out what watchers are told, without a gap in the numbers."""

    def _commit(self, entries: Any, now_ns: int) -> list[Any]:
        kept = Watches.feed
        feed: Callable[[Any, Any], Any] = lambda watches, rows: kept(watches, rows[1:])  # noqa: E731
        try:
            Watches.feed = feed  # type: ignore[method-assign]
            return super()._commit(entries, now_ns)
        finally:
            Watches.feed = kept  # type: ignore[method-assign]


BROKEN: dict[str, dict[str, Any]] = {
    "forgets the dedup table": {"forgets_clients": True},
    "answers before it persists": {"member": AnswersEarly, "sends_first": True},
    "drops changes": {"member": DropsChanges},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_members_are_caught(name: str) -> None:
    for seed in range(BROKEN_SEEDS_MAX):
        try:
            run(seed, **BROKEN[name])
        except Violation:
            return
    pytest.fail(f"a member that {name} passes {BROKEN_SEEDS_MAX} seeds")
