"""A shard server dies, or its disk fails, in the middle of its commits: what it had acknowledged is there afterwards.

The whole sweep is ``python -m tests.chaos.crash_points``; here are a few points of each kind.
"""

from __future__ import annotations

import pytest

from tests.chaos import crash_points

WHY_NOT = crash_points.why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.limit_s(60)]

POINTS = {"pwrite64": (1, 30, 37, 44), "fdatasync": (2, 13, 17, 21)}
"""The first lie in the opening of a new directory, the others in commits of Writes."""


@pytest.mark.parametrize("fault", crash_points.FAULTS)
@pytest.mark.parametrize(("call", "when"), [(call, when) for call, points in POINTS.items() for when in points])
def test_what_was_acknowledged_is_there(call: str, fault: str, when: int) -> None:
    ended = crash_points.attempt(call, fault, when)
    assert ended, "the fault was never met: the point lies beyond the run"
    if fault.startswith("error") and when > 20:
        assert "did not take a commit" in ended and fault.removeprefix("error=") in ended


@pytest.mark.parametrize("when", (30, 40))
def test_relaxed_survives_the_death_of_the_process(when: int) -> None:
    assert crash_points.attempt("pwrite64", "signal=KILL", when, "relaxed")


def test_the_check_sees_what_is_missing() -> None:
    crash_points.verify(crash_points.state(2), 2, 3)
    crash_points.verify(crash_points.state(3), 2, 3)
    halves = {**crash_points.state(2), b"row-3-0": crash_points.state(3)[b"row-3-0"]}
    lacking = {key: value for key, value in crash_points.state(2).items() if key != b"row-1-0"}
    for present in (halves, lacking, crash_points.state(1)):
        with pytest.raises(crash_points.Broken, match="after 2 acknowledged writes"):
            crash_points.verify(present, 2, 3)
