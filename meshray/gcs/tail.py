"""What only the tail of a chain does: answers reads, tells watchers, and feeds a joiner.

*Pure.* Runs in shard servers; ``chain.ChainMember`` says when this member is the tail.

1. Everything here shows only what is durable at the tail, which is what is committed.
2. A read is answered only under a lease (``read_lease``) and only once this member has everything that was committed
   before its configuration. The value is looked up first; the lease is compared with the clock after that, when the
   answer leaves (``SendUnderLease``): a process that was stopped in between does not answer.
3. A read or watch that cannot be answered yet waits; its client would only ask the same again.
4. One joiner is fed at a time.
5. The chain hears that entries are committed a little later than their clients, in one message for all of CONFIRM_NS:
   nobody waits for it, and whoever handles it at once is in the way of the client's next Write.
"""

from __future__ import annotations

from typing import Any

from meshray.gcs import limits
from meshray.gcs.clients import Clients
from meshray.gcs.feeding import Feeder
from meshray.gcs.lives import attempt_of
from meshray.gcs.log import Committed, Entry, SendUnderLease
from meshray.gcs.read_lease import ReadLease
from meshray.gcs.removals import Removals
from meshray.gcs.tables import TABLES
from meshray.gcs.watches import Watches
from meshray.machine import Send
from meshray.messages.chain import AskReadLease, Extended, Fed, JoinChain, StreamUnknown
from meshray.messages.gcs import Read, ReadAnswered, Row, Scan, Scanned, Watch, WatchLost

_NEVER_NS = 1 << 62


class Tail:
    """The duties of a tail, with their state."""

    def __init__(self, committed: Committed, clients: Clients, version: int, now_ns: int) -> None:
        self.removals = Removals(version)
        self.watches = Watches(committed, self.removals)
        self.lease = ReadLease(now_ns)
        self.feeder: Feeder | None = None
        self._attempts: dict[str, int] = {}
        """The latest attempt of each joiner that was fed."""
        self.held: list[tuple[bytes, Read | Scan | Watch]] = []
        self.counts = dict.fromkeys(("reads", "scans", "changed", "held"), 0)
        self._committed = committed
        self._clients = clients
        self._epoch = 0
        self._others: list[str] = []
        self._version = version
        """The last that was committed here."""
        self._confirm_ns = _NEVER_NS
        """When that is to be confirmed to the predecessor."""

    def begin(self, epoch: int, others: list[str], now_ns: int) -> None:
        """A new configuration: no promise of the old one counts any more."""
        self._epoch, self._others, self._confirm_ns = epoch, others, _NEVER_NS
        self.lease.begin(others, now_ns)

    def serve(self, route: bytes, message: Read | Scan | Watch, version: int | None, now_ns: int) -> list[Any]:
        """Answer, or let it wait. ``version``: the last that is committed; None: not all of it is durable here yet."""
        if isinstance(message, Watch):
            if message.table not in TABLES:
                reason = f"there is no table {message.table!r}"
                return [Send(route, WatchLost(message.watch, message.stream, reason))]
            if version is not None:
                return list(self.watches.watch(route, message, version, now_ns))
        elif not self._others:
            return [Send(route, self._look(message))]
        elif version is not None and now_ns < (until_ns := self.lease.until_ns):
            return [SendUnderLease(route, self._look(message), until_ns)]
        if len(self.held) < limits.HELD_READS_MAX:
            self.counts["held"] += 1
            self.held.append((route, message))
        return []

    def take_held(self) -> list[tuple[bytes, Read | Scan | Watch]]:
        """Return what waits, to be served anew."""
        held, self.held = self.held, []
        return held

    def committed(self, entries: list[Entry], now_ns: int) -> list[Any]:
        """These entries are committed: tell watchers and the joiner now, and the predecessor soon."""
        effects: list[Any] = []
        for entry in entries:
            told = self.watches.feed(entry)
            self.counts["changed"] += len(told)
            effects += told
        if self.feeder is not None and entries:
            effects += self.feeder.entries(self._epoch, entries, now_ns)
            if self.feeder.is_too_far_behind:
                self.feeder = None
        if entries and self._others:
            self._version = entries[-1].last
            self._confirm_ns = min(self._confirm_ns, now_ns + limits.CONFIRM_NS)
        return effects

    def retire(self) -> tuple[list[Any], list[Entry]]:
        """Another member is the tail now: end the watches; return effects, and the entries that it may lack."""
        effects = list(self.watches.lose_all("this member is not the tail any more"))
        entries = self.feeder.unconfirmed() if self.feeder is not None else []
        self.feeder = None
        return effects, entries

    def join(self, route: bytes, message: JoinChain, version: int, now_ns: int) -> list[Any]:
        """A joiner asks for everything, as of ``version``."""
        if self.feeder is None or self.feeder.life != message.life:
            name, number = message.life.partition("/")[0], attempt_of(message.life)[1]
            if number <= self._attempts.get(name, 0) \
                    or not (self.feeder is None or self.feeder.may_go(route, message.life, now_ns)):
                # A stream that has ended must not begin again: the joiner would take its numbers for those it knows.
                return []
            self._attempts[name] = number
            self.feeder = Feeder(route, message.life, self._committed, self._clients, now_ns)
        return self.feed(route, Fed(message.life, 0), version, now_ns)

    def feed(self, route: bytes, message: Fed, version: int | None, now_ns: int) -> list[Any]:
        """The joiner has everything up to a number: send more, as of ``version``; None: this tail is wedged."""
        if self.feeder is None or self.feeder.life != message.life:
            return [Send(route, StreamUnknown(message.life, self._epoch))] if version is not None else []
        self.feeder.fed(message.number, now_ns)
        return self.feeder.more(self._epoch, version, now_ns) if version is not None else []

    @property
    def confirmed_by(self) -> str:
        """The life of the joiner that has all that this tail has; empty if there is none."""
        return self.feeder.has_confirmed if self.feeder is not None else ""

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        return {**self.counts, **self.watches.counts, "watches": len(self.watches), "removals": len(self.removals)}

    def ask_lease(self, now_ns: int) -> list[Any]:
        """Ask every other member for a promise."""
        self.lease.ask_ns = now_ns + limits.READ_LEASE_ASK_NS
        return [Send(b">" + name.encode(), AskReadLease(self._epoch, now_ns)) for name in self._others]

    def tick(self, now_ns: int) -> list[Any]:
        """Confirm, renew the lease, send the joiner again what it lacks."""
        effects = self.ask_lease(now_ns) if self._others and now_ns >= self.lease.ask_ns else []
        if now_ns >= self._confirm_ns:
            self._confirm_ns = _NEVER_NS
            effects.append(Send(b">" + self._others[-1].encode(), Extended(self._epoch, self._version)))
        return effects + (self.feeder.tick(now_ns) if self.feeder is not None else [])

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        feeder_ns = self.feeder.deadline_ns() if self.feeder is not None else None
        if not self._others:
            return feeder_ns
        due_ns = min(self.lease.ask_ns, self._confirm_ns)
        return due_ns if feeder_ns is None else min(due_ns, feeder_ns)

    def _look(self, message: Read | Scan) -> ReadAnswered | Scanned:
        """Return what is committed."""
        if isinstance(message, Scan):
            self.counts["scans"] += 1
            limit = max(1, min(message.limit, limits.SCAN_ROWS_MAX))
            return Scanned(message.cookie, *self._committed.scan(message.table, message.prefix, message.after, limit))
        self.counts["reads"] += 1
        rows: list[Row] = []
        room_bytes = limits.ANSWER_BYTES_MAX
        for table, key in message.keys[: limits.READ_KEYS_MAX]:
            found = self._committed.get(table, key)
            rows.append(Row(key, *found) if found else Row(key))
            room_bytes -= len(found[1]) if found else 0
            if room_bytes < 0:
                break
        return ReadAnswered(message.cookie, rows)
