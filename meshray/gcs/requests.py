"""What a client has asked for and how it ends, and the shards it asks.

*Pure.* Used by ``gcs.client`` in sessions, nodes and tools.

1. A request ends exactly once, with ``Answered``: with its results, or with an error that is a value.
2. A link's epoch only grows.
3. When all members that a link knows are silent, those of earlier chains are asked what the chain is now: while this
   process heard nothing, every member may have been replaced.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray.gcs import limits
from meshray.gcs.tables import AnyRow, decode
from meshray.machine import Connect, Disconnect, Send
from meshray.messages.chain import FollowShard
from meshray.messages.node import Shard


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """Result of one operation. ``ok``: it was done, and the row has ``version``. Otherwise the row is as it is:
    ``version`` (0: there is none) and ``value`` (None if it is too large for the answer: read it)."""

    ok: bool
    version: int
    value: bytes | None = None


class Refused(msgspec.Struct, frozen=True):
    """Error: nothing of what was asked in the same message was done, nor will be; ``reason`` says what to change."""

    reason: str


class Unanswered(msgspec.Struct, frozen=True):
    """Error: the shard was silent until the timeout. ``uncertain``: a write may have been done, or still be."""

    reason: str
    uncertain: bool


class Answered(msgspec.Struct, frozen=True):
    """Effect: the end of a request. ``results``: an Outcome for each operation of a write, a Row for each key of a
    read, the rows of a scan (``more``: there are further ones); empty if there is an ``error``."""

    request: int
    results: list[Any]
    error: Refused | Unanswered | None = None
    more: bool = False


class RowChanged(msgspec.Struct, frozen=True, gc=False):
    """Effect: a watched row is now this. ``value`` None: it is gone (``version`` 0: when, was not seen)."""

    watch: int
    table: str
    key: bytes
    version: int
    value: bytes | None

    def row(self, kind: type[AnyRow]) -> AnyRow | None:
        """Return the typed row, None if it is gone; raise BadRow."""
        return None if self.value is None else decode(self.value, kind)


class Synced(msgspec.Struct, frozen=True, gc=False):
    """Effect: everything that ``watch`` covers has been told by RowChanged, also what is not there."""

    watch: int


class Request(msgspec.Struct, eq=False):
    """A request that has not ended. ``left`` counts the operations, keys or shards that are still to be answered."""

    number: int
    deadline_ns: int
    timeout_ns: int
    left: int
    results: list[Any]
    limit: int = 0
    more: bool = False
    is_write: bool = False
    sent: bool = False
    ended: bool = False

    def end(self, error: Refused | Unanswered | None = None) -> list[Any]:
        """End it, if it has not ended."""
        if self.ended:
            return []
        self.ended = True
        return [Answered(self.number, [] if error else self.results, error, self.more)]


class Link:
    """One shard as a client knows it."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.routes = _routes(shard)
        """Those of the members, head first."""
        self._connected: set[tuple[str, str]] = set()
        self._followed = -1
        self._former: dict[str, str] = {}
        """Who was a member before, the latest last: name -> endpoint."""
        self.is_silent = False
        """Whether somebody was asked in vain since ``search``."""

    def head(self, attempt: int) -> bytes:
        """Return the route for a write; from the third attempt on the other members are asked in turn, who tell of a
        newer chain."""
        self.is_silent |= attempt > 1
        return self.routes[max(0, attempt - 1) % len(self.routes)]

    def tail(self, attempt: int) -> bytes:
        """Return the route for everything else."""
        self.is_silent |= attempt > 1
        return self.routes[(-1 - max(0, attempt - 1)) % len(self.routes)]

    def connect(self) -> list[Any]:
        """Return the effects that make all members' routes valid, and let those of a chain that may change tell us when
        it does; nothing when that was done for this epoch."""
        if self._followed == self.shard.epoch:
            return []
        self._followed = self.shard.epoch
        members = self.shard.members
        # A dialog with somebody who left is closed: should they come back, one that is opened then works at once, while
        # this one would wait longer from attempt to attempt.
        effects: list[Any] = [Disconnect(name) for name, _ in self._connected.difference(members)]
        effects += [Connect(*member) for member in members if member not in self._connected]
        self._connected = set(members)
        return effects + self.follow()

    def follow(self) -> list[Any]:
        """Return the effects that let all members of a chain that may change tell us when it does, or has: also those
        that know us already, since they may be new processes under an old name."""
        if len(self.routes) == 1 and self.shard.epoch <= 1:
            return []
        return [Send(route, FollowShard(self.shard.epoch)) for route in self.routes]

    def adopt(self, shard: Shard) -> bool:
        """Take over a newer configuration; return whether it is one."""
        if shard.epoch <= self.shard.epoch or not shard.members:
            return False
        self._former |= dict(self.shard.members)
        for name, _ in shard.members:
            self._former.pop(name, None)
        for name in list(self._former)[:-limits.FORMER_MEMBERS_MAX]:
            del self._former[name]
        self.shard, self.routes = shard, _routes(shard)
        return True

    def search(self) -> list[Any]:
        """Return the effects of asking those who were members before."""
        self.is_silent = False
        self._connected.update(self._former.items())
        effects: list[Any] = [Connect(name, endpoint) for name, endpoint in self._former.items()]
        return effects + [Send(b">" + name.encode(), FollowShard(self.shard.epoch)) for name in self._former]

    def was_member(self, route: bytes) -> bool:
        """Whether the route leads to a member of an earlier chain."""
        return route.removeprefix(b">").decode(errors="replace") in self._former

    @property
    def names(self) -> str:
        """The members, for people to read."""
        return ", ".join(name for name, _ in self.shard.members)


def _routes(shard: Shard) -> list[bytes]:
    return [b">" + name.encode() for name, _ in shard.members]


def silence(link: Link, request: Request) -> Unanswered:
    """Return the error of a request that has waited long enough."""
    return Unanswered(
        f"control store shard {link.names} has not answered for {request.timeout_ns / 1e9:g} s: look at its log, and "
        "whether its process and this one are running", request.is_write and request.sent)


def bounded_timeout_ns(timeout_ns: int) -> int:
    """Return a timeout that is within what the shards' memory of clients allows."""
    return min(timeout_ns, limits.REQUEST_TIMEOUT_MAX_NS)
