"""Nodes with detached actors and a control store between them: crashes, freezes, answers that come late or not at all.

*Pure.* Runs in tests.

The schedulers and the part of the node that keeps detached actors are the real ones. The store is a table with
compare-and-set that checks what is written. A node that is frozen gets everything late, in order.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered, Outcome, Unanswered
from meshray.gcs.tables import ActorRow
from meshray.machine import Received, Send, Tick
from meshray.messages.gcs import COMPARE_AND_SET, Op, Row
from meshray.messages.node import CreateActor
from meshray.messages.sched import ClusterView, NodeGone
from meshray.processes.detached_actors import DetachedActors
from meshray.sched.events import ActorOrphaned, ActorStateChanged
from meshray.sched.local import LocalScheduler
from tests.sim.cluster import Cluster, Process
from tests.sim.network import MS, S
from tests.sim.sim_sessions import SimWorker


class Store:
    """The actor table. Each incarnation lives on one node, and incarnations only grow."""

    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[int, bytes]] = {}
        self.lived: dict[tuple[bytes, int], str] = {}
        self.version = 0

    def row(self, actor: bytes) -> ActorRow:
        return tables.decode(self.rows[actor][1], ActorRow)

    def write(self, op: Op) -> Outcome:
        assert op.kind == COMPARE_AND_SET, "rows of detached actors are written under a condition only"
        version, value = self.rows.get(op.key, (0, None))
        if version != op.version:
            return Outcome(False, version, value)
        row = tables.decode(op.value, ActorRow)
        if value is not None:
            before = tables.decode(value, ActorRow)
            assert row.incarnation >= before.incarnation, "an earlier incarnation is written over a later one"
            assert before.state != "dead" or row.incarnation > before.incarnation, "the dead do not come back"
        if row.state == "alive":
            assert self.lived.setdefault((op.key, row.incarnation), row.node) == row.node, "it lives on two nodes"
        self.version += 1
        self.rows[op.key] = (self.version, op.value)
        return Outcome(True, self.version)


class Actors:
    """A machine: what a node has of schedulers and actors, between the control store and the other nodes."""

    def __init__(self, world: World, scheduler: LocalScheduler, node: str) -> None:
        self.world, self.scheduler, self.node = world, scheduler, node
        self.peers: dict[str, str] = {}
        self.seen_missing: set[str] = set()
        self.events = SimpleNamespace(note=lambda *words, **more: None)
        self.actors = SimpleNamespace(passed=lambda actor, row, now_ns: [], free_name=lambda spec, now_ns: [])
        self.detached = DetachedActors(self)  # type: ignore[arg-type]

    def is_beside_head(self) -> bool:
        return self.world.head() == self.node

    def write(self, ops: list[Op], now_ns: int, done: Any) -> list[Any]:
        (op,) = ops
        self.world.ask(self.node, lambda: [self.world.store.write(op)], done)
        return []

    def read(self, table: str, key: bytes, now_ns: int, done: Any) -> list[Any]:
        return self.read_all([(table, key)], now_ns, done)

    def read_all(self, keys: list[tuple[str, bytes]], now_ns: int, done: Any) -> list[Any]:
        rows = self.world.store.rows
        self.world.ask(self.node, lambda: [Row(key, *rows.get(key, (0, None))) for _, key in keys], done)
        return []

    def scan(self, table: str, prefix: bytes, limit: int, now_ns: int, done: Any, *, after: bytes = b"") -> list[Any]:
        self.world.ask(self.node, lambda: [Row(key, *row) for key, row in sorted(self.world.store.rows.items())], done)
        return []

    def schedule(self, event: Any, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        for effect in self.scheduler.handle(event, now_ns):
            match effect:
                case ActorStateChanged():
                    assert effect.spec.detached
                    row = ActorRow(effect.spec, effect.state, effect.incarnation, self.node, effect.worker,
                                   effect.endpoint, effect.pid, effect.spec.max_restarts - effect.restarts_left,
                                   effect.death, effect.error, home=effect.home)
                    effects += self.detached.changed(row, now_ns)
                case ActorOrphaned():
                    effects += self.detached.orphaned(effect, now_ns)
                case Send(message=CreateActor(spec=spec)):
                    self.detached.sent_on(spec.actor)
                    effects.append(effect)
                case _:
                    effects.append(effect)
        return effects

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        effects = self.schedule(event, now_ns)
        gone: list[str] = []
        match event:
            case Tick():
                effects += self.detached.tick(now_ns)
            case Received(message=ClusterView(nodes=nodes, gone=lost)):
                self.peers.update({load.node: load.endpoint for load in nodes if load.node != self.node})
                gone = [node for node in lost if node in self.peers]
            case Received(message=NodeGone(node=node)):
                gone = [node]
        for node in gone:
            if node == self.node:
                effects += self.detached.given_up(now_ns)
            elif self.peers.pop(node, None) is not None:
                self.detached.node_gone(node, now_ns)
        return effects

    def sweep(self, now_ns: int) -> list[Any]:
        """What ``retention`` does about actors: those whose nodes two sweeps did not find are taken over."""
        rows = [Row(key, *row) for key, row in self.world.store.rows.items()]
        decoded = [tables.decode(row.value or b"", ActorRow) for row in rows]
        missing = {node for row in decoded for node in (row.node, row.home)} - {self.node, *self.peers}
        both, self.seen_missing = missing & self.seen_missing, missing
        return [effect for row in rows
                for effect in self.detached.inherit(row, lambda node: node in both and node not in self.peers, now_ns)]

    def deadline_ns(self) -> int | None:
        due_ns = self.detached.deadline_ns()
        return min(self.scheduler.deadline_ns(), due_ns if due_ns is not None else 2**63)

    def check(self) -> None:
        self.scheduler.check()


class Member(Process):
    """A node's process, which may be frozen."""

    def __init__(self, cluster: Cluster, name: str, machine: Any) -> None:
        super().__init__(cluster, name, machine)
        self.frozen = False
        self.late: list[Any] = []

    def do(self, action: Any) -> None:
        """Let the machine do something, or do it when it thaws."""
        if not self.alive:
            return
        if self.frozen:
            self.late.append(action)
            return
        for effect in action(self.cluster.clock.now_ns):
            self.perform(effect)
        self.machine.check()
        self.arm()

    def handle(self, event: Any) -> None:
        self.do(lambda now_ns: self.machine.handle(event, now_ns))

    def thaw(self) -> None:
        self.frozen = False
        late, self.late = self.late, []
        for action in late:
            self.do(action)

    def wake(self, due_ns: int) -> None:
        if self.frozen:
            self._timer_ns = None
            self.late.append(lambda now_ns: self.machine.handle(Tick(), now_ns))
        else:
            super().wake(due_ns)


class World(Cluster):
    """Nodes, their store, and what happens to them."""

    def __init__(self, seed: int, totals: list[dict[str, int]], *, silence: float = 0.0) -> None:
        """``silence``: how often the control store does not answer, whether it did what was asked or not."""
        self.store = Store()
        self._silence = silence
        super().__init__(seed, totals, replicas=2)
        self.clock.after(config.RETENTION_SWEEP_NS, self._sweep)

    def add_node(self, name: str, total: dict[str, int], incarnation: int = 0) -> None:
        self.totals[name] = total
        scheduler = LocalScheduler(name, name, f"sim://{name}", total, schedulers=self.schedulers)
        self.processes[name] = Member(self, name, Actors(self, scheduler, name))
        self.clock.after(self.rng.randrange(10 * MS), self.processes[name].arm)

    def members(self) -> dict[str, Member]:
        return {name: process for name, process in self.processes.items()
                if isinstance(process, Member) and process.alive}

    def head(self) -> str:
        """The node beside the head of the control store."""
        return min((name for name, member in self.members().items() if not member.frozen), default="")

    def ask(self, node: str, act: Any, done: Any) -> None:
        """Carry a request to the store and its answer back."""
        silent, lost = self.rng.random() < self._silence, self.rng.random() < 0.5

        def act_and_answer() -> None:
            if not self.processes[node].alive:
                return
            results = [] if silent and lost else act()
            answer = Answered(0, results if not silent else [], Unanswered("silent", True) if silent else None)
            member = self.processes[node]
            assert isinstance(member, Member)
            self.clock.after(self.rng.randrange(5 * S if silent else 20 * MS),
                             lambda: member.do(partial(done, answer)))

        self.clock.after(self.rng.randrange(20 * MS), act_and_answer)

    def _sweep(self) -> None:
        member = self.members().get(self.head())
        if member is not None:
            member.do(member.machine.sweep)
        self.clock.after(config.RETENTION_SWEEP_NS, self._sweep)

    def living(self, actor: bytes) -> list[SimWorker]:
        """The workers on living nodes that are this actor."""
        return [worker for worker in self.workers() if worker.actor == actor]
