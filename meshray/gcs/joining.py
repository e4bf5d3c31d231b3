"""A server on its way into a chain: takes the tail's stream onto its disk until it has everything.

*Pure.* Runs in shard servers that are in no chain.

1. A joiner begins with an empty disk: what an earlier life left there may have a history that the chain dropped.
2. The stream is taken in the order of its numbers; what was skipped is sent again. It is confirmed when it is durable.
3. A joiner that hears nothing, or whose tail is not the tail any more, begins again under another name for the attempt.
   Once it is whole, a chain may name it, and its disk may be the last: then it begins again only when a tail that is
   not about to be replaced says that it does not know the stream, or when the chain has another tail, which cannot have
   confirmed it.

State: asking -- Feed 1 --> filling -- Feed whole --> whole, and follows the tail until a configuration names it
"""

from __future__ import annotations

from typing import Any

from meshray.gcs import limits
from meshray.gcs.log import MarkWhole, Persist, Recovered, WipeDisk
from meshray.machine import Connect, Disconnect, Send
from meshray.messages.chain import ClientRecord, Entry, Fed, Feed, JoinChain
from meshray.messages.node import Shard


class Joiner:
    """One attempt."""

    def __init__(self, shard: Shard, feeder: str, life: str, attempt: int, now_ns: int) -> None:
        """Join behind the tail of ``shard``, in its life ``feeder``; ``attempt`` must be new for this ``life``."""
        self.shard = shard
        self.feeder = feeder
        self.attempt = f"{life}/{attempt}"
        self.whole = False
        self._clients: dict[str, ClientRecord] = {}
        self._version = 0
        self._number = 0
        self._due_ns = now_ns
        self._heard_ns = now_ns

    @property
    def tail(self) -> str:
        """Whom this joins."""
        return self.shard.members[-1][0]

    @property
    def recovered(self) -> Recovered:
        """What is on the disk now."""
        return Recovered(self.shard.epoch, self._version, self._clients, True)

    def begin(self, now_ns: int) -> list[Any]:
        """Empty the disk and ask the tail."""
        name, endpoint = self.shard.members[-1]
        self._due_ns = now_ns + limits.FEED_RESEND_NS
        return [WipeDisk(), Disconnect(name), Connect(name, endpoint), self._ask()]

    def feed(self, message: Feed, now_ns: int) -> list[Any]:
        """Take the next piece of the stream."""
        if message.life != self.attempt:
            return []
        self._heard_ns = now_ns
        if message.number != self._number + 1:
            return [self._fed()] if message.number <= self._number else []
        self._number += 1
        effects: list[Any] = []
        for entry in message.entries:
            self._take(entry)
            effects.append(Persist(entry, message.epoch))
        if message.whole and not self.whole:
            # On the disk before anybody hears of it: once a chain names this server, its disk may be the last one.
            self.whole = True
            effects.append(MarkWhole(message.epoch))
        return [*effects, self._fed()]

    def tick(self, now_ns: int) -> list[Any] | None:
        """Ask again if the tail has not begun, or is silent; None if this attempt has failed."""
        is_silent = now_ns - self._heard_ns >= limits.JOIN_RETRY_NS
        if is_silent and not self.whole:
            return None
        if now_ns < self._due_ns:
            return []
        self._due_ns = now_ns + limits.FEED_RESEND_NS
        if is_silent:
            return [self._fed()]
        return [self._ask()] if not self._number else []

    def go_on(self, shard: Shard) -> list[Any]:
        """The chain is new, and has the same tail: ask whether it still has the stream."""
        self.shard = shard
        return [self._fed()]

    def deadline_ns(self) -> int:
        """When ``tick`` is due."""
        return self._due_ns

    def _ask(self) -> Send:
        return Send(b">" + self.tail.encode(), JoinChain(self.attempt, self.feeder))

    def _fed(self) -> Send:
        """Confirm. It leaves after what this turn persists, like everything."""
        return Send(b">" + self.tail.encode(), Fed(self.attempt, self._number))

    def _take(self, entry: Entry) -> None:
        self._version = entry.last
        self._clients.update(entry.records)
        if entry.client:
            self._clients[entry.client] = ClientRecord(entry.sequence, entry.version, entry.refused)
        for client in entry.forgotten:
            self._clients.pop(client, None)
