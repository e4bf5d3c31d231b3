"""A member of a shard's chain: orders writes, makes them durable, answers, and tells watchers.

*Pure.* Runs in shard servers (``processes.shard``).

1. Writes are decided at the head, in the order of their arrival; their entries have dense versions.
2. Nothing is answered or told before it is durable (``Persisted``), and Persisted comes in the order of ``Persist``.
3. Reads and watches are served at the tail, from what is durable: nobody sees what a crash could take back.
4. A Write is done once, however often it is sent (``clients``).
5. A message of another epoch, or for another role, changes nothing; the sender is told the chain as it is known here.

A member alone is head and tail: what it persisted is committed. With neighbours, an entry goes to the successor where
``_commit`` stands, and the tail commits.

Source: van Renesse and Schneider, OSDI'04 s3.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from meshray.gcs import limits
from meshray.gcs.clients import Clients, Verdict
from meshray.gcs.log import Committed, Entry, Persist, Persisted, Recovered, SweepReaders
from meshray.gcs.rows import Rows, fault
from meshray.gcs.tables import TABLES
from meshray.gcs.watches import Watches
from meshray.machine import Received, Send, Stop, Tick, Undeliverable
from meshray.messages.base import Message
from meshray.messages.gcs import (
    CloseClient,
    DescribeShard,
    Read,
    ReadAnswered,
    Row,
    Scan,
    Scanned,
    ShardDescribed,
    Unwatch,
    Watch,
    WatchLost,
    Write,
    WriteRefused,
    Written,
    WrongEpoch,
)
from meshray.messages.node import Leave, Ping, Pong, Shard


class WrongChain(ValueError):
    """This process cannot be the member that it was told to be."""


class ChainMember:
    """The machine."""

    def __init__(self, name: str, shard: Shard, *, committed: Committed, recovered: Recovered, now_ns: int) -> None:
        """Be ``name`` in the chain ``shard``, where ``recovered`` says it stood; raise WrongChain if it cannot be."""
        members = [member for member, _ in shard.members]
        if name not in members:
            raise WrongChain(f"{name} is not in the chain of epoch {shard.epoch} ({', '.join(members)})")
        if shard.epoch < recovered.epoch:
            raise WrongChain(f"{name} was told epoch {shard.epoch}, but its disk has seen epoch {recovered.epoch}: "
                             "use the present configuration, or another directory")
        if len(members) > 1:
            raise WrongChain(f"a chain of {len(members)} members is not possible: name one member for each shard")
        self.name = name
        self.shard = shard
        self._place = members.index(name)
        self._committed = committed
        self._version = recovered.version
        self._rows = Rows(committed)
        self._clients = Clients(recovered.clients, now_ns)
        self._watches = Watches(committed)
        self._waiting: deque[tuple[Entry, bytes]] = deque()
        """Entries on their way to the disk, each with the route of who asked."""
        self._housekeeping_ns = now_ns + limits.HOUSEKEEPING_NS
        counted = ("writes", "ops", "repeated", "wrong_epoch", "reads", "scans", "changed", "unknown")
        self._counts = dict.fromkeys(counted, 0)

    @property
    def is_head(self) -> bool:
        """Whether writes enter here."""
        return self._place == 0

    @property
    def is_tail(self) -> bool:
        """Whether this member commits, answers and serves reads."""
        return self._place == len(self.shard.members) - 1

    @property
    def role(self) -> str:
        """``alone``, ``head``, ``middle`` or ``tail``."""
        return {(True, True): "alone", (True, False): "head", (False, True): "tail"}.get(
            (self.is_head, self.is_tail), "middle")

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        match event:
            case Received(route=route, message=message):
                return self._received(route, message, now_ns)
            case Persisted(count=count):
                return self._persisted(count)
            case Tick():
                return self._tick(now_ns)
            case Undeliverable(route=route):
                self._watches.drop_route(route)
                return []
            case _:
                raise AssertionError(f"not an event of a chain member: {event!r}")

    def deadline_ns(self) -> int:
        """When ``Tick`` is due next."""
        return self._housekeeping_ns

    def check(self) -> None:
        """Assert every invariant."""
        version = self._version
        for entry, _ in reversed(self._waiting):
            assert entry.last == version
            version = entry.version - 1
        assert bool(self._waiting) or not self._rows.staged()
        self._clients.check()
        self._watches.check()

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        return {**self._counts, "version": self._version, "waiting": len(self._waiting), "clients": len(self._clients),
                "watches": len(self._watches), "epoch": self.shard.epoch}

    def _received(self, route: bytes, message: Message, now_ns: int) -> list[Any]:
        match message:
            case Write() | CloseClient() | Read() | Scan() | Watch():
                for_head = isinstance(message, Write | CloseClient)
                if message.epoch != self.shard.epoch or not (self.is_head if for_head else self.is_tail):
                    self._counts["wrong_epoch"] += 1
                    return [Send(route, WrongEpoch(self.shard))]
                return self._serve(route, message, now_ns)
            case Unwatch(watch=watch):
                self._watches.unwatch(route, watch)
            case Ping(cookie=cookie):
                return [Send(route, Pong(cookie))]
            case DescribeShard(cookie=cookie):
                return [Send(route, self._describe(cookie))]
            case Leave(reason=reason):
                return [Stop(reason)]
            case _:
                self._counts["unknown"] += 1
        return []

    def _serve(self, route: bytes, message: Write | CloseClient | Read | Scan | Watch, now_ns: int) -> list[Any]:
        """Do what a message of the right epoch asks of the right member."""
        match message:
            case Write():
                return self._write(route, message, now_ns)
            case CloseClient(client=client):
                self._clients.close(client, now_ns)
                return []
            case Read():
                return [Send(route, self._read(message))]
            case Scan(table=table, prefix=prefix, after=after):
                self._counts["scans"] += 1
                limit = max(1, min(message.limit, limits.SCAN_ROWS_MAX))
                return [Send(route, Scanned(message.cookie, *self._committed.scan(table, prefix, after, limit)))]
            case Watch():
                if message.table not in TABLES:
                    reason = f"there is no table {message.table!r}"
                    return [Send(route, WatchLost(message.watch, message.stream, reason))]
                return list(self._watches.watch(route, message, now_ns))

    def _write(self, route: bytes, message: Write, now_ns: int) -> list[Any]:
        """Decide a Write that was not seen before; answer one that was."""
        client, sequence, ops = message.client, message.sequence, message.ops
        reason = _write_fault(message)
        verdict = self._clients.judge(client, sequence, now_ns) if reason is None else None
        if verdict is Verdict.CROWDED:
            reason = f"shard {self.name} already remembers {len(self._clients)} clients: close some, or use more shards"
        if reason is not None:
            return [Send(route, WriteRefused(sequence, reason))]
        if verdict is not Verdict.NEW:
            self._counts["repeated"] += 1
            return [Send(route, verdict)] if isinstance(verdict, Written) else []
        version = self._version + 1
        changes, refused = self._rows.decide(ops, version)
        self._version += len(ops)
        self._clients.admit(client, sequence, now_ns)
        self._counts["writes"] += 1
        self._counts["ops"] += len(ops)
        return self._append(Entry(version, len(ops), client, sequence, changes, refused), route)

    def _append(self, entry: Entry, route: bytes) -> list[Any]:
        self._waiting.append((entry, route))
        return [Persist(entry, self.shard.epoch)]

    def _persisted(self, count: int) -> list[Any]:
        """The first ``count`` waiting entries are durable."""
        effects: list[Any] = []
        for _ in range(count):
            entry, route = self._waiting.popleft()
            self._rows.settle(entry.rows)
            self._clients.settle(entry)
            effects += self._commit(entry, route)
        return effects

    def _commit(self, entry: Entry, route: bytes) -> list[Any]:
        """Every member of the chain has the entry: answer, and tell the watchers."""
        effects: list[Any] = []
        if entry.client:
            effects.append(Send(route, Written(entry.sequence, entry.version, entry.refused)))
        told = self._watches.feed(entry.rows)
        self._counts["changed"] += len(told)
        return effects + told

    def _read(self, message: Read) -> ReadAnswered:
        self._counts["reads"] += 1
        rows: list[Row] = []
        room_bytes = limits.ANSWER_BYTES_MAX
        for table, key in message.keys[: limits.READ_KEYS_MAX]:
            found = self._committed.get(table, key)
            rows.append(Row(key, *found) if found else Row(key))
            room_bytes -= len(found[1]) if found else 0
            if room_bytes < 0:
                break
        return ReadAnswered(message.cookie, rows)

    def _describe(self, cookie: int) -> ShardDescribed:
        facts = self._committed.facts()
        return ShardDescribed(
            cookie, self.name, self.role, self.shard, self._version, facts.rows, facts.used_bytes, facts.file_bytes,
            facts.map_bytes, facts.durability, len(self._clients), len(self._watches),
        )

    def _tick(self, now_ns: int) -> list[Any]:
        """Housekeeping: forget the clients and watches that are silent."""
        if now_ns < self._housekeeping_ns:
            return []
        self._housekeeping_ns = now_ns + limits.HOUSEKEEPING_NS
        effects: list[Any] = [SweepReaders(), *self._watches.expire(now_ns)]
        silent = self._clients.silent(now_ns) if self.is_head else ()
        if silent:
            effects += self._append(Entry(self._version + 1, 0, "", 0, [], [], silent), b"")
        return effects


def _write_fault(message: Write) -> str | None:
    """Return why this Write can never be done, or None."""
    if not 0 < len(message.client.encode()) <= limits.KEY_BYTES_MAX or message.sequence < 1:
        return "a Write needs a client name of 1 to 510 bytes and a sequence from 1 on"
    if not 0 < len(message.ops) <= limits.WRITE_OPS_MAX:
        return f"a Write of {len(message.ops)} operations: 1 to {limits.WRITE_OPS_MAX} are possible"
    for op in message.ops:
        reason = fault(op)
        if reason is not None:
            return reason
    return None
