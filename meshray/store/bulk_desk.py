"""What the bulk plane may serve, to whom, and where what it takes belongs.

*Pure.* Runs in the bulk thread, in simulations without one.

1. Nothing is served without a ticket, and a ticket is for one object.
2. Of an object that is being pulled, only chunks that were verified are served.
3. A chunk is written at most once, and never after its transfer has ended.
4. A complete object is served from the arena or from disk, as the last grant says.
"""

from __future__ import annotations

from meshray.store.events import BeginTransfer, EndTransfer, Grant, Revoke
from meshray.store.manifest import chunk_count, chunk_range, digest_of


class Transfer:
    """One object that is being pulled."""

    __slots__ = ("digests", "done", "number", "object", "offset", "size_bytes")

    def __init__(self, begin: BeginTransfer) -> None:
        self.number = begin.transfer
        self.object = begin.object
        self.offset = begin.offset
        self.size_bytes = begin.size_bytes
        self.digests = begin.digests
        self.done = bytearray(chunk_count(begin.size_bytes))

    def range_of(self, chunk: int) -> tuple[int, int]:
        """Return (offset in the arena, bytes) of a chunk."""
        start, size_bytes = chunk_range(chunk, self.size_bytes)
        return self.offset + start, size_bytes

    def digest(self, chunk: int) -> bytes:
        """Return the digest that the chunk must have."""
        return digest_of(self.digests, chunk)


class Desk:
    """Tickets, places and transfers."""

    def __init__(self) -> None:
        self._tickets: dict[bytes, bytes] = {}
        """Ticket -> object."""
        self._tickets_of: dict[bytes, set[bytes]] = {}
        self._places: dict[bytes, tuple[int, int]] = {}
        """Complete objects that are served from the arena -> (offset, bytes)."""
        self._on_disk: dict[bytes, bytes] = {}
        """Complete objects that are served from disk -> their joined digests."""
        self.transfers: dict[int, Transfer] = {}
        self._by_object: dict[bytes, Transfer] = {}

    # --- told by the machines ------------------------------------------------------------------------------------

    def grant(self, grant: Grant) -> None:
        """Serve an object to who shows the ticket."""
        self._tickets[grant.ticket] = grant.object
        self._tickets_of.setdefault(grant.object, set()).add(grant.ticket)
        if grant.offset >= 0:
            self._on_disk.pop(grant.object, None)
            self._places[grant.object] = (grant.offset, grant.size_bytes)
        elif grant.digests:
            self._places.pop(grant.object, None)
            self._on_disk[grant.object] = grant.digests

    def revoke(self, revoke: Revoke) -> None:
        """Serve some no more."""
        for object_ in revoke.objects:
            self._places.pop(object_, None)
            self._on_disk.pop(object_, None)
            for ticket in self._tickets_of.pop(object_, ()):
                del self._tickets[ticket]
        for ticket in revoke.tickets:
            of_object = self._tickets.pop(ticket, None)
            if of_object is not None:
                self._tickets_of[of_object].discard(ticket)

    def begin(self, begin: BeginTransfer) -> None:
        """Take chunks of an object from now on."""
        transfer = self.transfers[begin.transfer] = Transfer(begin)
        self._by_object[begin.object] = transfer

    def end(self, end: EndTransfer) -> None:
        """Take nothing more; a complete object is served like any other."""
        transfer = self.transfers.pop(end.transfer)
        if self._by_object.get(transfer.object) is transfer:
            del self._by_object[transfer.object]
        if end.complete and transfer.object in self._tickets_of:
            self._places[transfer.object] = (transfer.offset, transfer.size_bytes)

    def unreadable(self, object_: bytes) -> bool:
        """Serve the object from disk no more; False if it is not."""
        return self._on_disk.pop(object_, None) is not None

    # --- asked by the thread -------------------------------------------------------------------------------------

    def served(self, ticket: bytes, object_: bytes, chunk: int) -> tuple[int, int] | bytes | None:
        """Return where in the arena (offset, bytes) the chunk lies, or its digest if it is on disk, None if it is not
        to be had with this ticket."""
        if self._tickets.get(ticket) != object_:
            return None
        transfer = self._by_object.get(object_)
        if transfer is not None:
            here = 0 <= chunk < len(transfer.done) and transfer.done[chunk]
            return transfer.range_of(chunk) if here else None
        digests = self._on_disk.get(object_)
        if digests is not None:
            return (chunk >= 0 and digest_of(digests, chunk)) or None
        place = self._places.get(object_)
        if place is None or not 0 <= chunk < chunk_count(place[1]):
            return None
        start, size_bytes = chunk_range(chunk, place[1])
        return place[0] + start, size_bytes

    def wanted(self, object_: bytes, chunk: int) -> Transfer | None:
        """Return the transfer that still wants this chunk."""
        transfer = self._by_object.get(object_)
        if transfer is None or not 0 <= chunk < len(transfer.done) or transfer.done[chunk]:
            return None
        return transfer

    def check(self) -> None:
        """Assert that tickets and objects agree."""
        assert all(ticket in self._tickets_of[object_] for ticket, object_ in self._tickets.items())
        assert sum(map(len, self._tickets_of.values())) == len(self._tickets)
        assert not self._places.keys() & self._on_disk.keys()
        assert all(self.transfers[each.number] is each for each in self._by_object.values())
