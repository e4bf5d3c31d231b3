"""Simulated owners and workers: the sessions' half of the lease protocol, without processes.

*Pure.* Runs in tests.

Owners follow the protocol of ``session.submit`` with one task at a time per lease: declare demand, push under leases,
give an idle lease to another function that can use it, return it when it was asked back or was idle for
``LEASE_IDLE_NS``. A worker runs what is pushed to it; a task may run others and wait for them, blocked meanwhile.
Inputs travel at 1 GB/s: a nanosecond per byte.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshray import config
from meshray.messages.node import (
    ActorStarted,
    DeclareDemand,
    Demand,
    DemandStuck,
    LeaseGranted,
    LeaseLost,
    LeaseReclaimed,
    ReassignLeases,
    ReturnLease,
    StartActor,
    Strategy,
    WorkerBlocked,
    WorkerUnblocked,
)
from meshray.messages.sched import ActorBuilding
from tests.sim.network import MS

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

DEFAULT = Strategy()


@dataclass(eq=False)
class Task:
    """Work of ``run_ns``; then ``children`` to run and wait for; then ``after_ns`` more. ``inputs``: bytes by node;
    what lies elsewhere is brought before it runs."""

    need: dict[str, int]
    run_ns: int
    children: list[Task] = field(default_factory=list)
    after_ns: int = 0
    strategy: Strategy = DEFAULT
    inputs: dict[str, int] = field(default_factory=dict)
    function: int = 0
    runs: int = 0
    done: bool = False
    ran_at: str = ""

    def again(self) -> Task:
        """Return the same work, not yet done."""
        return Task(self.need, self.run_ns, [child.again() for child in self.children], self.after_ns, self.strategy,
                    self.inputs, self.function)

    def away_bytes(self, node: str) -> int:
        """Return how much of the inputs must be brought to a node."""
        return sum(size for holder, size in self.inputs.items() if holder != node)


@dataclass(frozen=True)
class Push:
    """owner -> worker: run this."""

    lease: int
    task: Task
    owner: Owner


@dataclass(frozen=True)
class Done:
    """worker -> owner: it ran."""

    lease: int
    task: Task


@dataclass(eq=False)
class Held:
    """A lease as its owner sees it."""

    number: int
    klass: Klass
    worker: str
    task: Task | None = None
    reclaimed: bool = False
    idle_since_ns: int = 0


@dataclass(eq=False)
class Klass:
    """A scheduling class of one owner."""

    number: int
    need: dict[str, int]
    strategy: Strategy
    inputs: dict[str, int]
    queue: deque[Task] = field(default_factory=deque)
    leases: dict[int, Held] = field(default_factory=dict)
    declared: int = 0
    stuck: str = ""


class Owner:
    """The owner's half of a session."""

    def __init__(self, cluster: Cluster, name: str, node: str) -> None:
        self.cluster = cluster
        self.name = name
        self.node = node
        self.alive = True
        self.classes: dict[Any, Klass] = {}
        self.leases: dict[int, Held] = {}
        self.waiting = 0
        self.when_done: Any = None

    def submit(self, tasks: list[Task]) -> None:
        """Queue tasks and declare what they need."""
        self.waiting += len(tasks)
        touched = []
        for task in tasks:
            key = (tuple(sorted(task.need.items())), task.strategy, tuple(task.inputs), task.function)
            if key not in self.classes:
                self.classes[key] = Klass(len(self.classes), task.need, task.strategy, task.inputs)
            self.classes[key].queue.append(task)
            touched.append(self.classes[key])
        for klass in dict.fromkeys(touched):
            self.pump(klass)

    def pump(self, klass: Klass) -> None:
        """Feed free leases, declare what is wanted."""
        for lease in klass.leases.values():
            if klass.queue and lease.task is None and not lease.reclaimed:
                lease.task = klass.queue.popleft()
                self.cluster.deliver(self.name, lease.worker, Push(lease.number, lease.task, self))
        wanted = sum(1 for lease in klass.leases.values() if lease.task) + len(klass.queue)
        wanted = max(wanted, len(klass.leases))
        if wanted != klass.declared:
            klass.declared = wanted
            self.to_node(DeclareDemand([Demand(klass.number, klass.need, wanted, "task", klass.strategy,
                                               len(klass.queue), 5 * MS, klass.inputs or None)]))

    def to_node(self, message: Any) -> None:
        self.cluster.to_node(self, message)

    def receive(self, message: Any) -> None:
        """Take what the node or a worker says."""
        if not self.alive:
            return
        match message:
            case LeaseGranted(klass=number, lease=lease_number, worker=worker):
                klass = next(klass for klass in self.classes.values() if klass.number == number)
                assert lease_number not in self.leases, f"lease {lease_number} granted twice"
                lease = Held(lease_number, klass, worker, idle_since_ns=self.cluster.clock.now_ns)
                klass.leases[lease_number] = self.leases[lease_number] = lease
                self.pump(klass)
                self.cluster.clock.after(config.LEASE_IDLE_NS, lambda: self.sweep(lease))
            case LeaseReclaimed(lease=number):
                held = self.leases.get(number)
                if held is not None:
                    held.reclaimed = True
                    if held.task is None:
                        self.give_back(held)
            case LeaseLost(lease=number):
                lost = self.leases.pop(number, None)
                if lost is not None:
                    del lost.klass.leases[number]
                    if lost.task is not None and not lost.task.done:
                        lost.klass.queue.appendleft(lost.task)
                    self.pump(lost.klass)
            case DemandStuck(klass=number, reason=reason):
                next(klass for klass in self.classes.values() if klass.number == number).stuck = reason
            case Done():
                self.finished(message)

    def finished(self, message: Done) -> None:
        """A task ran."""
        lease = self.leases.get(message.lease)
        if lease is None or lease.task is not message.task:
            return
        lease.task = None
        if not message.task.done:
            message.task.done = True
            self.waiting -= 1
        if lease.reclaimed:
            self.give_back(lease)
        else:
            lease.idle_since_ns = self.cluster.clock.now_ns
            if not lease.klass.queue:
                self.hand_over(lease)
            self.pump(lease.klass)
            self.cluster.clock.after(config.LEASE_IDLE_NS, lambda: self.sweep(lease))
        if not self.waiting and self.when_done is not None:
            then, self.when_done = self.when_done, None
            then()

    def hand_over(self, lease: Held) -> None:
        """Let an idle lease serve another function that waits and needs the same."""
        left = lease.klass
        heir = next((klass for klass in self.classes.values() if len(klass.queue) > 0 and klass.need == left.need
                     and klass.strategy == left.strategy == DEFAULT and not (klass.inputs or left.inputs)), None)
        if heir is not None:
            del left.leases[lease.number]
            heir.leases[lease.number], lease.klass = lease, heir
            left.declared = len(left.leases)
            self.to_node(ReassignLeases([lease.number], heir.number, left.number, left.declared))

    def sweep(self, lease: Held) -> None:
        """Return a lease that was idle too long."""
        idle_ns = self.cluster.clock.now_ns - lease.idle_since_ns
        if self.alive and lease.number in self.leases and lease.task is None and idle_ns >= config.LEASE_IDLE_NS:
            self.give_back(lease)

    def give_back(self, lease: Held) -> None:
        """Return a lease, demand first."""
        del self.leases[lease.number], lease.klass.leases[lease.number]
        self.pump(lease.klass)
        self.to_node(ReturnLease([lease.number]))


class SimWorker(Owner):
    """A worker process: runs one task or is an actor; what its task submits, it owns."""

    def __init__(self, cluster: Cluster, name: str, node: str) -> None:
        super().__init__(cluster, name, node)
        self.task: Task | None = None
        self.blocked = False
        self.resumed = False
        self.actor = b""

    def receive(self, message: Any) -> None:
        if not self.alive:
            return
        match message:
            case Push():
                self.run(message)
            case StartActor(spec=spec, incarnation=incarnation):
                self.actor = spec.actor
                self.cluster.clock.after(MS, lambda: self.constructed(ActorBuilding(spec.actor, incarnation)))
                self.cluster.clock.after(2 * MS, lambda: self.constructed(ActorStarted(spec.actor, incarnation)))
            case _:
                super().receive(message)

    def constructed(self, message: ActorStarted | ActorBuilding) -> None:
        if self.alive:
            self.to_node(message)

    def run(self, push: Push) -> None:
        task = push.task
        assert self.task is None, f"{self.name} got a second task: two owners hold it"
        assert not self.actor, f"{self.name} is an actor and got a task"
        self.task, self.resumed = task, False
        task.runs += 1
        task.ran_at = self.node
        self.cluster.check_use(self.node)

        def finish() -> None:
            if self.alive:
                self.task = None
                self.cluster.deliver(self.name, push.owner.name, Done(push.lease, task))

        def resume() -> None:
            if self.alive:
                self.blocked, self.resumed = False, True
                self.cluster.resumed.setdefault(self.node, []).append((self.cluster.clock.now_ns, task.need))
                self.to_node(WorkerUnblocked())
                self.cluster.clock.after(task.after_ns, finish)

        def nest() -> None:
            if not self.alive:
                return
            if not task.children:
                finish()
                return
            self.when_done = resume
            self.submit([child.again() for child in task.children])
            self.blocked = True
            self.to_node(WorkerBlocked())

        self.cluster.clock.after(task.away_bytes(self.node) + task.run_ns, nest)
