"""A session's side of the arena: room for objects without a round trip.

*Shell (threads).* Runs in drivers and workers; any thread may call it.

1. A session allocates only inside extents that the node leased to it; the lock is never held while it asks for one,
   copies or populates.
2. ``allocate`` returns a range that is populated already: what follows cannot fail for want of memory.
3. Each range is released exactly once: by ``release`` if the node never heard of its object, else by ``ranges_freed``,
   when the node reports that the object was freed or has left memory.

Source: DESIGN s6; thread caches in front of a central heap, as in tcmalloc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

from meshray import config
from meshray.store.allocator import Ranges
from meshray.store.arena_file import ArenaFile

RequestExtent = Callable[[int], tuple[int, int, int] | None]
"""Takes bytes; blocks; returns (offset, bytes, populated bytes), or None if ranges of ours were freed that are large
enough, or raises ObjectStoreFullError."""


class ArenaClient:
    """Allocates inside leased extents."""

    def __init__(self, file: ArenaFile, request_extent: RequestExtent) -> None:
        """``request_extent(size_bytes)`` asks the node for an extent and blocks until it answered."""
        self.file = file
        self._request_extent = request_extent
        self._ranges = Ranges()
        self._lock = Lock()

    def allocate(self, size_bytes: int) -> int:
        """Return the offset of a populated range. Raise ObjectStoreFullError, or OSError if shared memory ran out."""
        with self._lock:
            offset = self._ranges.allocate(size_bytes)
        if offset is None:
            offset = self._allocate_more(size_bytes)
        try:
            self.file.populate(offset, size_bytes)
        except OSError:
            self.release(offset)
            raise
        return offset

    def _allocate_more(self, size_bytes: int) -> int:
        while True:
            refusal: Exception | None = None
            extent = None
            try:
                extent = self._request_extent(size_bytes)
            except Exception as error:
                refusal = error
            with self._lock:
                if extent is not None:
                    start, extent_bytes, populated_bytes = extent
                    self._ranges.add(start, extent_bytes, warm_bytes=populated_bytes)
                # After a refusal too: ranges of ours may have been freed while we waited for the answer.
                offset = self._ranges.allocate(size_bytes)
            if offset is not None:
                return offset
            if refusal is not None:
                raise refusal

    def has_room(self, size_bytes: int) -> bool:
        """Whether ``allocate`` needs no extent."""
        with self._lock:
            return self._ranges.has_room(size_bytes)

    def write(self, offset: int, pieces: Iterable[tuple[int, Any]]) -> None:
        """Copy ``pieces`` (offset relative to ``offset``, buffer) into the arena, as ``Layout.pieces`` yields them."""
        write = self.file.write
        for relative, buffer in pieces:
            write(offset + relative, buffer)

    def release(self, offset: int) -> bool:
        """Free the range of ours at ``offset``. False if it is not ours: then the node tells its lessee."""
        with self._lock:
            if self._ranges.size_of(offset) is None:
                return False
            self._ranges.free(offset)
        return True

    def ranges_freed(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Free ranges (offset, bytes) inside our extents, as the node reports them."""
        for offset, _ in ranges:
            self.release(offset)

    def surplus(self, *, everything: bool = False) -> list[int]:
        """Give up extents that hold nothing and return their offsets, for ReturnExtents.

        Call it now and then: an extent goes when it was empty at two calls in a row, and one of the usual size is kept.
        ``everything``: all that are empty, for SurplusWanted."""
        with self._lock:
            return self._ranges.surplus(config.EXTENT_BYTES, everything=everything)

    def populate_ahead(self) -> int:
        """Populate the next block that allocation will reach; return the bytes populated, 0 if far enough ahead.

        For a background thread, called until it returns 0. As much is prepared as an extent has used so far."""
        with self._lock:
            tails = list(self._ranges.tails())
        for start, fresh, end in tails:
            stop = min(end, fresh + (fresh - start))
            for block in range(fresh, stop, config.POPULATE_BLOCK_BYTES):
                done_bytes = self.file.populate(block, min(config.POPULATE_BLOCK_BYTES, stop - block))
                if done_bytes:
                    return done_bytes
        return 0

    def statistics(self) -> dict[str, int]:
        """Return sizes for ``status`` and tests."""
        with self._lock:
            return {"leased_bytes": self._ranges.capacity_bytes, "used_bytes": self._ranges.used_bytes}

    def check(self) -> None:
        """Assert the allocator's invariants."""
        with self._lock:
            self._ranges.check()
