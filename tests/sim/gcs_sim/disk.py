"""A disk in memory, with the face of ``gcs.storage.Storage``.

*Pure.* Runs in simulation tests.

1. What a turn persists is there as a whole or not at all, in the order of its effects.
2. It survives its process, unless it is wiped. A full disk takes nothing, and fails the process that tries.
3. ``log`` is the history of entries that were made durable here since the disk was new, or since a joiner emptied it.
"""

from __future__ import annotations

from typing import Any

from meshray.gcs import limits
from meshray.gcs.log import (
    ClientRecord,
    Entry,
    Facts,
    KeepVote,
    MarkWhole,
    Persist,
    Persisted,
    Recovered,
    Vote,
    WipeDisk,
)
from meshray.gcs.storage import StorageFailed
from meshray.messages.gcs import Row

DURABLE = (Persist, WipeDisk, MarkWhole, KeepVote)
"""Effects that a disk takes."""


class Disk:
    """One server's disk. ``vote`` is what an acceptor finds on it. ``founding``: it is new because its cluster is, so
    that nothing can have been lost with an earlier one."""

    def __init__(self, *, founding: bool = False) -> None:
        self.full = False
        self.wipe()
        self.whole = founding
        self.vote = Vote(votes=founding)

    def wipe(self) -> None:
        """Lose everything, also what an acceptor promised."""
        self.vote = Vote()
        self._empty()

    def _empty(self) -> None:
        self.tables: dict[str, dict[bytes, tuple[int, bytes]]] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.log: list[Entry] = []
        self.epoch = self.version = 0
        self.whole = False

    @property
    def recovered(self) -> Recovered:
        """What a process finds here when it starts."""
        return Recovered(self.epoch, self.version, dict(self.clients), self.whole)

    def persist(self, effects: list[Any]) -> list[Any]:
        """Take what must be durable; return the rest, and what became durable. Raise StorageFailed."""
        mine = [effect for effect in effects if type(effect) in DURABLE]
        if not mine:
            return effects
        if self.full:
            raise StorageFailed("the simulated disk is full")
        persisted = 0
        for effect in mine:
            match effect:
                case Persist(entry=entry, epoch=epoch):
                    persisted += 1
                    self.epoch = epoch
                    self._apply(entry)
                case WipeDisk():
                    self._empty()
                case MarkWhole(epoch=epoch):
                    self.whole, self.epoch = True, epoch
                case KeepVote(vote=vote):
                    self.vote = vote
        rest = [effect for effect in effects if type(effect) not in DURABLE]
        return [*rest, Persisted(persisted)] if persisted else rest

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
        return {"tables": tables, "clients": self.clients, "version": self.version}

    def _apply(self, entry: Entry) -> None:
        if entry.count or entry.forgotten:
            self.log.append(entry)
        self.version = entry.last
        for table, key, version, value in entry.rows:
            rows = self.tables.setdefault(table, {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = (version, value)
        if entry.client:
            self.clients[entry.client] = ClientRecord(entry.sequence, entry.version, entry.refused)
        self.clients.update(entry.records)
        for client in entry.forgotten:
            self.clients.pop(client, None)
