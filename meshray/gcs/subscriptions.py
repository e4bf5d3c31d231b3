"""A client's watches: follows their streams, notices gaps, and tells each change once and in order.

*Pure.* Used by ``gcs.client``.

1. Of one row, changes are told in the order of their commits. States that a row had only between two may be left out,
   the last one never is.
2. A stream whose numbers have a gap, or which its shard has begun anew, is given up. A new one begins at whoever is the
   tail then: after the version up to which everything was told, if the tail can, otherwise with a snapshot. That is
   compared with what was told, so that rows that are gone meanwhile are told, and rows that are the same are not.
3. A watch is renewed as long as it stands: silence of the shard does not pass for silence of the rows.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray.gcs import limits
from meshray.gcs.requests import Link, RowChanged, Synced
from meshray.machine import Send
from meshray.messages.gcs import Changed, Unwatch, Watch, WatchConfirmed, WatchLost


class Follower(msgspec.Struct, eq=False):
    """One watch at one shard: where its stream stands, and the versions that were told."""

    link: Link
    told: dict[bytes, int]
    due_ns: int
    stream: int = 1
    received: int = 0
    begun: int = 0
    """Where the shard stood when the stream began; known once something was received."""
    acknowledged: int = 0
    attempt: int = 0
    snapshot: set[bytes] | None = None
    """Keys of the snapshot so far, while it comes."""
    synced: bool = False
    since: int = 0
    """Everything up to this version was told, by this stream or those before."""


class Subscription(msgspec.Struct, eq=False):
    """One watch: a key at its shard, or a prefix at every shard."""

    watch: int
    table: str
    key: bytes
    prefix: bool
    followers: list[Follower]


class Subscriptions:
    """All watches of one client."""

    def __init__(self) -> None:
        self._subscriptions: dict[int, Subscription] = {}

    def watch(self, subscription: Subscription) -> list[Any]:
        """Begin a watch."""
        self._subscriptions[subscription.watch] = subscription
        effects: list[Any] = []
        for follower in subscription.followers:
            effects += follower.link.connect()
            effects.append(self._send(subscription, follower))
        return effects

    def unwatch(self, watch: int) -> list[Any]:
        """End a watch; ending one that is not there is a no-op."""
        subscription = self._subscriptions.pop(watch, None)
        followers = subscription.followers if subscription is not None else []
        return [Send(follower.link.tail(0), Unwatch(watch)) for follower in followers]

    def unwatch_all(self) -> list[Any]:
        """End every watch."""
        return [effect for watch in list(self._subscriptions) for effect in self.unwatch(watch)]

    def received(
        self, link: Link, route: bytes, message: Changed | WatchConfirmed | WatchLost, now_ns: int
    ) -> list[Any]:
        """The shard behind ``link`` says something about a watch."""
        subscription = self._subscriptions.get(message.watch)
        follower = _follower(subscription, link)
        if subscription is None or follower is None:
            return [Send(route, Unwatch(message.watch))] if isinstance(message, Changed) else []
        if message.stream != follower.stream:
            return []
        if not isinstance(message, WatchLost) and follower.received and message.begun != follower.begun:
            # The shard lost the stream and began another of that name, or had before: their numbers mean nothing to us.
            return self._restart(subscription, follower, now_ns) if message.begun > follower.begun else []
        match message:
            case Changed():
                return self._changed(subscription, follower, message, now_ns)
            case WatchConfirmed(number=number, as_of=as_of):
                follower.attempt = 0
                follower.due_ns = now_ns + limits.WATCH_RENEW_NS
                if number > follower.received:
                    return self._restart(subscription, follower, now_ns)
                if number == follower.received and follower.synced:
                    follower.since = max(follower.since, as_of)
                return []
            case WatchLost():
                return self._restart(subscription, follower, now_ns, limits.RETRY_NS)

    def retry(self, link: Link, due_ns: int, *, newer: bool) -> None:
        """Speak to this shard again at ``due_ns``; as for the first time if its chain is ``newer``."""
        for subscription in self._subscriptions.values():
            for follower in subscription.followers:
                if follower.link is link:
                    follower.due_ns = min(follower.due_ns, due_ns)
                    if newer:
                        follower.attempt = -1

    def tick(self, now_ns: int) -> list[Any]:
        """Renew the watches that are due."""
        effects: list[Any] = []
        for subscription in self._subscriptions.values():
            for follower in subscription.followers:
                if follower.due_ns <= now_ns:
                    follower.attempt += 1
                    follower.due_ns = now_ns + limits.RESEND_NS
                    effects.append(self._send(subscription, follower))
        return effects

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due next."""
        return min((follower.due_ns for subscription in self._subscriptions.values()
                    for follower in subscription.followers), default=None)

    def __len__(self) -> int:
        return len(self._subscriptions)

    def _changed(
        self, subscription: Subscription, follower: Follower, message: Changed, now_ns: int
    ) -> list[Any]:
        if message.number <= follower.received:
            return []
        if message.number > follower.received + 1:
            return self._restart(subscription, follower, now_ns)
        follower.received, follower.begun = message.number, message.begun
        follower.attempt = 0
        follower.due_ns = max(follower.due_ns, now_ns + limits.RESEND_NS)
        effects: list[Any] = []
        told = follower.told
        for row in message.rows:
            if row.value is None:
                if told.pop(row.key, None) is None:
                    continue
            elif told.get(row.key) == row.version:
                continue
            else:
                told[row.key] = row.version
            effects.append(RowChanged(subscription.watch, subscription.table, row.key, row.version, row.value))
        if not message.more:
            follower.since = max(follower.since, message.as_of)
        if message.snapshot:
            effects += self._snapshot(subscription, follower, message)
        if follower.received - follower.acknowledged >= limits.WATCH_RECEIVED_EVERY:
            effects.append(self._send(subscription, follower))
        return effects

    def _snapshot(self, subscription: Subscription, follower: Follower, message: Changed) -> list[Any]:
        """After the last page of a snapshot: what was told and is not in it is gone."""
        seen = follower.snapshot if follower.snapshot is not None else set()
        seen.update(row.key for row in message.rows)
        follower.snapshot = seen if message.more else None
        if message.more:
            return []
        gone = [] if message.resumed else [key for key in follower.told if key not in seen]
        for key in gone:
            del follower.told[key]
        effects: list[Any] = [
            RowChanged(subscription.watch, subscription.table, key, 0, None) for key in gone
        ]
        follower.synced = True
        if all(other.synced for other in subscription.followers):
            effects.append(Synced(subscription.watch))
        return effects

    def _restart(
        self, subscription: Subscription, follower: Follower, now_ns: int, pause_ns: int = 0
    ) -> list[Any]:
        """Give up the stream and begin a new one, now or after a pause."""
        follower.stream += 1
        follower.received = follower.acknowledged = 0
        follower.snapshot = None
        follower.synced = False
        follower.due_ns = now_ns + (pause_ns or limits.RESEND_NS)
        return [] if pause_ns else [self._send(subscription, follower)]

    def _send(self, subscription: Subscription, follower: Follower) -> Send:
        follower.acknowledged = follower.received
        watch = Watch(
            subscription.watch, follower.stream, follower.link.shard.epoch, subscription.table, subscription.key,
            subscription.prefix, follower.received, 0 if follower.received else follower.since,
        )
        return Send(follower.link.tail(follower.attempt), watch)


def _follower(subscription: Subscription | None, link: Link) -> Follower | None:
    """Return the part of a watch that is at this shard."""
    if subscription is None:
        return None
    return next((follower for follower in subscription.followers if follower.link is link), None)
