"""What the directory remembers of an extent, of an object, and of who waits for room.

*Pure.* Used by ``directory`` and ``spill``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Protocol

from meshray import config
from meshray.messages.objects import Sealed


class Board(Protocol):
    """What the directory asks of ``pins.PinBoard``."""

    def generation(self, offset: int) -> int:
        """Return the generation that a location at ``offset`` has now."""
        ...

    def uses(self, offset: int) -> int:
        """Return how often it was pinned so far."""
        ...

    def look(self) -> Callable[[int], tuple[int, bool]]:
        """Return a function: offset -> (how often it was pinned so far, whether it is)."""
        ...

    def revoke(self, offsets: Sequence[int]) -> list[bool]:
        """Put the locations out of date; return for each whether nobody reads there."""
        ...


class NoReaders:
    """A board for a directory whose objects nobody reads in place."""

    def generation(self, offset: int) -> int:
        """Locations never get out of date."""
        return 0

    def uses(self, offset: int) -> int:
        """Nothing is pinned."""
        return 0

    def look(self) -> Callable[[int], tuple[int, bool]]:
        """Nothing is pinned."""
        return lambda offset: (0, False)

    def revoke(self, offsets: Sequence[int]) -> list[bool]:
        """Nobody reads."""
        return [True for _ in offsets]


class Entry:
    """An object that this node knows: in memory, on disk, or both."""

    __slots__ = ("busy", "digests", "extent", "freed", "held", "object", "offset", "owner", "promised_ns",
                 "promised_uses", "replica", "size_bytes", "uses")  # fmt: skip

    def __init__(self, sealed: Sealed, extent: Extent | None, *, replica: bool = False) -> None:
        self.object = sealed.object
        self.offset = sealed.offset
        """Where it lies in the arena; -1: only on disk."""
        self.size_bytes = sealed.size_bytes
        self.owner = sealed.owner
        self.extent = extent
        """The extent that it lies in; None: a range of the node's own."""
        self.replica = replica
        """A copy; the primary lies on another node."""
        self.digests = b""
        """The joined digests of its chunks on disk; empty while they are not there."""
        self.busy = False
        """The disk thread reads or writes it: memory and chunks stay until that is over."""
        self.freed = False
        """Freed while it was busy."""
        self.held = 0
        """How many of the node's own parts read it in place."""
        self.promised_ns = -1 if replica else 0
        """Until when it stays for a reader that was told of it; -1: from the next look on, as long as PROMISE_NS."""
        self.promised_uses = 0
        """How often its bucket had been pinned when the promise was given: it is kept when there was one more."""
        self.uses = -1
        """How often its bucket had been pinned at the last look; -1: never looked."""


    def is_promised(self, uses: int, now_ns: int) -> bool:
        """Whether a reader was told to come and has not been there yet; ``uses`` as the board tells."""
        if uses != self.promised_uses:
            self.promised_ns = 0
        elif self.promised_ns < 0:
            self.promised_ns = now_ns + config.PROMISE_NS
        return self.promised_ns > now_ns


class Extent:
    """A range leased to a session."""

    __slots__ = ("ends_ns", "objects", "offset", "route", "size_bytes", "starts")

    def __init__(self, offset: int, size_bytes: int, route: bytes) -> None:
        self.offset = offset
        self.size_bytes = size_bytes
        self.route = route
        self.objects: dict[int, Entry] = {}
        """Sealed objects inside, by offset."""
        self.starts: list[int] = []
        self.ends_ns = 0
        """When the lease of a process that is gone ends; 0 while it lives."""

    def add(self, entry: Entry) -> None:
        """An object was sealed inside."""
        self.objects[entry.offset] = entry
        insort(self.starts, entry.offset)

    def remove(self, offset: int) -> None:
        """The object at ``offset`` is gone from here."""
        del self.objects[offset]
        self.starts.pop(bisect_left(self.starts, offset))

    def overlaps(self, offset: int, end: int) -> bool:
        """Whether a sealed object lies in the way of a new one."""
        index = bisect_left(self.starts, offset)
        if index < len(self.starts) and self.starts[index] < end:
            return True
        if not index:
            return False
        before = self.objects[self.starts[index - 1]]
        return before.offset + before.size_bytes > offset


class Waiting:
    """Somebody who waits for room: a session for an extent, or the node itself for ``object``."""

    __slots__ = ("cookie", "deadline_ns", "need_bytes", "object", "route")

    def __init__(self, route: bytes, cookie: int, need_bytes: int, deadline_ns: int, *, object_: bytes = b"") -> None:
        self.route = route
        self.cookie = cookie
        self.need_bytes = need_bytes
        self.deadline_ns = deadline_ns
        self.object = object_
