"""What the disks of a chain's members must have in common.

*Pure.* Runs in simulation tests; the parts that compare rows also in chaos tests, over what was read from real disks.

1. A successor has a prefix of what its predecessor has.
2. What the tail of any configuration made durable is committed: no member has, or will ever have, anything else there.
3. A Write is in the history at most once, under its client's name and sequence.

Source: van Renesse and Schneider, OSDI'04 s3 (update propagation invariant).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from meshray.gcs.log import Entry
from tests.sim.gcs_sim.history import History, Violation


def prefixes(members: Iterable[tuple[str, list[Entry]]]) -> None:
    """Raise Violation unless each log is a prefix of that of the member before it. A log may begin later than another,
    as that of a member that joined with a snapshot does; what both have is compared."""
    above: dict[int, Entry] | None = None
    named = ""
    for name, log in members:
        mine = {entry.version: entry for entry in log}
        if above is not None and mine and above:
            first = min(above)
            for version, entry in mine.items():
                if version >= first and above.get(version) != entry:
                    raise Violation(f"{name} has {entry}, but {named} before it has {above.get(version)}")
        above, named = mine, name


class Commits:
    """What is committed, as it becomes so. ``tail_has`` is told of every entry that a serving tail made durable."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.version = self.epoch = 0
        """The last version that is committed, and the newest epoch of a tail that was seen."""
        self._by_version: dict[int, Entry] = {}
        self._writes: Counter[tuple[str, int]] = Counter()

    def tail_has(self, name: str, entry: Entry) -> None:
        """Raise Violation if something else is committed there."""
        known = self._by_version.get(entry.version)
        if known is not None and known.count == entry.count:
            if known != entry:
                raise Violation(f"{name} commits {entry}, but {known} was committed there before")
            return
        if entry.count == 0:
            return
        self._by_version[entry.version] = entry
        self.entries.append(entry)
        self.version = max(self.version, entry.last)
        if entry.client:
            self._writes[(entry.client, entry.sequence)] += 1
            if self._writes[(entry.client, entry.sequence)] > 1:
                raise Violation(f"Write {entry.sequence} of {entry.client} was committed twice, now as {entry}")

    def agree_with(self, name: str, log: Iterable[Entry], *, whole: bool) -> None:
        """Raise Violation if ``log`` differs from what is committed; ``whole``: it must also lack nothing, from its
        first entry on."""
        mine = {entry.version: entry for entry in log if entry.count}
        for version, entry in mine.items():
            known = self._by_version.get(version)
            if known is not None and known != entry:
                raise Violation(f"{name} has {entry} where {known} is committed")
        if whole and mine:
            first = min(mine)
            missing = sorted(version for version in self._by_version if version >= first and version not in mine)
            if missing:
                raise Violation(f"{name} lacks version {missing[0]}: {self._by_version[missing[0]]}")

    def answers_are_there(self, history: History) -> None:
        """Raise Violation if a client was told of a write that is not committed."""
        known = {(table, key, version): value for entry in self.entries for table, key, version, value in entry.rows}
        for call in history.calls:
            if call.ended_ns is None or call.is_look or call.value is None:
                continue
            if known.get((*call.key, call.version)) != call.written:
                raise Violation(f"{call.client} was told of a write that is not committed: {call}")


def once(entries: Iterable[Entry]) -> None:
    """Raise Violation if a Write is in a history twice."""
    for (client, sequence), times in Counter((each.client, each.sequence) for each in entries if each.client).items():
        if times > 1:
            raise Violation(f"Write {sequence} of {client} was done {times} times")


def equal(states: Mapping[str, Any], show: Callable[[Any, Any], str] | None = None) -> None:
    """Raise Violation unless all members hold the same, byte by byte. To be asked when nothing is on the way."""
    named = sorted(states.items())
    for (left, mine), (right, theirs) in pairwise(named):
        if mine != theirs:
            detail = show(mine, theirs) if show else difference(mine, theirs)
            raise Violation(f"{left} and {right} are quiet and differ: {detail}")


def difference(mine: Any, theirs: Any, path: str = "") -> str:
    """Return the first place where two nested dictionaries differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            if mine.get(key) != theirs.get(key):
                return difference(mine.get(key), theirs.get(key), f"{path}[{key!r}]")
    return f"at {path or 'the root'}: {mine!r} and {theirs!r}"
