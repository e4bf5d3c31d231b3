"""The board: who reads which part of the arena, and which locations are out of date, in counters that all may see.

*Shell (shared memory).* ``Pins`` runs in every session, ``PinBoard`` in the node.

A reader pins without asking the node, and the node takes memory away without asking the readers:

1. The board has one *generation* per bucket of the arena, written by the node, and per session two counters per bucket,
   ``made`` and ``gone``, written by that session alone. Buckets are ranges of offsets; an object belongs to the bucket
   where it starts.
2. A reader counts its pin first and then compares the generation with that of the location it has. If they differ, it
   unpins and asks the node where the object is.
3. The node raises the generation first, then makes all readers' writes visible (``fence``), then reads their counters:
   ``gone`` before ``made``, so that what happens in between can only make a bucket look pinned. An object is moved or
   dropped only if its bucket has no pin. So of a reader and the node at least one sees the other (Dekker).
4. A process that ends takes its pins with it: the node clears its counters.

Objects that share a bucket share their fate: a pinned neighbour keeps an object in place, a moved one makes readers ask
once more.

Source: Dekker's algorithm with an asymmetric fence, membarrier(2); hazard pointers (Michael 2004).
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from meshray import config
from meshray.store.arena_file import ArenaFile, fence, register_for_fences

_WORD_BYTES = 4
_TABLE_BYTES = _WORD_BYTES * config.PIN_BUCKETS
_PAGE_PAIRS = config.PAGE_BYTES // (2 * _WORD_BYTES)
_WORD_MASK = 0xFFFF_FFFF
_LIVE: weakref.WeakSet[Pins] = weakref.WeakSet()


def bucket_shift(capacity_bytes: int) -> int:
    """Return the number of bits by which an offset is shifted to give its bucket."""
    return max(0, (max(capacity_bytes - 1, 0) // config.PIN_BUCKETS).bit_length())


def _slot_start(slot: int) -> int:
    return _TABLE_BYTES * (2 * slot - 1)


class Pins:
    """One session's pins. Thread-safe."""

    def __init__(self, file: ArenaFile, slot: int) -> None:
        """``slot`` (from 1) is given by the node."""
        self._file = file
        self._start = _slot_start(slot)
        self._shift = bucket_shift(file.size_bytes)
        self._generations: Any = file.board(0, _TABLE_BYTES)
        self._counts: Any = file.board(self._start, 2 * _TABLE_BYTES)
        self._backed = bytearray(config.PIN_BUCKETS // _PAGE_PAIRS)
        self._lock = Lock()
        self._gone: deque[int] = deque()
        """Buckets of views that died while the lock was taken."""
        _LIVE.add(self)

    def generation(self, offset: int) -> int:
        """Return the generation that a location at ``offset`` has now."""
        found: int = self._generations[offset >> self._shift]
        return found

    def view(self, offset: int, size_bytes: int, generation: int | None, keep: Any) -> memoryview | None:
        """Return a read-only view that pins its bucket and keeps ``keep`` alive; None if the location is out of date.

        ``generation`` None: the range is known to be ours. Raise OSError (ENOSPC) when the board gets no memory."""
        bucket = offset >> self._shift
        if not self._backed[bucket // _PAGE_PAIRS]:
            self._back(bucket // _PAGE_PAIRS)
        counts = self._counts
        made = bucket + bucket
        with self._lock:
            counts[made] = counts[made] + 1 & _WORD_MASK
        if generation is not None and self._generations[bucket] != generation:
            self._release(bucket)
            return None
        try:
            view = self._file.pin(offset, size_bytes, self._release, bucket, keep)
        except ValueError:
            self._release(bucket)
            raise
        if self._gone:
            self._settle()
        return view

    def _back(self, page: int) -> None:
        register_for_fences()
        self._file.back_board(self._start + page * config.PAGE_BYTES, config.PAGE_BYTES)
        self._backed[page] = 1

    def _release(self, bucket: int) -> None:
        # Called by destructors, perhaps in a thread that holds the lock: then whoever holds it looks again.
        if self._lock.acquire(False):
            try:
                counts = self._counts
                gone = bucket + bucket + 1
                counts[gone] = counts[gone] + 1 & _WORD_MASK
            finally:
                self._lock.release()
        else:
            self._gone.append(bucket)
        if self._gone:
            self._settle()

    def _settle(self) -> None:
        counts = self._counts
        while self._gone and self._lock.acquire(False):
            try:
                while self._gone:
                    gone = 2 * self._gone.popleft() + 1
                    counts[gone] = counts[gone] + 1 & _WORD_MASK
            finally:
                self._lock.release()

    def statistics(self) -> dict[str, int]:
        """Return how many views there are."""
        counts = self._counts.tolist()
        return {"pins": sum(counts[::2]) - sum(counts[1::2])}

    def close(self) -> None:
        """Let go of the board, unless views are still about: then it goes with the last of them."""
        self._settle()
        _LIVE.discard(self)
        pages = [page for page, backed in enumerate(self._backed) if backed]
        if all(self._counts[at] == self._counts[at + 1] for page in pages
               for at in range(2 * page * _PAGE_PAIRS, 2 * (page + 1) * _PAGE_PAIRS, 2)):
            self._generations.release()
            self._counts.release()

    def leave_to_parent(self) -> None:
        """In a forked child: views that die here are the parent's, so nothing is counted."""
        self._counts = [0] * (2 * config.PIN_BUCKETS)
        self._lock = Lock()


def _in_child() -> None:
    for pins in _LIVE:
        pins.leave_to_parent()


os.register_at_fork(after_in_child=_in_child)


class PinBoard:
    """The node's side."""

    def __init__(self, file: ArenaFile) -> None:
        """Raise OSError (ENOSPC) when the board gets no memory."""
        self._file = file
        self._shift = bucket_shift(file.size_bytes)
        file.back_board(0, _TABLE_BYTES)
        self._generations: Any = file.board(0, _TABLE_BYTES)
        self._used: dict[int, bool] = {}
        """Slots that were given out -> whether their session is still about."""

    # --- slots ---------------------------------------------------------------------------------------------------

    def give_slot(self) -> int:
        """Return a slot for a new session, 0 if there is none."""
        for slot in range(1, config.PIN_SLOTS_MAX + 1):
            if slot not in self._used or (not self._used[slot] and self._is_balanced(slot)):
                self.clear_slot(slot)
                self._used[slot] = True
                return slot
        return 0

    def leave_slot(self, slot: int) -> None:
        """The session is gone, but its process may still read."""
        if slot in self._used:
            self._used[slot] = False

    def clear_slot(self, slot: int) -> None:
        """The process is gone."""
        self._used.pop(slot, None)
        self._file.clear_board(_slot_start(slot), 2 * _TABLE_BYTES)

    def _is_balanced(self, slot: int) -> bool:
        counts = memoryview(self._file.read_board(_slot_start(slot), 2 * _TABLE_BYTES)).cast("I").tolist()
        return counts[::2] == counts[1::2]

    # --- what the directory asks ---------------------------------------------------------------------------------

    def generation(self, offset: int) -> int:
        """Return the generation that a location at ``offset`` has now."""
        found: int = self._generations[offset >> self._shift]
        return found

    def uses(self, offset: int) -> int:
        """Return how often a bucket was pinned so far."""
        bucket = offset >> self._shift
        return sum(int.from_bytes(self._file.read_board(_slot_start(slot) + 2 * _WORD_BYTES * bucket, _WORD_BYTES),
                                  "little") for slot in self._used)

    def look(self) -> Callable[[int], tuple[int, bool]]:
        """Return a function that tells, as of now, how often a bucket was pinned so far, and whether it is."""
        tables = [memoryview(self._file.read_board(_slot_start(slot), 2 * _TABLE_BYTES)).cast("I")
                  for slot in self._used]
        shift = self._shift

        def at(offset: int) -> tuple[int, bool]:
            index = 2 * (offset >> shift)
            uses, pinned = 0, False
            for table in tables:
                made = table[index]
                if made:
                    uses += made
                    pinned = pinned or made != table[index + 1]
            return uses, pinned

        return at

    def revoke(self, offsets: Sequence[int]) -> list[bool]:
        """Put the locations at ``offsets`` out of date; return for each whether nobody reads there."""
        buckets = [offset >> self._shift for offset in offsets]
        for bucket in buckets:
            self._generations[bucket] = (self._generations[bucket] + 1) & _WORD_MASK
        fence()
        return [not any(self._is_pinned(slot, bucket) for slot in self._used) for bucket in buckets]

    def _is_pinned(self, slot: int, bucket: int) -> bool:
        at = _slot_start(slot) + 2 * _WORD_BYTES * bucket
        gone = self._file.read_board(at + _WORD_BYTES, _WORD_BYTES)
        return self._file.read_board(at, _WORD_BYTES) != gone

    def close(self) -> None:
        """Let go of the board."""
        self._generations.release()
