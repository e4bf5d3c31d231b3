"""A small simulated cluster of shard servers, masters and clients, for tests of single situations.

*Pure.* Runs in simulation tests.

1. Time is virtual, and all randomness is of one seed.
2. Processes run in turns as ``transport.host`` runs them; a crash takes everything but the disk, and that too if asked.
3. Links can be cut in one direction; a message on a cut link is lost.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from meshray.config import MILLISECOND_NS, SECOND_NS
from meshray.gcs.client import GcsClient
from meshray.gcs.log import (
    ClientRecord,
    Entry,
    Facts,
    KeepVote,
    MarkWhole,
    Persist,
    Persisted,
    Recovered,
    SendUnderLease,
    Vote,
    WipeDisk,
)
from meshray.gcs.master import Master
from meshray.gcs.requests import Answered, RowChanged
from meshray.gcs.shard_server import ShardServer
from meshray.machine import Received, Send, Tick, Undeliverable
from meshray.messages.gcs import Op, Row
from meshray.messages.node import Shard


class Disk:
    """One server's disk."""

    def __init__(self) -> None:
        self.vote = Vote(votes=True)
        self.wipe()

    def wipe(self) -> None:
        self.tables: dict[str, dict[bytes, tuple[int, bytes]]] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.log: list[Entry] = []
        self.epoch = self.version = 0
        self.whole = False

    @property
    def recovered(self) -> Recovered:
        return Recovered(self.epoch, self.version, dict(self.clients), self.whole)

    def persist(self, effects: list[Any]) -> list[Any]:
        rest, count = [], 0
        for effect in effects:
            match effect:
                case Persist(entry=entry, epoch=epoch):
                    count += 1
                    self.epoch = epoch
                    self._apply(entry)
                case WipeDisk():
                    self.wipe()
                case MarkWhole(epoch=epoch):
                    self.whole, self.epoch = True, epoch
                case KeepVote(vote=vote):
                    self.vote = vote
                case _:
                    rest.append(effect)
        return [*rest, Persisted(count)] if count else rest

    def _apply(self, entry: Entry) -> None:
        self.version = entry.last
        self.log.append(entry)
        for table, key, version, value in entry.rows:
            rows = self.tables.setdefault(table, {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = (version, value)
        self.clients.update(entry.records)
        if entry.client:
            self.clients[entry.client] = ClientRecord(entry.sequence, entry.version, entry.refused)
        for client in entry.forgotten:
            self.clients.pop(client, None)

    def get(self, table: str, key: bytes) -> tuple[int, bytes] | None:
        return self.tables.get(table, {}).get(key)

    def scan(self, table: str, prefix: bytes, after: bytes, limit: int) -> tuple[list[Row], bool]:
        found = sorted((key, row) for key, row in self.tables.get(table, {}).items()
                       if key.startswith(prefix) and key > after)
        return [Row(key, *row) for key, row in found[:limit]], len(found) > limit

    def facts(self) -> Facts:
        return Facts({table: len(rows) for table, rows in self.tables.items()}, 0, 0, 0, "memory")


class Process:
    """One machine in turns."""

    def __init__(self, world: World, name: str, boot: Callable[[], Any], disk: Disk | None) -> None:
        self.world, self.name, self.boot, self.disk = world, name, boot, disk
        self.machine: Any = None
        self.inbox: list[Any] = []
        self.frozen_until_ns = 0
        self.life = 0
        self.start()

    def start(self) -> None:
        self.life += 1
        self.machine = self.boot()
        life = self.life
        if hasattr(self.machine, "begin"):
            self.act(self.machine.begin(self.world.now_ns), life)
        self.beat(life)

    def crash(self) -> None:
        self.machine = None
        self.inbox.clear()
        self.life += 1

    def beat(self, life: int) -> None:
        """Tick when due."""
        if self.machine is None or life != self.life:
            return
        world = self.world
        if world.now_ns >= self.frozen_until_ns:
            due_ns = self.machine.deadline_ns()
            if due_ns is not None and due_ns <= world.now_ns:
                self.turn([Tick()], life)
        world.after(5 * MILLISECOND_NS, lambda: self.beat(life))

    def arrive(self, event: Any) -> None:
        if self.machine is None:
            return
        self.inbox.append(event)
        if len(self.inbox) == 1:
            life = self.life
            delay_ns = max(self.world.random.randrange(100_000), self.frozen_until_ns - self.world.now_ns)
            self.world.after(delay_ns, lambda: self.run_inbox(life))

    def run_inbox(self, life: int) -> None:
        if life != self.life or self.machine is None:
            return
        if self.world.now_ns < self.frozen_until_ns:
            self.world.after(self.frozen_until_ns - self.world.now_ns, lambda: self.run_inbox(life))
            return
        events, self.inbox = self.inbox, []
        self.turn(events, life)

    def turn(self, events: list[Any], life: int) -> None:
        effects = [effect for event in events for effect in self.machine.handle(event, self.world.now_ns)]
        self.act(effects, life)
        if self.machine is not None:
            self.machine.check()

    def act(self, effects: list[Any], life: int) -> None:
        world = self.world
        while effects and life == self.life:
            if self.disk is not None:
                effects = self.disk.persist(effects)
            events: list[Any] = []
            for effect in effects:
                match effect:
                    case Send(to=to, message=message):
                        if not world.post(self.name, to, message):
                            events.append(Undeliverable(to, message))
                    case SendUnderLease(to=to, message=message, until_ns=until_ns):
                        if world.now_ns < until_ns:
                            world.post(self.name, to, message)
                    case Persisted():
                        events.append(effect)
                    case Answered() | RowChanged():
                        world.told(self.name, effect)
            effects = [effect for event in events for effect in self.machine.handle(event, world.now_ns)]


class World:
    """Servers ``a``, ``b``, ... of one shard, masters, and clients."""

    def __init__(self, seed: int, *, servers: str = "abc", replicas: int = 3, masters: int = 2, loss: float = 0.0,
                 delay_max_ns: int = MILLISECOND_NS) -> None:
        self.random = random.Random(seed)
        self.now_ns = 0
        self.loss, self.delay_max_ns = loss, delay_max_ns
        self.cut: set[tuple[str, str]] = set()
        self.answers: dict[tuple[str, int], Answered] = {}
        self.changes: list[tuple[str, RowChanged]] = []
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lives = itertools.count(1)
        self.shard = Shard(1, [(name, f"ipc://{name}") for name in servers])
        self.masters = {f"master-{rank}": f"ipc://master-{rank}" for rank in range(masters)}
        self.acceptors = tuple(servers[:3])
        self.replicas = replicas
        self.disks = {name: Disk() for name in servers}
        self.processes: dict[str, Process] = {}
        for rank, name in enumerate(self.masters):
            self.processes[name] = Process(self, name, lambda name=name, rank=rank: self._master(name, rank), None)
        for name in servers:
            self.processes[name] = Process(self, name, lambda name=name: self._server(name), self.disks[name])

    def _master(self, name: str, rank: int) -> Master:
        return Master(name, str(next(self._lives)), shards=[self.shard], acceptors=self.acceptors,
                      replicas=self.replicas, rank=rank, now_ns=self.now_ns)

    def _server(self, name: str) -> ShardServer:
        disk = self.disks[name]
        number = next(self._lives)
        return ShardServer(name, f"{number}-{number}-x", f"ipc://{name}", index=0, shard=self.shard,
                           masters=self.masters, committed=disk, recovered=disk.recovered, vote=disk.vote,
                           now_ns=self.now_ns)

    # --- time and messages ---------------------------------------------------------------------------------------

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_ns + delay_ns, next(self._order), action))

    def run(self, duration_ns: int, until: Callable[[], bool] = lambda: False) -> bool:
        end_ns = self.now_ns + duration_ns
        while self._heap and self._heap[0][0] <= end_ns:
            self.now_ns, _, action = heapq.heappop(self._heap)
            action()
            if until():
                return True
        self.now_ns = end_ns
        return until()

    def post(self, sender: str, to: bytes, message: Any) -> bool:
        name = to.removeprefix(b">").decode()
        route = sender.encode() if to.startswith(b">") else b">" + sender.encode()
        target = self.processes.get(name)
        if target is None or (target.machine is None and not to.startswith(b">")):
            return False
        if (sender, name) in self.cut or self.random.random() < self.loss:
            return True
        self.after(self.random.randrange(50_000, self.delay_max_ns), lambda: target.arrive(Received(route, message)))
        return True

    def told(self, name: str, effect: Any) -> None:
        if isinstance(effect, Answered):
            self.answers[name, effect.request] = effect
        else:
            self.changes.append((name, effect))

    # --- what tests do -------------------------------------------------------------------------------------------

    def client(self, name: str) -> GcsClient:
        machine = GcsClient(name, [self.shard])
        self.processes[name] = Process(self, name, lambda: machine, None)
        return machine

    def begin(self, name: str, begun: tuple[int, list[Any]]) -> tuple[str, int]:
        process = self.processes[name]
        process.act(begun[1], process.life)
        return name, begun[0]

    def write(self, name: str, *ops: Op) -> tuple[str, int]:
        return self.begin(name, self.processes[name].machine.write(list(ops), self.now_ns))

    def ask(self, name: str, begun: tuple[int, list[Any]], within_ns: int = 20 * SECOND_NS) -> Answered:
        asked = self.begin(name, begun)
        assert self.run(within_ns, lambda: asked in self.answers), f"{name} was not answered"
        return self.answers[asked]

    def put(self, name: str, key: bytes, value: bytes) -> Answered:
        return self.ask(name, self.processes[name].machine.write([Op("kv", key, value)], self.now_ns))

    def get(self, name: str, key: bytes) -> bytes | None:
        row: Row = self.ask(name, self.processes[name].machine.read([("kv", key)], self.now_ns)).results[0]
        return row.value

    def server(self, name: str) -> ShardServer:
        machine = self.processes[name].machine
        assert isinstance(machine, ShardServer)
        return machine

    def chain(self) -> str:
        """The chain as the highest epoch knows it."""
        shards = [process.machine.shard for process in self.processes.values()
                  if isinstance(process.machine, ShardServer)]
        return "".join(name for name, _ in max(shards, key=lambda shard: shard.epoch).members)

    def settled(self, names: str) -> bool:
        """Whether these are the chain, in any order, and all serve in one epoch."""
        chain = self.chain()
        if sorted(chain) != sorted(names):
            return False
        members = [self.processes[name].machine.member for name in chain if self.processes[name].machine]
        return len(members) == len(chain) and all(member is not None and member.in_step for member in members) \
            and len({member.shard.epoch for member in members}) == 1
