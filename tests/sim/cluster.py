"""A simulated cluster: the real local and global schedulers, simulated owners and workers around them.

*Pure.* Runs in tests.
"""

from __future__ import annotations

import random
from typing import Any

from meshray.machine import Connect, Disconnect, Received, Send, Tick
from meshray.messages.node import (
    Death,
    DeclareDemand,
    LeaseReclaimed,
    ReturnLease,
    WorkerBlocked,
)
from meshray.messages.sched import (
    ClusterView,
    DemandPlaced,
    Heartbeat,
    PlaceDemand,
    RequestRemoteLease,
    ReturnRemoteLease,
)
from meshray.sched.events import (
    ActorStateChanged,
    DriverGone,
    SessionJoined,
    StartWorkers,
    StopWorker,
    Warn,
    WorkerDied,
    WorkerLabelled,
    WorkerStartFailed,
)
from meshray.sched.global_scheduler import GlobalScheduler
from meshray.sched.local import LocalScheduler
from tests.sim.network import MS, Clock, Network
from tests.sim.sim_sessions import Owner, SimWorker

LOSSY = (Heartbeat, ClusterView, PlaceDemand, DemandPlaced)
REPEATABLE = (Heartbeat, PlaceDemand, DeclareDemand, ReturnLease, RequestRemoteLease, ReturnRemoteLease,
              WorkerBlocked, LeaseReclaimed)
UNIT = 10_000

ALLOWANCE_NS = 500 * MS
"""A worker that went on after waiting may oversubscribe its node this long: then a lease must have been returned."""


class Process:
    """A machine with its connections and its timer."""

    def __init__(self, cluster: Cluster, name: str, machine: Any) -> None:
        self.cluster = cluster
        self.name = name
        self.machine = machine
        self.alive = True
        self.connected: set[str] = set()
        self._timer_ns: int | None = None

    def handle(self, event: Any) -> None:
        """Let the machine take an event, check it, do what it asks."""
        if not self.alive:
            return
        effects = self.machine.handle(event, self.cluster.clock.now_ns)
        self.machine.check()
        for effect in effects:
            self.perform(effect)
        self.arm()

    def arm(self) -> None:
        """Wake at the machine's deadline."""
        due_ns = self.machine.deadline_ns()
        if due_ns is not None and (self._timer_ns is None or due_ns < self._timer_ns):
            self._timer_ns = due_ns
            self.cluster.clock.at(due_ns, lambda: self.wake(due_ns))

    def wake(self, due_ns: int) -> None:
        if self._timer_ns != due_ns:
            return
        self._timer_ns = None
        if not self.alive:
            return
        deadline_ns = self.machine.deadline_ns()
        if deadline_ns is not None and deadline_ns <= self.cluster.clock.now_ns:
            self.handle(Tick())
            deadline_ns = self.machine.deadline_ns()
            assert deadline_ns is None or deadline_ns > self.cluster.clock.now_ns, f"{self.name} ticks in a tight loop"
        self.arm()

    def perform(self, effect: Any) -> None:
        match effect:
            case Connect(name=name):
                self.connected.add(name)
            case Disconnect(name=name):
                self.connected.discard(name)
            case Send(to=to, message=message):
                opened = to.startswith(b">")
                target = to.removeprefix(b">").decode()
                assert not opened or target in self.connected, f"{self.name} sends to {target} without connecting"
                self.cluster.deliver(self.name, target, message, opened=opened)
            case _:
                self.cluster.perform(self, effect)


class Cluster:
    """All processes, the clock, the network and the checkers."""

    def __init__(self, seed: int, totals: list[dict[str, int]], *, replicas: int = 1, loss: float = 0.0,
                 duplication: float = 0.0, start_failure: float = 0.0, delay_max_ns: int = MS) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, self.rng, delay_max_ns=delay_max_ns, loss=loss, duplication=duplication,
                               lossy=LOSSY, repeatable=REPEATABLE)
        self.processes: dict[str, Process] = {}
        self.owners: dict[str, Owner] = {}
        self.totals: dict[str, dict[str, int]] = {}
        self.actor_states: list[ActorStateChanged] = []
        self.warnings: list[str] = []
        self.resumed: dict[str, list[tuple[int, dict[str, int]]]] = {}
        self._start_failure = start_failure
        self._workers = 0
        self.schedulers = {f"scheduler-{index}": f"sim://scheduler-{index}" for index in range(replicas)}
        for name in self.schedulers:
            self.start_replica(name)
        for index, total in enumerate(totals):
            self.add_node(f"node-{index}", total)

    # --- processes -----------------------------------------------------------------------------------------------

    def add_node(self, name: str, total: dict[str, int], incarnation: int = 0) -> None:
        self.totals[name] = total
        machine = LocalScheduler(name, name, f"sim://{name}", total, schedulers=self.schedulers,
                                 incarnation=incarnation)
        self.processes[name] = Process(self, name, machine)
        self.clock.after(self.rng.randrange(10 * MS), self.processes[name].arm)

    def start_replica(self, name: str) -> None:
        self.processes[name] = Process(self, name, GlobalScheduler(name))

    def driver(self, node: str) -> Owner:
        name = f"driver-{sum(1 for owner in self.owners if owner.startswith('driver'))}"
        owner = self.owners[name] = Owner(self, name, node)
        self.processes[node].handle(SessionJoined(name, name.encode(), "driver", 1, f"sim://{name}", f"job-{name}"))
        return owner

    def crash_driver(self, driver: Owner) -> None:
        driver.alive = False
        self.processes[driver.node].handle(DriverGone(driver.name))

    def crash_node(self, name: str) -> None:
        """The node and everything on it are gone at once."""
        self.processes[name].alive = False
        for owner in self.owners.values():
            if owner.node == name:
                owner.alive = False

    def crash_worker(self, worker: SimWorker, signal: int = 9) -> None:
        if worker.alive:
            worker.alive = False
            worker.task = None
            self.network.send(worker.name, worker.node, None, lambda: self.processes[worker.node].handle(
                WorkerDied(worker.name, Death(worker.name, 1, worker.node, signal=signal))))

    def workers(self, node: str = "") -> list[SimWorker]:
        return [owner for owner in self.owners.values()
                if isinstance(owner, SimWorker) and owner.alive and (not node or owner.node == node)]

    # --- messages and effects ------------------------------------------------------------------------------------

    def deliver(self, source: str, target: str, message: Any, *, opened: bool = True) -> None:
        """Carry a message; the receiver's route says who opened the dialog."""
        def arrive() -> None:
            if target in self.owners:
                self.owners[target].receive(message)
            elif target in self.processes:
                route = source.encode() if opened else b">" + source.encode()
                self.processes[target].handle(Received(route, message))

        self.network.send(source, target, message, arrive)

    def to_node(self, owner: Owner, message: Any) -> None:
        self.deliver(owner.name, owner.node, message)

    def perform(self, process: Process, effect: Any) -> None:
        match effect:
            case StartWorkers(count=count):
                for _ in range(count):
                    self.clock.after(self.rng.randrange(2 * MS, 10 * MS), lambda: self.born(process))
            case StopWorker(name=name):
                worker = self.owners[name]
                assert isinstance(worker, SimWorker)
                self.crash_worker(worker)
            case ActorStateChanged():
                self.actor_states.append(effect)
            case Warn(text=text):
                self.warnings.append(text)
            case WorkerLabelled():
                pass
            case _:
                raise AssertionError(f"unknown effect {effect}")

    def born(self, process: Process) -> None:
        if self.rng.random() < self._start_failure:
            process.handle(WorkerStartFailed(1, "the simulation said so"))
            return
        if process.alive:
            self._workers += 1
            name = f"worker-{self._workers}"
            self.owners[name] = SimWorker(self, name, process.name)
            process.handle(SessionJoined(name, name.encode(), "worker", self._workers, f"sim://{name}"))

    # --- checkers ------------------------------------------------------------------------------------------------

    def check_use(self, node: str) -> None:
        """What really runs on a node never exceeds its resources, but for tasks that lately went on after waiting."""
        used: dict[str, int] = {}
        for worker in self.workers(node):
            if worker.task is not None and not worker.blocked and not worker.resumed:
                for name, amount in worker.task.need.items():
                    used[name] = used.get(name, 0) + amount
        lately = [need for when_ns, need in self.resumed.get(node, []) if when_ns > self.clock.now_ns - ALLOWANCE_NS]
        for name, amount in used.items():
            allowed = self.totals[node].get(name, 0) + sum(need.get(name, 0) for need in lately)
            assert amount <= allowed, f"{node} runs {amount} of {name}, has {self.totals[node]}"

    def check_rest(self) -> None:
        """Nothing is held when nothing is left to do: no lease was lost."""
        for process in self.processes.values():
            if process.alive and isinstance(process.machine, LocalScheduler):
                rows = process.machine.describe()
                assert not rows["leases"], f"{process.name}: leases left {rows['leases']}"
                actors = [row for row in rows["workers"] if row["state"] == "actor"]
                for row in rows["resources"]:
                    held = sum(actor["resources"].get(row["name"], 0) for actor in actors)
                    assert row["available"] == row["total"] - held, f"{process.name}: {row}"

    def run(self, until: Any, limit_ns: int) -> bool:
        """Let time pass until ``until()``; False if it took longer than ``limit_ns`` from now."""
        return self.clock.run(until, self.clock.now_ns + limit_ns)

    def rest(self, duration_ns: int) -> None:
        """Let ``duration_ns`` pass."""
        end_ns = self.clock.now_ns + duration_ns
        self.clock.run(lambda: self.clock.now_ns >= end_ns, end_ns)
