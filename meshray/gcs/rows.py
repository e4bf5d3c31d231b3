"""Decides operations against the rows that are durable and those that are on their way to the disk.

*Pure.* Runs in shard servers; clients use ``fault`` to refuse bad operations before they are sent.

1. An operation sees every operation that was decided before it, also those of the same turn.
2. A plain PUT reads nothing: it is what batches consist of. What they stage is indexed only once somebody looks, which
   takes a quarter off the time of a batch.
3. A staged row stays until it is durable, so at every moment one of the two places has it.
"""

from __future__ import annotations

from operator import attrgetter

from meshray.gcs import limits
from meshray.gcs.log import Committed, RowChange
from meshray.gcs.tables import TABLES
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, PUT, PUT_IF_ABSENT, Op, Refusal, Write

_TABLES = frozenset(TABLES)
_kind = attrgetter("kind")


def fault(op: Op) -> str | None:
    """Return why this operation can never be done, or None."""
    if 0 < len(op.key) <= limits.KEY_BYTES_MAX and len(op.value) <= limits.VALUE_BYTES_MAX \
            and op.table in _TABLES and 0 <= op.kind <= DELETE:
        return None
    if op.table not in _TABLES:
        return f"there is no table {op.table!r}: use one of {', '.join(TABLES)}"
    if not 0 < len(op.key) <= limits.KEY_BYTES_MAX:
        return f"key of {len(op.key)} bytes in table {op.table}: 1 to {limits.KEY_BYTES_MAX} bytes are possible"
    if len(op.value) > limits.VALUE_BYTES_MAX:
        return (
            f"value of {len(op.value)} bytes for key {op.key[:32]!r} in table {op.table}: at most "
            f"{limits.VALUE_BYTES_MAX} are possible; put large values into the object store"
        )
    return f"operation of unknown kind {op.kind}"


class Rows:
    """Committed rows, overlaid with the staged ones."""

    def __init__(self, committed: Committed) -> None:
        self._committed = committed
        self._staged: dict[tuple[str, bytes], tuple[int, bytes | None]] = {}
        self._fresh: list[list[RowChange]] = []
        """Staged rows that are not in ``_staged`` yet."""

    def decide(self, ops: list[Op], version: int) -> tuple[list[RowChange], list[Refusal]]:
        """Decide ``ops``, the first of which has ``version``; stage and return what changes, and what is refused."""
        if not any(map(_kind, ops)):  # all are PUT
            puts: list[RowChange] = [(op.table, op.key, number, op.value) for number, op in enumerate(ops, version)]
            self._fresh.append(puts)
            return puts, []
        return self._decide_each(ops, version)

    def _decide_each(self, ops: list[Op], version: int) -> tuple[list[RowChange], list[Refusal]]:
        for fresh in self._fresh:
            for table, key, number, value in fresh:
                self._staged[(table, key)] = (number, value)
        self._fresh.clear()
        changes: list[RowChange] = []
        refused: list[Refusal] = []
        staged = self._staged
        room_bytes = limits.DEDUP_BYTES_MAX
        for index, op in enumerate(ops):
            table, key, kind = op.table, op.key, op.kind
            value = None if kind == DELETE else op.value
            if kind != PUT:
                present, current = self._get(table, key)
                if not _wanted(op, present):
                    room_bytes -= len(current or b"")
                    refused.append(Refusal(index, present, current if room_bytes >= 0 else None))
                    continue
                if value is None and present == 0:
                    continue
            changes.append((table, key, version + index, value))
            staged[(table, key)] = (version + index, value)
        return changes, refused

    def settle(self) -> None:
        """Everything that was decided is durable."""
        self._staged.clear()
        self._fresh.clear()

    def staged(self) -> int:
        """Return how many rows are on their way to the disk."""
        return len(self._staged) + sum(map(len, self._fresh))

    def _get(self, table: str, key: bytes) -> tuple[int, bytes | None]:
        """Return (version, value) of a row, (0, None) if there is none."""
        staged = self._staged.get((table, key))
        if staged is not None:
            return staged if staged[1] is not None else (0, None)
        return self._committed.get(table, key) or (0, None)


def _wanted(op: Op, present: int) -> bool:
    """Whether a conditional operation is to be done when the row has version ``present`` (0: there is none)."""
    if op.kind == PUT_IF_ABSENT:
        return present == 0
    if op.kind == COMPARE_AND_SET:
        return present == op.version
    return op.version in (0, present)


def write_fault(message: Write) -> str | None:
    """Return why this Write can never be done, or None."""
    if not 0 < len(message.client.encode()) <= limits.KEY_BYTES_MAX or message.sequence < 1:
        return "a Write needs a client name of 1 to 510 bytes and a sequence from 1 on"
    if not 0 < len(message.ops) <= limits.WRITE_OPS_MAX:
        return f"a Write of {len(message.ops)} operations: 1 to {limits.WRITE_OPS_MAX} are possible"
    for op in message.ops:
        if not (0 < len(op.key) <= limits.KEY_BYTES_MAX and len(op.value) <= limits.VALUE_BYTES_MAX
                and op.table in _TABLES and 0 <= op.kind <= DELETE):
            return fault(op)
    return None
