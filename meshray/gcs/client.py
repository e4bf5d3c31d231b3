"""A process's door to the control store: writes, reads, scans and watches over all shards.

*Pure.* Runs in sessions, nodes and tools. ``name`` must be new for every life of a client: shards tell by it what
was done before.

1. Every request ends once, with ``Answered``; what a shard does not answer is sent again until the timeout.
2. A write is done at most once, and exactly once unless its error says ``uncertain``.
3. Operations on one row are done in the order in which they were given here.
4. A client sees its own write in a read that it begins after the write was answered.

A process hands over all messages of the types in ``ANSWERS`` that come on its own routes (``b">" + member``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshray.gcs import limits
from meshray.gcs.reads import Ask, Reader
from meshray.gcs.requests import Answered, Link, Refused, Request, bounded_timeout_ns, silence
from meshray.gcs.rows import fault
from meshray.gcs.subscriptions import Follower, Subscription, Subscriptions
from meshray.gcs.tables import TABLES, shard_of
from meshray.gcs.writes import Piece, Writer
from meshray.machine import Received, Send, Tick, Undeliverable
from meshray.messages.gcs import (
    Changed,
    CloseClient,
    Op,
    ReadAnswered,
    Scanned,
    WatchConfirmed,
    WatchLost,
    WriteRefused,
    Written,
    WrongEpoch,
)
from meshray.messages.node import Shard

ANSWERS = (Written, WriteRefused, ReadAnswered, Scanned, Changed, WatchConfirmed, WatchLost, WrongEpoch)
"""The messages that a client takes."""


class GcsClient:
    """The machine."""

    def __init__(self, name: str, shards: list[Shard]) -> None:
        """Speak as ``name`` to ``shards``, in the order in which everybody lists them."""
        assert shards and name
        self.name = name
        self._links = [Link(shard) for shard in shards]
        self._writers = [Writer(name, link) for link in self._links]
        self._shards = list(zip(self._links, self._writers, strict=True))
        self._reader = Reader()
        self._subscriptions = Subscriptions()
        self._requests: dict[int, tuple[Request, Link]] = {}
        self._numbers = 0
        self._watches = 0
        self._wake_ns: int | None = None

    @property
    def shards(self) -> list[Shard]:
        """The chains as they are known here."""
        return [link.shard for link in self._links]

    def write(
        self, ops: list[Op], now_ns: int, *, timeout_ns: int = limits.REQUEST_TIMEOUT_NS
    ) -> tuple[int, list[Any]]:
        """Do ``ops`` (any number); return the request's number and effects. Answered with an Outcome for each. Raise
        ValueError for an operation that can never be done."""
        for op in ops:
            reason = fault(op)
            if reason is not None:
                raise ValueError(reason)
        pieces: list[tuple[int, Sequence[int]]]
        if len(self._links) == 1:
            pieces = [(0, range(len(ops)))]
        else:
            split: dict[int, list[int]] = {}
            for place, op in enumerate(ops):
                split.setdefault(shard_of(op.table, op.key, len(self._links)), []).append(place)
            pieces = list(split.items())
        request = self._begin(pieces[0][0] if pieces else 0, len(ops), now_ns, timeout_ns)
        request.is_write = True
        if not ops:
            return request.number, self._finish(request.end(), now_ns)
        waiting = 0
        for index, _ in pieces:
            waiting += self._writers[index].queued
        if waiting + len(ops) > limits.QUEUED_OPS_MAX + limits.WRITE_OPS_MAX:
            reason = f"{waiting} operations wait for the control store already: write more slowly, or use more shards"
            return request.number, self._finish(request.end(Refused(reason)), now_ns)
        effects: list[Any] = []
        for index, places in pieces:
            part = ops if len(places) == len(ops) else [ops[place] for place in places]
            effects += self._writers[index].offer(Piece(request, places, part), now_ns)
        return request.number, self._finish(effects, now_ns)

    def read(
        self, keys: list[tuple[str, bytes]], now_ns: int, *, timeout_ns: int = limits.REQUEST_TIMEOUT_NS
    ) -> tuple[int, list[Any]]:
        """Read (table, key) pairs; return the request's number and effects. Answered with a Row for each key; its
        value is None if there is none."""
        if len(self._links) == 1 and 0 < len(keys) <= limits.READ_KEYS_MAX:
            request = self._begin(0, len(keys), now_ns, timeout_ns)
            ask = Ask(request, self._links[0], now_ns, keys=list(keys), places=range(len(keys)))
            return request.number, self._finish(self._reader.ask(ask, now_ns), now_ns)
        split: dict[int, list[int]] = {}
        for place, (table, key) in enumerate(keys):
            split.setdefault(shard_of(table, key, len(self._links)), []).append(place)
        request = self._begin(next(iter(split), 0), len(keys), now_ns, timeout_ns)
        effects = [] if keys else request.end()
        for index, places in split.items():
            for start in range(0, len(places), limits.READ_KEYS_MAX):
                part = places[start : start + limits.READ_KEYS_MAX]
                ask = Ask(request, self._links[index], now_ns, keys=[keys[place] for place in part], places=part)
                effects += self._reader.ask(ask, now_ns)
        return request.number, self._finish(effects, now_ns)

    def scan(
        self, table: str, prefix: bytes, now_ns: int, *, after: bytes = b"", limit: int = 10_000,
        timeout_ns: int = limits.REQUEST_TIMEOUT_NS,
    ) -> tuple[int, list[Any]]:
        """Read the first ``limit`` rows with this key prefix and a key > ``after``, in the order of their keys; return
        the request's number and effects. Answered with the rows, and ``more`` if there are further ones."""
        _known(table)
        request = self._begin(0, 0, now_ns, timeout_ns)
        request.left = len(self._links)
        request.limit = max(1, limit)
        effects: list[Any] = []
        for link in self._links:
            effects += self._reader.ask(Ask(request, link, now_ns, table=table, prefix=prefix, after=after), now_ns)
        return request.number, self._finish(effects, now_ns)

    def watch(self, table: str, key: bytes, now_ns: int, *, prefix: bool = False) -> tuple[int, list[Any]]:
        """Follow the row ``key``, or all rows whose key starts with it; return the watch's number and effects. Told by
        RowChanged; Synced says when the present rows are complete, for the first time and after every loss."""
        _known(table)
        self._watches += 1
        links = self._links if prefix else [self._links[shard_of(table, key, len(self._links))]]
        followers = [Follower(link, {}, now_ns + limits.RESEND_NS) for link in links]
        effects = self._subscriptions.watch(Subscription(self._watches, table, key, prefix, followers))
        return self._watches, self._finish(effects, now_ns)

    def unwatch(self, watch: int) -> list[Any]:
        """End a watch."""
        return self._subscriptions.unwatch(watch)

    def close(self) -> list[Any]:
        """Say goodbye: the shards may forget this client. Call it once every request has ended."""
        used = [link for link, writer in zip(self._links, self._writers, strict=True) if writer.used]
        goodbyes = [Send(link.head(0), CloseClient(self.name, link.shard.epoch)) for link in used]
        return [*self._subscriptions.unwatch_all(), *goodbyes]

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        match event:
            case Received(route=route, message=message):
                return self._finish(self._received(route, message, now_ns), now_ns)
            case Tick():
                return self._tick(now_ns)
            case Undeliverable(route=route):
                link = self._link(route)
                if link is not None:
                    self._retry(link, now_ns + limits.RETRY_NS)
                return []
            case _:
                raise AssertionError(f"not an event of a control store client: {event!r}")

    def deadline_ns(self) -> int | None:
        """When ``Tick`` is due next; it may come to nothing."""
        return self._wake_ns

    def check(self) -> None:
        """Assert every invariant."""
        for writer in self._writers:
            writer.check()
        assert not any(request.ended for request, _ in self._requests.values())

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        return {"requests": len(self._requests), "queued_ops": sum(writer.queued for writer in self._writers),
                "watches": len(self._subscriptions), "begun": self._numbers}

    def _received(self, route: bytes, message: Any, now_ns: int) -> list[Any]:
        for link, writer in self._shards:
            if route in link.routes:
                return self._answered(link, writer, route, message, now_ns)
        for link, writer in self._shards:
            if isinstance(message, WrongEpoch) and link.was_member(route):
                return self._answered(link, writer, route, message, now_ns)
        return []

    def _answered(self, link: Link, writer: Writer, route: bytes, message: Any, now_ns: int) -> list[Any]:
        """Take what a member of one shard said."""
        match message:
            case Written():
                return writer.written(message, now_ns)
            case WriteRefused():
                return writer.refused(message, now_ns)
            case ReadAnswered():
                return self._reader.read(message, now_ns)
            case Scanned():
                return self._reader.scanned(message, now_ns)
            case Changed() | WatchConfirmed() | WatchLost():
                if isinstance(message, WatchLost):
                    self._wake(now_ns + limits.RETRY_NS)
                return self._subscriptions.received(link, route, message, now_ns)
            case WrongEpoch(shard=shard):
                newer = link.adopt(shard)
                self._retry(link, now_ns if newer else now_ns + limits.RETRY_NS, newer=newer)
                return [*link.connect(), *(self._tick(now_ns) if newer else ())]
            case _:
                return []

    def _tick(self, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        for request, link in self._requests.values():
            if request.deadline_ns <= now_ns:
                effects += request.end(silence(link, request))
        for writer in self._writers:
            effects += writer.tick(now_ns)
        effects += self._reader.tick(now_ns)
        effects += self._subscriptions.tick(now_ns)
        for link in self._links:
            effects += link.search() if link.is_silent else []
        self._forget(effects)
        due = [writer.deadline_ns() for writer in self._writers]
        due += [self._reader.deadline_ns(), self._subscriptions.deadline_ns()]
        due += [request.deadline_ns for request, _ in self._requests.values()]
        self._wake_ns = min((due_ns for due_ns in due if due_ns is not None), default=None)
        return effects

    def _begin(self, shard: int, size: int, now_ns: int, timeout_ns: int) -> Request:
        timeout_ns = bounded_timeout_ns(timeout_ns)
        self._numbers += 1
        request = Request(self._numbers, now_ns + timeout_ns, timeout_ns, size, [None] * size)
        self._requests[request.number] = (request, self._links[shard])
        self._wake(request.deadline_ns)
        return request

    def _finish(self, effects: list[Any], now_ns: int) -> list[Any]:
        """Forget the requests that have ended; wake up in time for whatever was sent."""
        self._forget(effects)
        if effects:
            self._wake(now_ns + limits.RESEND_NS)
        return effects

    def _forget(self, effects: list[Any]) -> None:
        for effect in effects:
            if type(effect) is Answered:
                self._requests.pop(effect.request, None)

    def _retry(self, link: Link, due_ns: int, *, newer: bool = False) -> None:
        """Whatever this shard has not answered is sent again at ``due_ns``; to a ``newer`` chain as for the first
        time."""
        self._writers[self._links.index(link)].retry(due_ns, newer=newer)
        self._reader.retry(link, due_ns, newer=newer)
        self._subscriptions.retry(link, due_ns, newer=newer)
        self._wake(due_ns)

    def _wake(self, due_ns: int) -> None:
        """Tick at ``due_ns`` at the latest."""
        if self._wake_ns is None or due_ns < self._wake_ns:
            self._wake_ns = due_ns

    def _link(self, route: bytes) -> Link | None:
        """Return the shard whose member is at ``route``."""
        for link in self._links:
            if route in link.routes:
                return link
        return None


def _known(table: str) -> None:
    if table not in TABLES:
        raise ValueError(f"there is no table {table!r}: use one of {', '.join(TABLES)}")
