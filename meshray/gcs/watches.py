"""Tells clients of committed changes, by key and by key prefix.

*Pure.* Runs in shard servers, at the tail of a chain.

1. A stream begins with the rows that are committed, and every later commit that touches them follows: nothing between
   the two is left out, because both happen here, one after the other.
2. The messages of a stream are numbered from 1 without gaps. A client that sees a gap begins a new stream. They say at
   which version the stream began: a server that lives anew may begin one under an old name, when a Watch comes late.
3. A stream that its client is too far behind on, does not renew, or cannot be reached for, ends; a client that can
   hear is told so. None is ever thinned out.
4. A watcher that was told everything up to some version, here or by another tail, goes on from there, as far as
   removals since then are remembered; otherwise it lost its place and gets all present rows, as at the first time.

State of a stream: (none) -- Watch received=0 --> standing -- WatchLost | Unwatch | newer stream --> (none)

Source: ZeroMQ RFC 12 (snapshot, then ordered updates).
"""

from __future__ import annotations

import msgspec

from meshray.gcs import limits
from meshray.gcs.log import Committed, Entry
from meshray.gcs.removals import Removals
from meshray.machine import Send
from meshray.messages.gcs import Changed, Row, Watch, WatchConfirmed, WatchLost

WatchId = tuple[bytes, int]
"""(route, the client's number for the watch)."""


class Stream(msgspec.Struct, eq=False):
    """One client's standing watch."""

    route: bytes
    watch: int
    stream: int
    table: str
    key: bytes
    prefix: bool
    renewed_ns: int
    begun: int
    """The version that was committed when it began."""
    number: int = 0
    received: int = 0


class Watches:
    """All standing watches of a shard."""

    def __init__(self, committed: Committed, removals: Removals) -> None:
        self._committed = committed
        self._removals = removals
        self.counts = {"watch_snapshots": 0, "watch_resumed": 0}
        self._streams: dict[WatchId, Stream] = {}
        self._by_key: dict[str, dict[bytes, dict[WatchId, Stream]]] = {}
        self._by_prefix: dict[str, dict[bytes, dict[WatchId, Stream]]] = {}

    def watch(self, route: bytes, message: Watch, version: int, now_ns: int) -> list[Send]:
        """Begin, renew or refuse a stream; ``version`` is the last that was committed."""
        stream = self._streams.get((route, message.watch))
        if stream is not None and stream.stream >= message.stream:
            if stream.stream > message.stream:
                return []
            stream.received = max(stream.received, min(message.received, stream.number))
            stream.renewed_ns = now_ns
            return [Send(route, WatchConfirmed(message.watch, message.stream, stream.number, version, stream.begun))]
        if message.received:
            return [Send(route, WatchLost(message.watch, message.stream, "the shard does not know this watch"))]
        if stream is not None:
            self._remove(stream)
        if len(self._streams) >= limits.WATCHES_MAX:
            reason = f"the shard keeps {len(self._streams)} watches already"
            return [Send(route, WatchLost(message.watch, message.stream, reason))]
        new = Stream(route, message.watch, message.stream, message.table, message.key, message.prefix, now_ns,
                     version)
        return self._begin(new, message.since, version)

    def unwatch(self, route: bytes, watch: int) -> None:
        """End a stream."""
        stream = self._streams.get((route, watch))
        if stream is not None:
            self._remove(stream)

    def feed(self, entry: Entry) -> list[Send]:
        """This entry is committed: tell whoever watches its rows."""
        if not self._streams:
            return []
        told: dict[WatchId, list[Row]] = {}
        for table, key, version, value in entry.rows:
            keys = self._by_key.get(table)
            if keys and key in keys:
                for watch_id in keys[key]:
                    told.setdefault(watch_id, []).append(Row(key, version, value))
            prefixes = self._by_prefix.get(table)
            if prefixes:
                for prefix, streams in prefixes.items():
                    if key.startswith(prefix):
                        for watch_id in streams:
                            told.setdefault(watch_id, []).append(Row(key, version, value))
        effects: list[Send] = []
        for watch_id, rows in told.items():
            stream = self._streams[watch_id]
            if stream.number - stream.received >= limits.WATCH_UNRECEIVED_MAX:
                effects.append(self._lose(stream, f"{stream.number - stream.received} messages were not acknowledged"))
            else:
                stream.number += 1
                changed = Changed(stream.watch, stream.stream, stream.number, rows, as_of=entry.last,
                                  begun=stream.begun)
                effects.append(Send(stream.route, changed))
        return effects

    def lose_all(self, reason: str) -> list[Send]:
        """End every stream."""
        return [self._lose(stream, reason) for stream in list(self._streams.values())]

    def drop_route(self, route: bytes) -> None:
        """Nobody is at ``route``: end its streams."""
        for stream in [stream for stream in self._streams.values() if stream.route == route]:
            self._remove(stream)

    def expire(self, now_ns: int) -> list[Send]:
        """End the streams that were not renewed."""
        limit_ns = now_ns - limits.WATCH_FORGET_NS
        silent = [stream for stream in self._streams.values() if stream.renewed_ns <= limit_ns]
        return [self._lose(stream, "it was not renewed in time") for stream in silent]

    def check(self) -> None:
        """Assert that both indexes hold exactly the streams."""
        indexed = {
            watch_id: stream
            for index in (*self._by_key.values(), *self._by_prefix.values())
            for streams in index.values()
            for watch_id, stream in streams.items()
        }
        assert indexed == self._streams
        assert all(stream.received <= stream.number for stream in self._streams.values())

    def __len__(self) -> int:
        return len(self._streams)

    def _begin(self, stream: Stream, since: int, version: int) -> list[Send]:
        """Send the rows that are there, page by page, and let changes follow. If the watcher was told everything up to
        ``since``, and what was removed after that is remembered, only what changed."""
        resumed = self._removals.floor <= since <= version and since > 0
        self.counts["watch_resumed" if resumed else "watch_snapshots"] += 1
        effects: list[Send] = []
        fresh = self._removed(stream, since) if resumed else []
        told, after, more = 0, b"", True
        while more:
            rows, more = self._page(stream, after)
            after = rows[-1].key if rows else after
            fresh += [row for row in rows if row.version > since] if resumed else rows
            told += len(rows)
            if told > limits.WATCH_ROWS_MAX:
                reason = f"more than {limits.WATCH_ROWS_MAX} rows of {stream.table} start with {stream.key!r}"
                return [Send(stream.route, WatchLost(stream.watch, stream.stream, reason))]
            if fresh or not more:
                stream.number += 1
                page = Changed(stream.watch, stream.stream, stream.number, fresh, True, more, resumed, version, version)
                effects.append(Send(stream.route, page))
                fresh = []
        self._streams[(stream.route, stream.watch)] = stream
        self._index(stream).setdefault(stream.key, {})[(stream.route, stream.watch)] = stream
        return effects

    def _page(self, stream: Stream, after: bytes) -> tuple[list[Row], bool]:
        """Return rows behind the key ``after``, and whether there are more."""
        if stream.prefix:
            return self._committed.scan(stream.table, stream.key, after, limits.SCAN_ROWS_MAX)
        found = self._committed.get(stream.table, stream.key)
        return [Row(stream.key, *found)] if found else [], False

    def _removed(self, stream: Stream, since: int) -> list[Row]:
        """Return the watched rows that were removed after ``since`` and are not there again."""
        gone: dict[bytes, int] = {}
        for version, table, key in self._removals.above(since):
            if table == stream.table and (key.startswith(stream.key) if stream.prefix else key == stream.key):
                gone[key] = version
        return [Row(key, version) for key, version in gone.items() if self._committed.get(stream.table, key) is None]

    def _lose(self, stream: Stream, reason: str) -> Send:
        self._remove(stream)
        return Send(stream.route, WatchLost(stream.watch, stream.stream, reason))

    def _remove(self, stream: Stream) -> None:
        watch_id = (stream.route, stream.watch)
        del self._streams[watch_id]
        index = self._index(stream)
        del index[stream.key][watch_id]
        if not index[stream.key]:
            del index[stream.key]

    def _index(self, stream: Stream) -> dict[bytes, dict[WatchId, Stream]]:
        return (self._by_prefix if stream.prefix else self._by_key).setdefault(stream.table, {})
