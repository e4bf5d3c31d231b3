"""A disk in memory, with the face of ``gcs.storage.Storage``.

*Pure.* Runs in simulation tests.

1. What a turn persists is there as a whole or not at all.
2. It survives its process, unless it is wiped. A full disk takes nothing, and fails the process that tries.
3. ``log`` is the history of entries that were made durable here since the disk was new.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshray.gcs import limits
from meshray.gcs.log import ClientRecord, Entry, Facts, Persist, Persisted, Recovered
from meshray.gcs.storage import StorageFailed
from meshray.messages.gcs import Row

DURABLE = (Persist,)
"""Effects that a disk takes."""


class Disk:
    """One member's disk. ``noted`` is told of every entry that becomes durable."""

    def __init__(self, noted: Callable[[Entry], None] = lambda entry: None) -> None:
        self.noted = noted
        self.full = False
        self.wipe()

    def wipe(self) -> None:
        """Lose everything."""
        self.tables: dict[str, dict[bytes, tuple[int, bytes]]] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.log: list[Entry] = []
        self.epoch = 0

    @property
    def recovered(self) -> Recovered:
        """What a process finds here when it starts."""
        return Recovered(self.epoch, self.log[-1].last if self.log else 0, dict(self.clients))

    def persist(self, effects: list[Any]) -> list[Any]:
        """Take what must be durable; return the rest, and what became durable. Raise StorageFailed."""
        persists = [effect for effect in effects if type(effect) is Persist]
        if not persists:
            return effects
        if self.full:
            raise StorageFailed("the simulated disk is full")
        for persist in persists:
            self.epoch = persist.epoch
            self._apply(persist.entry)
        for persist in persists:
            self.noted(persist.entry)
        return [*(effect for effect in effects if type(effect) is not Persist), Persisted(len(persists))]

    def get(self, table: str, key: bytes) -> tuple[int, bytes] | None:
        """Return (version, value) of a row, or None."""
        rows = self.tables.get(table)
        return rows.get(key) if rows else None

    def scan(self, table: str, prefix: bytes, after: bytes, limit: int) -> tuple[list[Row], bool]:
        """Return a page of rows, and whether there are more."""
        rows = self.tables.get(table, {})
        found = sorted(key for key in rows if key.startswith(prefix) and key > after)
        limit = min(limit, limits.SCAN_ROWS_MAX)
        return [Row(key, *rows[key]) for key in found[:limit]], len(found) > limit

    def facts(self) -> Facts:
        """Return row counts; sizes mean nothing here."""
        return Facts({table: len(rows) for table, rows in self.tables.items()}, 0, 0, 0, "memory")

    def state(self) -> dict[str, Any]:
        """Return everything that replicas must have in common."""
        tables = {table: rows for table, rows in self.tables.items() if rows}
        return {"tables": tables, "clients": self.clients, "version": self.log[-1].last if self.log else 0}

    def _apply(self, entry: Entry) -> None:
        self.log.append(entry)
        for table, key, version, value in entry.rows:
            rows = self.tables.setdefault(table, {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = (version, value)
        if entry.client:
            self.clients[entry.client] = ClientRecord(entry.sequence, entry.version, entry.refused)
        for client in entry.forgotten:
            self.clients.pop(client, None)
