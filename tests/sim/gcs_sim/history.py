"""What clients asked of single rows, and what they were answered.

*Pure.* Runs in simulation and chaos tests.

1. A Write of several operations is recorded as one call for each row: each row by itself must behave as if it were
   alone, and a system whose every row does behaves so as a whole (linearizability is local).
2. A call whose end is not known (``ended_ns`` None) may have been done at any time after it began, or never.
3. Every value that is written is written once, so that a value says which call wrote it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from meshray.gcs.requests import Answered, Outcome, Unanswered
from meshray.messages.gcs import DELETE, Op, Row

Key = tuple[str, bytes]
READ = -1
"""Kind of a call that only looks; the other kinds are those of operations."""


class Violation(AssertionError):
    """A promise was broken."""


class RowCall(msgspec.Struct, gc=False):
    """One call on one row. ``ok`` False: it was refused and showed the row as it was, like a read. ``version`` and
    ``value``: the row as it was seen; for a write that was done, the version that it was given and what it wrote.
    ``blind``: the refusal left out the value."""

    client: str
    key: Key
    kind: int
    begun_ns: int
    ended_ns: int | None = None
    written: bytes | None = None
    expected: int = 0
    ok: bool = True
    version: int = 0
    value: bytes | None = None
    blind: bool = False

    @property
    def is_look(self) -> bool:
        """Whether it only tells what the row was."""
        return self.kind == READ or not self.ok


class History:
    """All calls of a run. ``begin_*`` and ``end`` take what a ``GcsClient`` was given and what it answered."""

    def __init__(self) -> None:
        self.calls: list[RowCall] = []
        self.answers = 0
        self.errors = 0
        self._open: dict[Any, list[RowCall]] = {}

    def begin_write(self, ticket: Any, client: str, ops: Iterable[Op], now_ns: int) -> None:
        """A client begins a write; ``ticket`` names it until its end."""
        self._open[ticket] = [
            RowCall(client, (op.table, op.key), op.kind, now_ns, written=op.value, expected=op.version) for op in ops
        ]

    def begin_read(self, ticket: Any, client: str, keys: Iterable[Key], now_ns: int) -> None:
        """A client begins a read."""
        self._open[ticket] = [RowCall(client, key, READ, now_ns) for key in keys]

    def end(self, ticket: Any, answer: Answered, now_ns: int) -> None:
        """A call has ended. One that failed for certain leaves nothing."""
        calls = self._open.pop(ticket)
        self.answers += 1
        if answer.error is not None:
            self.errors += 1
            if isinstance(answer.error, Unanswered) and answer.error.uncertain:
                self.calls += calls
            return
        for call, result in zip(calls, answer.results, strict=True):
            call.ended_ns = now_ns
            _see(call, result)
        self.calls += calls

    def close(self) -> None:
        """The run is over: writes that are still open may have been done."""
        for calls in self._open.values():
            self.calls += [call for call in calls if call.kind != READ]
        self._open.clear()

    @property
    def unanswered(self) -> int:
        """How many calls have not ended."""
        return len(self._open)

    def by_key(self) -> dict[Key, list[RowCall]]:
        """Return the calls of each row in the order of their begin."""
        rows: dict[Key, list[RowCall]] = defaultdict(list)
        for call in sorted(self.calls, key=lambda call: call.begun_ns):
            rows[call.key].append(call)
        return rows


def _see(call: RowCall, result: Outcome | Row) -> None:
    call.version, call.value = result.version, result.value
    if isinstance(result, Outcome):
        call.ok = result.ok
        if result.ok:
            call.value = None if call.kind == DELETE else call.written
        else:
            call.blind = result.value is None and result.version > 0
