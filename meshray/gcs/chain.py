"""A member of a shard's chain: orders writes, makes them durable, hands them down, answers, and tells watchers.

*Pure.* Runs in shard servers (``gcs.shard_server`` around it, ``processes.shard`` around that).

1. Writes are decided at the head, in the order of their arrival; their entries have dense versions.
2. An entry goes down when it is durable here, so what a successor has is a prefix of what its predecessor has.
3. What is durable at the tail is committed: the tail answers, tells watchers, and a little later confirms upwards.
   Nothing is answered or told before it is durable (``Persisted``), and Persisted comes in the order of ``Persist``.
4. Reads and watches are served at the tail, from what is committed; reads only while no other configuration can have
   come into being (``gcs.read_lease``).
5. A Write is done once, however often it is sent (``clients``): the record of it is part of its entry.
6. A message of another epoch, or for another role, changes nothing. A client is told the chain as it is known here.
7. A wedged member does nothing for its chain until a configuration of a higher epoch comes.

What if a member dies? The others learn of it by a new configuration (``gcs.master`` decides it) and ``adopt`` it:

- the head died: its successor is the head. What never left the dead one was answered to nobody, and its clients send it
  again; what they send twice is recognised.
- a middle died: its successor says where its history ends (Resume), and gets the rest before anything newer.
- the tail died: all that its predecessor handed down is committed by that, and is answered again.

A member alone is head and tail: what it persisted is committed.

Source: van Renesse and Schneider, OSDI'04 s3; epochs and wedging: van Renesse, Ho and Schiper, OPODIS'12.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from meshray.gcs import limits
from meshray.gcs.clients import Clients
from meshray.gcs.downstream import Downstream, batches
from meshray.gcs.head import Head
from meshray.gcs.log import Committed, Entry, Persist, Persisted, Recovered, SweepReaders
from meshray.gcs.rows import Rows
from meshray.gcs.tail import Tail
from meshray.machine import Connect, Disconnect, Received, Send, Tick, Undeliverable
from meshray.messages.base import Message
from meshray.messages.chain import (
    AskReadLease,
    Extend,
    Extended,
    Fed,
    JoinChain,
    ReadLeaseGiven,
    Resume,
    Undelivered,
    Wedge,
)
from meshray.messages.gcs import (
    CloseClient,
    Read,
    Scan,
    Unwatch,
    Watch,
    Write,
    Written,
    WrongEpoch,
)
from meshray.messages.node import Shard


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
        self.name = name
        self.wedged = False
        self._take_place(shard)
        self._committed = committed
        self._decided = self.version = self._settled = recovered.version
        """The last version that was decided or handed down, that is durable here, that is known to be committed."""
        self.clients = Clients(recovered.clients, now_ns)
        self._head = Head(name, Rows(committed), self.clients)
        self.tail = Tail(committed, self.clients, self.version, now_ns)
        self.tail.begin(shard.epoch, self.others, now_ns)
        self._waiting: deque[Entry] = deque()
        """Entries on their way to the disk."""
        self._newer: Shard | None = None
        """A configuration that waits for them."""
        self.downstream = Downstream()
        self._resume_ns = self.adopted_ns = now_ns
        self._housekeeping_ns = now_ns + limits.HOUSEKEEPING_NS
        self._counts = dict.fromkeys(("wrong_epoch", "unknown", "resent"), 0)
        self._handlers: dict[type, Callable[..., list[Any]]] = {
            Write: self._order, CloseClient: self._order, Read: self._ask, Scan: self._ask, Watch: self._ask,
            Unwatch: self._unwatch, Extend: self._extend, Extended: self._extended, Resume: self._resume,
            AskReadLease: self._ask_lease, ReadLeaseGiven: self._lease_given, JoinChain: self._join, Fed: self._fed}

    # --- who this is ---------------------------------------------------------------------------------------------

    def _take_place(self, shard: Shard) -> None:
        """Be where ``shard`` says."""
        names = [name for name, _ in shard.members]
        place = names.index(self.name)
        self.shard = shard
        self.is_head, self.is_tail = place == 0, place == len(names) - 1
        self.predecessor = "" if self.is_head else names[place - 1]
        self.successor = "" if self.is_tail else names[place + 1]
        self.others = [name for name in names if name != self.name]
        self._reach: int | None = None if self.predecessor else 0
        """What must be durable here before reads are served: what the predecessor had at the start of this epoch.
        None: it has not said so yet."""

    @property
    def role(self) -> str:
        """``alone``, ``head``, ``middle`` or ``tail``."""
        return {(True, True): "alone", (True, False): "head", (False, True): "tail"}.get(
            (self.is_head, self.is_tail), "middle")

    @property
    def in_step(self) -> bool:
        """Whether this member has everything that was committed before its configuration."""
        return self._reach is not None and self.version >= self._reach

    # --- machine -------------------------------------------------------------------------------------------------

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        kind = type(event)
        if kind is Received:
            return self.received(event.route, event.message, now_ns)
        if kind is Persisted:
            return self.persisted(event.count, now_ns)
        if kind is Tick:
            return self._tick(now_ns)
        assert kind is Undeliverable, f"not an event of a chain member: {event!r}"
        return self._undeliverable(event.route, event.message)

    def deadline_ns(self) -> int:
        """When ``Tick`` is due next."""
        if self.wedged:
            return self._housekeeping_ns
        due_ns = self._housekeeping_ns
        if self.downstream and self.downstream.due_ns < due_ns:
            due_ns = self.downstream.due_ns
        if self._reach is None and self._resume_ns < due_ns:
            due_ns = self._resume_ns
        tail_ns = self.tail.deadline_ns() if self.is_tail else None
        return due_ns if tail_ns is None or due_ns < tail_ns else tail_ns

    def check(self) -> None:
        """Assert every invariant."""
        version = self._decided
        for entry in reversed(self._waiting):
            assert entry.last == version
            version = entry.version - 1
        assert version == self.version
        assert bool(self._waiting) or not self._head.rows.staged()
        assert not (self.is_tail and self.downstream) or self.wedged
        self.downstream.check(self.version)
        self.clients.check()
        self.tail.watches.check()

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        return {**self._counts, **self._head.counts, **self.tail.statistics(), "version": self._decided,
                "waiting": len(self._waiting), "sent": len(self.downstream), "clients": len(self.clients),
                "epoch": self.shard.epoch}

    def received(self, route: bytes, message: Message, now_ns: int) -> list[Any]:
        """Take a message."""
        handler = self._handlers.get(type(message))
        if handler is not None:
            return handler(route, message, now_ns)
        self._counts["unknown"] += 1
        return []

    def _ask_lease(self, route: bytes, message: AskReadLease, now_ns: int) -> list[Any]:
        if message.epoch != self.shard.epoch or self.is_idle:
            return []
        self.tail.lease.give(now_ns)
        return [Send(route, ReadLeaseGiven(message.epoch, message.stamp_ns))]

    def _lease_given(self, route: bytes, message: ReadLeaseGiven, now_ns: int) -> list[Any]:
        if message.epoch != self.shard.epoch or not self.is_tail:
            return []
        self.tail.lease.given_to_us(route.removeprefix(b">").decode(errors="replace"), message.stamp_ns, now_ns)
        return self._serve_held(now_ns) if self.tail.held and now_ns < self.tail.lease.until_ns else []

    def _join(self, route: bytes, message: JoinChain, now_ns: int) -> list[Any]:
        serves = self.is_tail and self.in_step and not self.is_idle
        return self.tail.join(route, message, self.version, now_ns) if serves else []

    def _fed(self, route: bytes, message: Fed, now_ns: int) -> list[Any]:
        version = None if self.wedged else self.version
        return self.tail.feed(route, message, version, now_ns) if self.is_tail and self._newer is None else []

    # --- clients -------------------------------------------------------------------------------------------------

    def _order(self, route: bytes, message: Write | CloseClient, now_ns: int) -> list[Any]:
        if message.epoch != self.shard.epoch or not self.is_head:
            return self._wrong_epoch(route)
        if self.wedged:
            return []
        if isinstance(message, CloseClient):
            self.clients.close(message.client, now_ns)
            return []
        decided = self._head.decide(route, message, self._decided + 1, now_ns)
        return self._append(decided, now_ns) if isinstance(decided, Entry) else decided

    def _ask(self, route: bytes, message: Read | Scan | Watch, now_ns: int) -> list[Any]:
        if message.epoch != self.shard.epoch or not self.is_tail:
            return self._wrong_epoch(route)
        return [] if self.wedged else self.tail.serve(route, message, self.version if self.in_step else None, now_ns)

    def _unwatch(self, route: bytes, message: Unwatch, now_ns: int) -> list[Any]:
        self.tail.watches.unwatch(route, message.watch)
        return []

    def _wrong_epoch(self, route: bytes) -> list[Any]:
        self._counts["wrong_epoch"] += 1
        return [Send(route, WrongEpoch(self.shard))]

    def _serve_held(self, now_ns: int) -> list[Any]:
        """What could not be answered before can be now, perhaps."""
        return [effect for held in self.tail.take_held() for effect in self.received(*held, now_ns)]

    def _undeliverable(self, route: bytes, message: Message) -> list[Any]:
        """Nobody is at ``route``. The head has a dialog with whoever wrote, so it can say what the tail cannot."""
        self.tail.watches.drop_route(route)
        if isinstance(message, Written) and self.is_tail and self.predecessor:
            answer = Undelivered(route, message.sequence, message.version, message.refused)
            return [_to(self.predecessor, Extended(self.shard.epoch, self.version, (answer,)))]
        return []

    # --- entries, from the head to the tail ----------------------------------------------------------------------

    def _append(self, entry: Entry, now_ns: int) -> list[Any]:
        self._decided = entry.last
        if entry.client:
            self.clients.admit(entry.client, entry.sequence, now_ns)
        self._waiting.append(entry)
        return [Persist(entry, self.shard.epoch)]

    def _extend(self, route: bytes, message: Extend, now_ns: int) -> list[Any]:
        """The predecessor hands down entries; those that are known already are passed over."""
        if message.epoch != self.shard.epoch or self.is_idle or route != self.predecessor.encode():
            return []
        if message.after > self._decided:
            return self._ask_predecessor(now_ns)
        effects = []
        for entry in message.entries:
            if entry.version == self._decided + 1:
                effects += self._append(entry, now_ns)
        if self._decided < message.version:
            return [*effects, *self._ask_predecessor(now_ns)]
        if self._reach is None:
            self._reach = message.version
            effects += [] if self._waiting else self._serve_held(now_ns)
        if not message.entries:
            effects.append(_to(self.predecessor, Extended(self.shard.epoch, self._settled)))
        return effects

    def _ask_predecessor(self, now_ns: int) -> list[Any]:
        """Something is missing here: ask for it, but not for every message that shows it."""
        if now_ns < self._resume_ns:
            return []
        self._resume_ns = now_ns + limits.CHAIN_RESEND_NS // 4
        return [_to(self.predecessor, Resume(self.shard.epoch, self._decided))]

    def _resume(self, route: bytes, message: Resume, now_ns: int) -> list[Any]:
        if message.epoch != self.shard.epoch or self.is_idle or route != self.successor.encode():
            return []
        self._counts["resent"] += 1
        sends = self.downstream.after(self.shard.epoch, message.version, self.version)
        return [_to(self.successor, extend) for extend in sends]

    def persisted(self, count: int, now_ns: int) -> list[Any]:
        """The first ``count`` waiting entries are durable."""
        entries = [self._waiting.popleft() for _ in range(count)]
        if not entries:
            return []
        after, self.version = self.version, entries[-1].last
        if not self._waiting:
            self._head.rows.settle()
        self.tail.removals.note(entries)
        effects: list[Any] = []
        if self.is_tail and not self.wedged:
            effects = self._commit(entries, now_ns)
        else:
            self.downstream.add(entries, now_ns)
            if not self.wedged:
                effects = [_to(self.successor, it) for it in batches(self.shard.epoch, entries, after, self.version)]
        if self._newer is not None and not self._waiting:
            newer, self._newer = self._newer, None
            return effects + self.adopt(newer, now_ns)
        return effects + (self._serve_held(now_ns) if self.tail.held and self.in_step else [])

    def _commit(self, entries: list[Entry], now_ns: int) -> list[Any]:
        """Every member of the chain has these: answer, tell the watchers, and, soon, the others."""
        effects: list[Any] = []
        for entry in entries:
            self._settle(entry)
            if entry.client:
                effects.append(Send(entry.route, Written(entry.sequence, entry.version, entry.refused)))
        return effects + self.tail.committed(entries, now_ns)

    def _settle(self, entry: Entry) -> None:
        """It is committed. A tail that got a successor hears that of some entries twice."""
        if entry.last > self._settled:
            self._settled = entry.last
            self.clients.settle(entry)

    def _extended(self, route: bytes, message: Extended, now_ns: int) -> list[Any]:
        """The tail has everything up to ``committed``."""
        if message.epoch != self.shard.epoch or self.is_idle or route != self.successor.encode():
            return []
        for entry in self.downstream.confirm(message.committed, now_ns):
            self._settle(entry)
        if self.predecessor:
            return [_to(self.predecessor, message)]
        return [Send(answer.route, Written(answer.sequence, answer.version, answer.refused))
                for answer in message.undelivered]

    # --- configurations ------------------------------------------------------------------------------------------

    def wedge(self, message: Wedge) -> bool:
        """Do nothing more in this epoch. False: the message is of another epoch."""
        if message.epoch != self.shard.epoch or self._newer:
            return False
        self.wedged = True
        return True

    def adopt(self, shard: Shard, now_ns: int) -> list[Any]:
        """Go on in a newer configuration that names this member."""
        if shard.epoch <= self.shard.epoch or (self._newer is not None and shard.epoch <= self._newer.epoch):
            return []
        if self._waiting:
            self._newer = shard
            return []
        self.wedged = False
        left = [Disconnect(name) for name in self.others if name not in dict(shard.members)]
        self._take_place(shard)
        self._resume_ns = self.adopted_ns = now_ns
        self.tail.begin(shard.epoch, self.others, now_ns)
        effects = [*left, *self.begin(now_ns)]
        if self.is_tail:
            effects += self._commit(self.downstream.take_all(), now_ns)
            effects += self.tail.ask_lease(now_ns)
        else:
            farewells, lacking = self.tail.retire()
            self.downstream.put_first(lacking)
            effects += farewells + self._poke(now_ns)
        return effects + self._serve_held(now_ns)

    def begin(self, now_ns: int) -> list[Any]:
        """Return the effects of this member's first moment in its present place."""
        connects = [Connect(name, endpoint) for name, endpoint in self.shard.members if name != self.name]
        return [*connects, *(self._ask_predecessor(now_ns) if self.predecessor else ())]

    @property
    def is_idle(self) -> bool:
        """Whether this member does nothing in its epoch: it was wedged, or knows the next one."""
        return self.wedged or self._newer is not None

    def _poke(self, now_ns: int) -> list[Any]:
        """Say to the successor what it should have, so that it asks for what it has not."""
        self.downstream.due_ns = now_ns + limits.CHAIN_RESEND_NS
        return [_to(self.successor, Extend(self.shard.epoch, self.version, self.version, []))]

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        if not self.wedged:
            if self.is_tail:
                effects += self.tail.tick(now_ns)
            if self.downstream and now_ns >= self.downstream.due_ns:
                effects += self._poke(now_ns)
            if self._reach is None:
                effects += self._ask_predecessor(now_ns)
        return effects + (self._housekeeping(now_ns) if now_ns >= self._housekeeping_ns else [])

    def _housekeeping(self, now_ns: int) -> list[Any]:
        """Forget the clients and watches that are silent."""
        self._housekeeping_ns = now_ns + limits.HOUSEKEEPING_NS
        effects: list[Any] = [SweepReaders(), *self.tail.watches.expire(now_ns)]
        silent = self.clients.silent(now_ns) if self.is_head and not self.wedged else ()
        if silent:
            effects += self._append(Entry(self._decided + 1, 1, "", 0, [], [], silent), now_ns)
        return effects


def _to(name: str, message: Message) -> Send:
    return Send(b">" + name.encode(), message)
