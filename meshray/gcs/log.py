"""What a Write becomes: the entry of a shard's history, and the effects and events that carry it to the disk.

*Pure.* Runs in shard servers.

1. Entries are dense: an entry begins at the version after the last of its predecessor.
2. An entry says what changes, not what was asked: whoever applies it decides nothing. It can therefore be handed down
   a chain as it is.
3. Rows, the client's record and the epoch of one entry are durable together or not at all.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from meshray.messages.base import Part
from meshray.messages.gcs import Refusal, Row

RowChange = tuple[str, bytes, int, bytes | None]
"""(table, key, version, value); value None removes the row. A tuple, because a struct per row costs twice as much."""


class Entry(Part):
    """One step of a shard's history: ``count`` operations from ``version`` on, asked for by ``client`` as its Write
    ``sequence``. Without a client it only forgets the clients in ``forgotten``."""

    version: int
    count: int
    client: str
    sequence: int
    rows: list[RowChange]
    refused: list[Refusal]
    forgotten: tuple[str, ...] = ()

    @property
    def last(self) -> int:
        """The last version that this entry uses."""
        return self.version + self.count - 1


class ClientRecord(Part):
    """The last Write of a client that was done, and its answer."""

    sequence: int
    version: int
    refused: list[Refusal]


class Persist(msgspec.Struct, frozen=True, gc=False):
    """Effect: make ``entry`` durable together with ``epoch``. Answered by Persisted, before anything else is sent."""

    entry: Entry
    epoch: int


class Persisted(msgspec.Struct, frozen=True, gc=False):
    """Event: the first ``count`` entries that were not yet known to be durable are durable."""

    count: int


class SweepReaders(msgspec.Struct, frozen=True, gc=False):
    """Effect: free what readers that died still hold on the disk."""


class Recovered(msgspec.Struct, frozen=True):
    """What a member finds on its disk when it starts: nothing, or where it stood."""

    epoch: int = 0
    version: int = 0
    clients: dict[str, ClientRecord] = {}


class Facts(msgspec.Struct, frozen=True):
    """What the disk says of itself."""

    rows: dict[str, int]
    used_bytes: int
    file_bytes: int
    map_bytes: int
    durability: str


class Committed(Protocol):
    """Read-only view of the rows that are durable. A table or key that cannot be is one without rows."""

    def get(self, table: str, key: bytes) -> tuple[int, bytes] | None:
        """Return (version, value) of a row, or None."""
        ...

    def scan(self, table: str, prefix: bytes, after: bytes, limit: int) -> tuple[list[Row], bool]:
        """Return at most ``limit`` rows and ANSWER_BYTES_MAX bytes with ``prefix`` and key > ``after``, and whether
        there are more."""
        ...

    def facts(self) -> Facts:
        """Return row counts and sizes."""
        ...
