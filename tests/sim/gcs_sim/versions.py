"""Whether the versions that clients were told fit together: a check in n log n, for histories of any length.

*Pure.* Runs in simulation and chaos tests. The store claims an order of the writes to a row by giving them versions;
this checks that claim against what clients saw and when. ``linearizability`` does the same without it, by search.

1. A version is given to one write; a value has one version.
2. Time: nobody sees a version before its write began, or an older one than was proven before the call began.
3. A compare-and-set names its predecessor: no other write lies between the two.

Source: compare-and-set histories are checked in linear time: Gibbons and Korach, "Testing shared memories", 1997.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from meshray.messages.gcs import COMPARE_AND_SET, DELETE, PUT_IF_ABSENT
from tests.sim.gcs_sim.history import READ, History, Key, RowCall, Violation
from tests.sim.gcs_sim.linearizability import describe


def check(history: History) -> None:
    """Raise Violation if the versions of some row do not fit together."""
    for key, calls in history.by_key().items():
        try:
            _Row(key, calls).check()
        except Violation as violation:
            raise Violation(f"{violation}\n" + describe(calls)) from None


class _Row:
    def __init__(self, key: Key, calls: list[RowCall]) -> None:
        self.key = key
        self.done = [call for call in calls if call.ended_ns is not None]
        self.unknown = [call for call in calls if call.ended_ns is None and call.kind != READ]
        self.writes: dict[int, RowCall] = {}
        """Version -> the write that was told it."""
        self.values: dict[int, bytes | None] = {}
        """Version -> value, from whoever saw it; None: there was no row then."""
        for call in self.done:
            self._take(call)
        self.order = sorted(self.values)

    def _take(self, call: RowCall) -> None:
        """Note what the call says of a version."""
        if not call.version or call.blind:
            return
        if not call.is_look:
            if call.version in self.writes:
                raise Violation(f"version {call.version} of {self.key} was given to two writes")
            self.writes[call.version] = call
        if self.values.setdefault(call.version, call.value) != call.value:
            raise Violation(f"version {call.version} of {self.key} is {self.values[call.version]!r}, but: {call}")

    def check(self) -> None:
        self._values_have_one_version()
        self._nothing_is_seen_before_it_began()
        ends = sorted((call.ended_ns or 0, call.version) for call in self.done if call.version)
        times, floors = [time_ns for time_ns, _ in ends], [0]
        for _, version in ends:
            floors.append(max(floors[-1], version))
        for call in self.done:
            floor = floors[bisect_left(times, call.begun_ns)]
            if not call.is_look:
                self._write(call, floor)
            elif call.version or call.blind:
                if call.version < floor:
                    raise Violation(f"{call.client} saw {self.key} as {call.version}, after {floor} was proven: {call}")
            else:
                self._absent(call, floor)

    def _values_have_one_version(self) -> None:
        versions: dict[bytes, int] = {}
        for version, value in self.values.items():
            if value is not None and versions.setdefault(value, version) != version:
                raise Violation(f"{value!r} was written to {self.key} twice: as {versions[value]} and {version}")

    def _nothing_is_seen_before_it_began(self) -> None:
        begun = {call.written: call.begun_ns for call in (*self.done, *self.unknown) if call.kind != READ}
        for call in self.done:
            if call.value is None:
                continue
            if call.value not in begun:
                raise Violation(f"{call.client} saw {self.key} as {call.value!r}, which nobody wrote")
            if (call.ended_ns or 0) < begun[call.value]:
                raise Violation(f"{call.client} saw {self.key} as {call.value!r} before that was asked for")

    def _write(self, call: RowCall, floor: int) -> None:
        """A write that was done lies after everything that was proven before it began, and its condition held."""
        if call.version <= floor:
            raise Violation(f"{call.client} wrote {self.key} as {call.version}, after {floor} was proven: {call}")
        place = bisect_left(self.order, call.version)
        previous = self.order[place - 1] if place else 0
        if call.kind == COMPARE_AND_SET and call.expected and previous != call.expected:
            raise Violation(f"{call.version} of {self.key} replaced {call.expected}, but {previous} is between: {call}")
        absent = call.kind == PUT_IF_ABSENT or (call.kind == COMPARE_AND_SET and not call.expected)
        if absent and self.values.get(previous) is not None and not self._may_be_removed(previous, call):
            raise Violation(f"{call.version} of {self.key} was written as new, but {previous} was there: {call}")

    def _absent(self, call: RowCall, floor: int) -> None:
        """Some moment without the row lies at or after the floor."""
        if not floor or self._may_be_removed(floor, call):
            return
        for version in self.order[bisect_left(self.order, floor):]:
            if self.values[version] is None and self.writes[version].begun_ns <= (call.ended_ns or 0):
                return
        raise Violation(f"{call.client} saw no {self.key}, after {floor} was proven: {call}")

    def _may_be_removed(self, version: int, call: RowCall) -> bool:
        """Whether a removal of unknown end may have come after ``version``, before ``call`` ended."""
        return any(each.kind == DELETE and each.begun_ns <= (call.ended_ns or 0)
                   and each.expected in (0, *self.order[bisect_right(self.order, version) - 1:])
                   for each in self.unknown)
