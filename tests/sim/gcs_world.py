"""A simulated world for the control store: clients, one member, a bad network, and crashes that keep the disk.

*Pure.* Runs in simulation tests.

1. All randomness is of one seed, and time is virtual: a seed is a schedule.
2. The member runs in turns as ``transport.host`` runs it: handle all that waits, persist once, then act. A crash comes
   between any two of these, and takes everything with it but what was persisted.
3. The world only records; what must hold is said by ``gcs_checkers``.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from meshray.config import MILLISECOND_NS, SECOND_NS
from meshray.gcs.chain import ChainMember
from meshray.gcs.client import GcsClient
from meshray.gcs.log import ClientRecord, Entry, Facts, Persist, Persisted, Recovered
from meshray.gcs.requests import Answered, RowChanged
from meshray.machine import Received, Send, Tick
from meshray.messages.gcs import Op, Row
from meshray.messages.node import Shard

MEMBER = "shard-0-0"
SHARD = Shard(1, [(MEMBER, "ipc://shard-0-0")])


class DictDisk:
    """A disk in memory; ``log`` is the history of entries that were made durable."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, tuple[int, bytes]]] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.log: list[Entry] = []
        self.epoch = 0

    @property
    def recovered(self) -> Recovered:
        return Recovered(self.epoch, self.log[-1].last if self.log else 0, dict(self.clients))

    def persist(self, effects: list[Any]) -> list[Any]:
        persists = [effect for effect in effects if isinstance(effect, Persist)]
        for persist in persists:
            entry = persist.entry
            self.log.append(entry)
            self.epoch = persist.epoch
            for table, key, version, value in entry.rows:
                rows = self.tables.setdefault(table, {})
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = (version, value)
            if entry.client:
                self.clients[entry.client] = ClientRecord(entry.sequence, entry.version, entry.refused)
            for client in entry.forgotten:
                self.clients.pop(client, None)
        rest = [effect for effect in effects if not isinstance(effect, Persist)]
        return [*rest, Persisted(len(persists))] if persists else rest

    def get(self, table: str, key: bytes) -> tuple[int, bytes] | None:
        return self.tables.get(table, {}).get(key)

    def scan(self, table: str, prefix: bytes, after: bytes, limit: int) -> tuple[list[Row], bool]:
        found = sorted(
            (key, row) for key, row in self.tables.get(table, {}).items() if key.startswith(prefix) and key > after
        )
        return [Row(key, *row) for key, row in found[:limit]], len(found) > limit

    def facts(self) -> Facts:
        return Facts({table: len(rows) for table, rows in self.tables.items()}, 0, 0, 0, "memory")


class Call:
    """A write or read of one client, and how it ended. Times are virtual."""

    def __init__(self, client: str, ops: list[Op] | None, keys: list[tuple[str, bytes]] | None, begun_ns: int) -> None:
        self.client, self.ops, self.keys, self.begun_ns = client, ops, keys, begun_ns
        self.answer: Answered | None = None
        self.answered_ns = 0


class World:
    """Everything that happens, in the order of virtual time."""

    def __init__(
        self, seed: int, *, loss: float = 0.05, twice: float = 0.05, delay_max_ns: int = 40 * MILLISECOND_NS,
        member: type[ChainMember] = ChainMember, forgets_clients: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.now_ns = 0
        self.disk = DictDisk()
        self.calls: list[Call] = []
        self.told: dict[tuple[str, int], list[RowChanged]] = {}
        self.clients: dict[str, GcsClient] = {}
        self.crashes = 0
        self.loss, self.twice, self._delay_max_ns = loss, twice, delay_max_ns
        self._member_type, self._forgets_clients = member, forgets_clients
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._inbox: list[Received] = []
        self._open: dict[tuple[str, int], tuple[Call, Callable[[Answered], None] | None]] = {}
        self.member: ChainMember | None = None
        self._start()

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do ``action`` after ``delay_ns``."""
        heapq.heappush(self._heap, (self.now_ns + delay_ns, next(self._order), action))

    def run(self, duration_ns: int) -> None:
        """Let virtual time pass."""
        end_ns = self.now_ns + duration_ns
        while self._heap and self._heap[0][0] <= end_ns:
            self.now_ns, _, action = heapq.heappop(self._heap)
            action()
        self.now_ns = end_ns

    def heal(self) -> None:
        """From now on the network loses and repeats nothing."""
        self.loss = self.twice = 0.0

    def add_client(self, name: str) -> GcsClient:
        """Let a client live; its deadline is looked at every 10 ms."""
        self.clients[name] = GcsClient(name, [SHARD])
        self._beat(name)
        return self.clients[name]

    def write(self, name: str, ops: list[Op], then: Callable[[Answered], None] | None = None) -> None:
        """Let a client write."""
        call = Call(name, ops, None, self.now_ns)
        self._begun(name, call, self.clients[name].write(ops, self.now_ns), then)

    def read(self, name: str, keys: list[tuple[str, bytes]], then: Callable[[Answered], None] | None = None) -> None:
        """Let a client read."""
        call = Call(name, None, keys, self.now_ns)
        self._begun(name, call, self.clients[name].read(keys, self.now_ns), then)

    def watch(self, name: str, table: str, key: bytes, *, prefix: bool) -> None:
        """Let a client watch."""
        watch, effects = self.clients[name].watch(table, key, self.now_ns, prefix=prefix)
        self.told[(name, watch)] = []
        self._client_effects(name, effects)

    def crash(self) -> None:
        """Kill the member; it starts again from its disk a little later."""
        if self.member is not None:
            self.member = None
            self._inbox.clear()
            self.crashes += 1
            self.at(self.random.randrange(SECOND_NS), self._start)

    def _start(self) -> None:
        recovered = self.disk.recovered
        if self._forgets_clients:
            recovered = Recovered(recovered.epoch, recovered.version)
        self.member = self._member_type(
            MEMBER, SHARD, committed=self.disk, recovered=recovered, now_ns=self.now_ns
        )

    def _turn(self, crash_after: str) -> None:
        """One turn of the member, with a crash after it handled, or after it persisted, or not at all."""
        member, messages = self.member, self._inbox[:]
        self._inbox.clear()
        if member is None:
            return
        effects = [effect for message in messages for effect in member.handle(message, self.now_ns)]
        if member.deadline_ns() <= self.now_ns:
            effects += member.handle(Tick(), self.now_ns)
        while effects:
            sends = [effect for effect in effects if isinstance(effect, Send)]
            if crash_after == "handle" and any(isinstance(effect, Persist) for effect in effects):
                for send in self._early(sends):
                    self._post(send.to, MEMBER, send.message)
                self.crash()
                return
            effects = self.disk.persist(effects)
            if crash_after == "persist" and any(isinstance(effect, Persisted) for effect in effects):
                self.crash()
                return
            for effect in effects:
                if isinstance(effect, Send):
                    self._post(effect.to, MEMBER, effect.message)
            effects = [
                effect for persisted in effects if isinstance(persisted, Persisted)
                for effect in member.handle(persisted, self.now_ns)
            ]
        member.check()

    def _early(self, sends: list[Send]) -> list[Send]:
        """What leaves although its turn is never persisted: nothing, as the host persists first. A member that answers
        too early is run on a host that sends at once."""
        return sends if self._member_type is not ChainMember else []

    def _post(self, to: bytes, sender: str, message: Any) -> None:
        """Put a message into the network."""
        for _ in range(2 if self.random.random() < self.twice else 1):
            if self.random.random() >= self.loss:
                self.at(self.random.randrange(1, self._delay_max_ns), lambda: self._arrive(to, sender, message))

    def _arrive(self, to: bytes, sender: str, message: Any) -> None:
        name = to.removeprefix(b">").decode()
        if name != MEMBER:
            event = Received(b">" + sender.encode(), message)
            self._client_effects(name, self.clients[name].handle(event, self.now_ns))
        elif self.member is not None:
            self._inbox.append(Received(sender.encode(), message))
            if len(self._inbox) == 1:
                chance = self.random.random() if self.loss else 0.5
                crash_after = "handle" if chance < 0.01 else "persist" if chance > 0.99 else ""
                self.at(self.random.randrange(2 * MILLISECOND_NS), lambda: self._turn(crash_after))

    def _beat(self, name: str) -> None:
        client = self.clients[name]
        due_ns = client.deadline_ns()
        if due_ns is not None and due_ns <= self.now_ns:
            self._client_effects(name, client.handle(Tick(), self.now_ns))
            client.check()
        self.at(10 * MILLISECOND_NS, lambda: self._beat(name))

    def _begun(
        self, name: str, call: Call, begun: tuple[int, list[Any]], then: Callable[[Answered], None] | None
    ) -> None:
        self.calls.append(call)
        self._open[(name, begun[0])] = (call, then)
        self._client_effects(name, begun[1])

    def _client_effects(self, name: str, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._post(effect.to, name, effect.message)
            elif isinstance(effect, RowChanged):
                self.told[(name, effect.watch)].append(effect)
            elif isinstance(effect, Answered):
                call, then = self._open.pop((name, effect.request))
                call.answer, call.answered_ns = effect, self.now_ns
                if then is not None:
                    then(effect)
