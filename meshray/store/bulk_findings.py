"""What the bulk thread has found out and the control loop has not heard yet, and when it should hear.

*Pure.* Runs in the bulk thread; what is taken goes to the control loop.

1. Whoever hears of chunks asks for more: it must hear while enough is on its way to keep the line busy. So chunks are
   told of once no more are awaited than have come, or after BULK_TELL_NS. Anything else is told at once.
2. Chunks of one kind, object and holder are one event.

Each telling wakes the control loop, which costs more than the event itself.
"""

from __future__ import annotations

from typing import Any

from meshray import config
from meshray.store.events import ChunksArrived, ChunksBad, ChunksMissing, ChunksUnreadable, TransferEnded

Kind = type[ChunksArrived] | type[ChunksBad] | type[ChunksMissing]


class Findings:
    """A batch that grows until it is taken."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[Kind, bytes, str], list[int]] = {}
        self._others: list[TransferEnded | ChunksUnreadable] = []
        self._count = 0
        self._since_ns = 0
        self._urgent = False
        self._awaited = 0

    def asked(self, count: int) -> None:
        """So many chunks are on their way."""
        self._awaited += count

    def answered(self, count: int) -> None:
        """So many are not any more, whatever came of them."""
        self._awaited = max(0, self._awaited - count)

    def forget_asked(self) -> None:
        """Nothing is awaited: what was lost on the way is not counted for ever."""
        self._awaited = 0

    def add(self, kind: Kind, object_: bytes, holder: str, chunk: int, now_ns: int) -> None:
        """This became of a chunk."""
        if not self._count:
            self._since_ns = now_ns
        self._count += 1
        self._urgent = self._urgent or kind is not ChunksArrived
        self._chunks.setdefault((kind, object_, holder), []).append(chunk)

    def add_other(self, event: TransferEnded | ChunksUnreadable) -> None:
        """Something happened that is to be told at once."""
        self._urgent = True
        self._others.append(event)

    def due_ns(self) -> int | None:
        """Return when the control loop should hear, 0 for now, None if there is nothing to hear."""
        if self._urgent:
            return 0
        if not self._count:
            return None
        return 0 if self._count >= self._awaited else self._since_ns + config.BULK_TELL_NS

    def take(self) -> list[Any]:
        """Return the events, chunks first, and begin anew."""
        chunks, self._chunks = self._chunks, {}
        others, self._others = self._others, []
        self._count, self._urgent = 0, False
        return [*(kind(object_, holder, found) for (kind, object_, holder), found in chunks.items()), *others]
