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

from meshray.messages.base import Message, Part
from meshray.messages.chain import Ballot, ClientRecord, Configuration, Entry, RowChange
from meshray.messages.gcs import Row

__all__ = ["ClientRecord", "Entry", "RowChange"]

class Vote(Part):
    """What an acceptor must not forget: the ballot it promised, and the value it accepted with its ballot. ``votes``
    is false on a disk that is new: what the acceptor of that name once promised may have been lost with another."""

    promised: Ballot = (0, "")
    accepted: Ballot = (0, "")
    value: Configuration | None = None
    votes: bool = False


class Persist(msgspec.Struct, frozen=True, gc=False):
    """Effect: make ``entry`` durable together with ``epoch``. Answered by Persisted, before anything else is sent."""

    entry: Entry
    epoch: int


class Persisted(msgspec.Struct, frozen=True, gc=False):
    """Event: the first ``count`` entries that were not yet known to be durable are durable."""

    count: int


class WipeDisk(msgspec.Struct, frozen=True, gc=False):
    """Effect: remove every row and client from the disk before what is persisted next, and mark it as having holes."""


class MarkWhole(msgspec.Struct, frozen=True, gc=False):
    """Effect: what is on the disk has no holes (any more), as of ``epoch``."""

    epoch: int


class KeepVote(msgspec.Struct, frozen=True, gc=False):
    """Effect: make an acceptor's state durable, synced, before anything else is sent."""

    vote: Vote


class SendUnderLease(msgspec.Struct, frozen=True, gc=False):
    """Effect: look at the clock, and send only if it is before ``until_ns``. The answer to a read was taken from the
    disk before that look, so that it holds at that moment, however long this process was stopped in between."""

    to: bytes
    message: Message
    until_ns: int


class SweepReaders(msgspec.Struct, frozen=True, gc=False):
    """Effect: free what readers that died still hold on the disk."""


class Recovered(msgspec.Struct, frozen=True):
    """What a member finds on its disk when it starts: nothing, or where it stood."""

    epoch: int = 0
    version: int = 0
    clients: dict[str, ClientRecord] = {}
    whole: bool = False
    """Whether there was something, and without holes: not a snapshot that was still coming."""


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
