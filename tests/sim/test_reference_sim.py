"""References in a simulated cluster, seed by seed, and broken variants that the same checks must catch.

Each bug that a seed has found is here as a variant with its repair undone: a change of the programs changes every
schedule, and a seed alone would soon test nothing.

Repeat one seed with ``python -m tests.sim.reference_seeds --seed <seed>``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshray.messages.objects import HoldersDied
from meshray.processes.orphans import Orphans
from meshray.session.doubts import Doubts
from meshray.session.holds import Holds
from meshray.session.outcomes import Outcomes
from meshray.session.references import References
from meshray.session.task_values import TaskValues
from tests.sim.reference_seeds import repeat
from tests.sim.reference_sim.truth import Violation
from tests.sim.reference_sim.world import run

SEEDS = 300
"""In the test run; ``reference_seeds`` runs more."""
BROKEN_SEEDS_MAX = 1_500
"""A broken variant must be caught within so many seeds."""

@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_nothing_reachable_is_freed_and_everything_else_is(first: int) -> None:
    for seed in range(first, first + 50):
        attempt(seed)


def attempt(seed: int) -> None:
    try:
        run(seed)
    except AssertionError as error:
        raise AssertionError(f"seed {seed} fails; repeat it with: {repeat(seed)}\n{error}") from error


def test_a_seed_is_a_schedule() -> None:
    first, second = run(3), run(3)
    assert (first.clock.events, first.truth.counts) == (second.clock.events, second.truth.counts)


def test_runs_are_worth_something() -> None:
    counts = [run(seed).truth.counts for seed in range(1, 40, 4)]
    assert sum(count["objects"] for count in counts) > 200
    assert sum(count["read"] for count in counts) > 40


def release_at_once(self: Outcomes, route: bytes, held: Any) -> None:
    from meshray.messages.tasks import ReleaseReturns

    self._session.send(route, ReleaseReturns([seq for seq, _ in held]))


def answer_before_holding(self: TaskValues, route: bytes, seq: int) -> None:
    kept = self.kept(route, seq)
    self._session.references.holds.hold(kept)


def sweep_at_once(self: Holds, message: HoldersDied) -> None:
    self.dead.update(dict.fromkeys(message.processes))
    self._sweep(message)


def forget_what_is_inside(self: References, ref: Any, value: Any, *, owned: bool) -> tuple[int, ...]:
    from meshray.session.values import fill

    fill(ref, value, self._session.objects.dropped if owned else None)
    return ()


def free_at_once(self: Orphans, message: HoldersDied, sessions: list[str]) -> list[bytes]:
    question = self._questions.pop(message.cookie, None)
    return list(question.objects) if question is not None else []


def result_for_anybody(self: TaskValues, route: bytes, seq: int, context: Any, value: Any, num_returns: int) -> Any:
    dead, self._session.references.holds.dead = self._session.references.holds.dead, {}
    try:
        return _result(self, route, seq, context, value, num_returns)
    finally:
        self._session.references.holds.dead = dead


_result = TaskValues.result

BROKEN: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "lets results go before their receiver's hold counts": (Outcomes, "_release_returns", release_at_once),
    "answers before the holds of what it kept count": (TaskValues, "keep_borrowed", answer_before_holding),
    "never sweeps dead holders": (Holds, "_sweep", lambda self, message: None),
    "sweeps dead holders at once": (Holds, "on_died", sweep_at_once),
    "drops pins with the process they were for": (Holds, "linger", lambda self, what: None),
    "forgets what is inside a value": (References, "take", forget_what_is_inside),
    "does not hold what calls of dead callers need": (TaskValues, "adopt", lambda self, route, entry: None),
    "keeps the pins of results for dead callers": (TaskValues, "owners_died", lambda self, gone: None),
    "never asks what others hold": (Doubts, "tick", lambda self, now_ns: None),
    "never asks after pins": (TaskValues, "ask_after_pins", lambda self, now_ns: None),
    "never sends releases": (Holds, "send_releases", lambda self: None),
    "frees a dead owner's objects under their readers": (Orphans, "asked", free_at_once),
    "forgets readers that end": (Orphans, "session_gone", lambda self, session: []),
    "makes results for callers that are gone": (TaskValues, "result", result_for_anybody),
    "leaves what a worker stored before it died": (Outcomes, "_free_lost", lambda self, task, values: None),
}


RARE = {"does not hold what calls of dead callers need": 495, "frees a dead owner's objects under their readers": 771,
        "drops pins with the process they were for": 1642}
"""Seeds to try first."""


@pytest.mark.parametrize("name", BROKEN)
def test_broken_variants_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, broken = BROKEN[name]
    monkeypatch.setattr(owner, method, broken)
    for seed in (RARE.get(name, 0), *range(BROKEN_SEEDS_MAX)):
        try:
            run(seed)
        except Violation:
            return
    pytest.fail(f"a variant that {name} passes {BROKEN_SEEDS_MAX} seeds")
