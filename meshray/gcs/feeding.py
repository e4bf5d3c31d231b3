"""How the tail brings a joiner up to date while the chain keeps taking writes.

*Pure.* Runs in shard servers, at the tail.

1. One numbered stream carries pieces of a snapshot and, between them, every new entry, in the order in which the tail
   has them. A piece is what the tail has of a range of keys at its place in the stream; rows beyond that range that
   entries change early come again with their own piece, rows before it are kept right by the entries. So when the last
   piece has come, the joiner has exactly what the tail has, without a long read transaction on either disk.
2. A piece is sent when the joiner has the one before on its disk; entries are sent at once, and kept until the joiner
   has confirmed them. A joiner that falls too far behind is dropped, and begins again. Of tail and joiner thus only one
   works on the snapshot at a time: with more pieces on the way both are busy all the time, and on a machine that they
   share, whoever uses the chain waits for a CPU behind them.
3. When the joiner becomes the successor, what it has not confirmed is the sent list that chain replication wants.

Departure: OSDI'04 s3.3 stops at "forward the history first"; a history grows without bound, so here it is the state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from meshray.gcs import limits
from meshray.gcs.clients import Clients
from meshray.gcs.lives import attempt_of
from meshray.gcs.log import Committed
from meshray.gcs.tables import TABLES
from meshray.machine import Send
from meshray.messages.chain import ClientRecord, Entry, Feed, RowChange


class Feeder:
    """One joiner's stream."""

    def __init__(self, route: bytes, life: str, committed: Committed, clients: Clients, now_ns: int) -> None:
        self.route = route
        self.life = life
        self._committed = committed
        self._clients = clients
        self._names = clients.names()
        self._places = [(table, b"") for table in reversed(TABLES)]
        """Tables that are not done, the present one last, each with the key after which to go on."""
        self._unfed: deque[Feed] = deque()
        self._number = 0
        self._piece_number = 0
        """The number of the last piece."""
        self._bytes = 0
        self._whole = False
        self._due_ns = self._heard_ns = now_ns

    def entries(self, epoch: int, entries: list[Entry], now_ns: int) -> list[Any]:
        """These entries are durable at the tail: hand them on."""
        return [self._feed(epoch, entries, now_ns)]

    def more(self, epoch: int, version: int, now_ns: int) -> list[Any]:
        """Send the next piece of the snapshot, as of ``version``, if the joiner has the last one."""
        if self._whole or not self._has_piece:
            return []
        piece = self._piece(version)
        self._whole = not self._names and not self._places
        feed = self._feed(epoch, [piece], now_ns)
        self._piece_number = self._number
        return [feed]

    def fed(self, number: int, now_ns: int) -> None:
        """The joiner has everything up to ``number``."""
        self._heard_ns = now_ns
        while self._unfed and self._unfed[0].number <= number:
            self._bytes -= _bytes(self._unfed.popleft())
            self._due_ns = now_ns + limits.FEED_RESEND_NS

    def tick(self, now_ns: int) -> list[Any]:
        """Send again what was not confirmed in time."""
        if not self._unfed or now_ns < self._due_ns:
            return []
        self._due_ns = now_ns + limits.FEED_RESEND_NS
        return [Send(self.route, feed) for feed in islice(self._unfed, limits.SNAPSHOT_RESENDS)]

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return self._due_ns if self._unfed else None

    @property
    def has_all(self) -> bool:
        """Whether the joiner has confirmed the whole snapshot, so that the next chain may be planned with it."""
        return self._whole and self._has_piece

    @property
    def _has_piece(self) -> bool:
        return not self._unfed or self._unfed[0].number > self._piece_number

    @property
    def has_confirmed(self) -> str:
        """The life of the joiner that has all that this tail has; empty if it may lack something."""
        return self.life.partition("/")[0] if self._whole and not self._unfed else ""

    def may_go(self, route: bytes, life: str, now_ns: int) -> bool:
        """Whether another attempt, from ``route``, may take the place of this one: a later one of the same server, or
        any when this one is silent."""
        is_later = route == self.route and attempt_of(life) > attempt_of(self.life)
        return is_later or now_ns - self._heard_ns > 2 * limits.JOIN_RETRY_NS

    @property
    def is_too_far_behind(self) -> bool:
        """Whether the joiner has to begin again."""
        return self._bytes > limits.FEED_BYTES_MAX

    def unconfirmed(self) -> list[Entry]:
        """Return the entries that the joiner may lack, once it has the whole snapshot."""
        return [entry for feed in self._unfed for entry in feed.entries if entry.count]

    def _feed(self, epoch: int, entries: list[Entry], now_ns: int) -> Send:
        if not self._unfed:
            self._due_ns = now_ns + limits.FEED_RESEND_NS
        self._number += 1
        feed = Feed(self.life, self._number, epoch, entries, self._whole)
        self._unfed.append(feed)
        self._bytes += _bytes(feed)
        return Send(self.route, feed)

    def _piece(self, version: int) -> Entry:
        """Return the next piece: records of clients first, then the rows of one table after the other."""
        if self._names:
            taken, self._names = self._names[: limits.SNAPSHOT_CHUNK_ROWS], self._names[limits.SNAPSHOT_CHUNK_ROWS :]
            return Entry(version + 1, 0, "", 0, [], [], records=tuple(self._records(taken)))
        changes: list[RowChange] = []
        more = False
        while self._places and not more:
            table, after = self._places.pop()
            rows, more = self._committed.scan(table, b"", after, limits.SNAPSHOT_CHUNK_ROWS - len(changes))
            changes += [(table, row.key, row.version, row.value) for row in rows]
            if more:
                self._places.append((table, rows[-1].key if rows else after))
        return Entry(version + 1, 0, "", 0, changes, [])

    def _records(self, names: list[str]) -> Iterator[tuple[str, ClientRecord]]:
        for name in names:
            record = self._clients.record(name)
            if record is not None:
                yield name, record


def _bytes(feed: Feed) -> int:
    return sum([len(value) for entry in feed.entries for _, _, _, value in entry.rows if value])
