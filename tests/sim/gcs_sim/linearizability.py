"""Whether the calls on one row could have happened one after the other, each at a moment between its begin and end.

*Pure.* Runs in simulation and chaos tests, and believes nothing that the store says of order: it searches.

1. Rows are looked at one by one: a history is linearizable exactly if that of each row is.
2. A call without an end may be placed anywhere after its begin, or left out.
3. A set of placed calls together with the state they led to is looked at once.

Source: Wing and Gong 1993; Lowe 2017 (linked list, memory of (placed, state)); porcupine. P-compositionality: Horn and
Kroening 2015.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from meshray.messages.gcs import COMPARE_AND_SET, DELETE, PUT_IF_ABSENT
from tests.sim.gcs_sim.history import READ, History, RowCall, Violation

State = tuple[int | None, bytes | None]
"""(version, value) of a row; (0, None): there is none; version None: nobody ever saw which it was."""
ABSENT: State = (0, None)
STEPS_MAX = 2_000_000
"""A search that takes more steps is given up with an error: make the histories shorter."""


def check(history: History) -> None:
    """Raise Violation if the calls on some row cannot be put into an order."""
    for key, calls in history.by_key().items():
        if not linearizable(calls):
            raise Violation(f"no order explains the calls on {key}:\n" + describe(calls))


def linearizable(calls: list[RowCall]) -> bool:
    """Whether there is an order of the calls on one row, as Wing and Gong search for it."""
    calls = _relevant(calls)
    versions = {call.value: call.version for call in calls if call.ended_ns is not None and call.value is not None}
    count = len(calls)
    after, before = _linked(calls)
    head, end = 2 * count, 2 * count + 1
    left = sum(call.ended_ns is not None for call in calls)
    state, placed = ABSENT, 0
    seen: set[tuple[int, State]] = set()
    trail: list[tuple[int, State]] = []
    entry = after[head]
    steps = 0
    while left:
        steps += 1
        if steps > STEPS_MAX:
            raise Violation(f"the search for an order of {count} calls on {calls[0].key} took too many steps")
        if entry < count:
            reached = step(state, calls[entry], versions)
            mark = (placed | 1 << entry, reached)
            if reached is not None and mark not in seen:
                seen.add(mark)
                trail.append((entry, state))
                placed, state = mark
                left -= calls[entry].ended_ns is not None
                _unlink(entry, count, calls, after, before)
                entry = after[head]
            else:
                entry = after[entry]
            continue
        # Here a call ends that has not been placed (or all that may come has been tried): take back the last choice.
        if not trail:
            return False
        entry, state = trail.pop()
        placed &= ~(1 << entry)
        left += calls[entry].ended_ns is not None
        _link(entry, count, calls, after, before)
        entry = after[entry]
        assert entry != end or left
    return True


def step(state: State, call: RowCall, versions: dict[bytes | None, int]) -> State | None:
    """Return the state after ``call``, or None if it cannot have happened in ``state``."""
    version, value = state
    known = call.ended_ns is not None
    if known and call.is_look:
        if call.blind:
            return state if version in (call.version, None) else None
        same = value == call.value and version in (call.version, None)
        if not same or (call.kind != READ and _wanted(call, state)):
            return None
        return state
    if not _wanted(call, state):
        # A write of unknown end that would be refused here changes nothing, which leaving it out says as well.
        return None
    if call.kind == DELETE:
        return ABSENT
    return (call.version if known else versions.get(call.written), call.written)


def _wanted(call: RowCall, state: State) -> bool:
    """Whether the condition of a write holds."""
    if call.kind == PUT_IF_ABSENT:
        return state == ABSENT
    if call.kind == COMPARE_AND_SET:
        return state[0] == call.expected
    return call.kind != DELETE or call.expected in (0, state[0])


def describe(calls: Iterable[RowCall]) -> str:
    """Return the calls for people to read."""
    return "\n".join(f"  {call}" for call in calls)


def _relevant(calls: list[RowCall]) -> list[RowCall]:
    """Leave out writes of unknown end whose value nobody saw: whatever order has them has one without them."""
    seen = {call.value for call in calls if call.ended_ns is not None}
    return [call for call in calls if call.ended_ns is not None
            or (call.kind != READ and (call.kind == DELETE or call.written in seen))]


def _linked(calls: list[RowCall]) -> tuple[list[int], list[int]]:
    """Return successors and predecessors: entry i is the begin of call i, count + i its end; a begin at the moment of
    an end comes before it."""
    count = len(calls)
    entries = [(call.begun_ns, 0, index) for index, call in enumerate(calls)]
    entries += [(call.ended_ns, 1, count + i) for i, call in enumerate(calls) if call.ended_ns is not None]
    order = [2 * count, *(entry for _, _, entry in sorted(entries)), 2 * count + 1]
    after, before = [0] * (2 * count + 2), [0] * (2 * count + 2)
    for left, right in pairwise(order):
        after[left], before[right] = right, left
    return after, before


def _unlink(entry: int, count: int, calls: list[RowCall], after: list[int], before: list[int]) -> None:
    for each in (entry, count + entry) if calls[entry].ended_ns is not None else (entry,):
        after[before[each]] = after[each]
        before[after[each]] = before[each]


def _link(entry: int, count: int, calls: list[RowCall], after: list[int], before: list[int]) -> None:
    for each in (count + entry, entry) if calls[entry].ended_ns is not None else (entry,):
        after[before[each]] = each
        before[after[each]] = each

