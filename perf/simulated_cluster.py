"""A cluster under virtual time: the real schedulers and the real owners' lease logic, with simulated workers and wires.

*Pure* but for the CPU clock. Runs in ``perf.simulate``.

1. Every ``LocalScheduler``, ``GlobalScheduler`` and ``Submitter`` is the class that ships; a worker only waits for as
   long as its task takes, and a message only for the latency of its wire.
2. Virtual time does not depend on how long the machines take to decide. That is measured afterwards: some processes
   keep a journal of what came to them, and a fresh machine, alone as in a process of its own, takes the same again
   while the CPU clock runs. Measured on the way, with a thousand machines taking turns in one process, each would
   find the processor's caches full of the others.
3. The same seed gives the same run.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from meshray import config
from meshray.machine import Connect, Disconnect, Received, Send, Tick
from meshray.messages.node import Death, LeaseGranted, LeaseLost, LeaseReclaimed, Strategy
from meshray.messages.tasks import PushTasks, RecallTasks, TaskResult, TasksFinished, TasksRecalled
from meshray.sched.events import SessionJoined, StartWorkers, StopWorker, WorkerDied
from meshray.sched.global_scheduler import GlobalScheduler
from meshray.sched.local import LocalScheduler
from meshray.session.records import FINISHED, QUEUED, SchedulingClass, Task
from meshray.session.submit import Submitter
from perf.journal import Decide, Journal

MS = config.MILLISECOND_NS
UNIT = 10_000

NEAR_NS = 50_000
FAR_NS = 200_000
"""One way of a message inside a machine and between two, as measured on ipc and on TCP with CURVE."""

START_NS = 20 * MS
"""From the order for a worker to its registration: a fork and a few messages."""

ANSWER_NS = MS
"""A worker answers at once when it has nothing else to run, else this often."""

MEAN_WEIGHT = 8
"""Weight of the exponential average of task times in a worker."""


class World:
    """Virtual time, wires, and who is at their ends."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = config.SECOND_NS
        self.messages: dict[str, int] = {}
        self.parties: dict[str, Any] = {}
        self.schedulers: dict[str, str] = {}
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = itertools.count().__next__

    def at(self, when_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (when_ns, self._made(), action, arguments))

    def send(self, source: Any, route: bytes, message: Any) -> None:
        """Carry a message. The receiver answers on a route that says who opened the dialog."""
        kind = type(message).__name__
        self.messages[kind] = self.messages.get(kind, 0) + 1
        opened = route.startswith(b">")
        target = self.parties.get(route.removeprefix(b">").decode())
        if target is not None:
            back = source.name.encode() if opened else b">" + source.name.encode()
            delay_ns = NEAR_NS if source.machine_name == target.machine_name else FAR_NS
            self.at(self.now_ns + delay_ns, target.receive, back, message)

    def run(self, until: Callable[[], bool], limit_ns: int) -> bool:
        """Let time pass until ``until`` holds; False if that takes longer than ``limit_ns``."""
        heap = self._heap
        while not until():
            if not heap or heap[0][0] > limit_ns:
                return False
            self.now_ns, _, action, arguments = heapq.heappop(heap)
            action(*arguments)
        return True


class Silence(World):
    """Nobody is there, and nothing happens later: for a process that only decides again."""

    def at(self, when_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do nothing."""

    def send(self, source: Any, route: bytes, message: Any) -> None:
        """Do nothing."""


class Process:
    """A machine with its timer: a node or a global scheduler replica."""

    def __init__(self, world: World, name: str, make: Callable[[], Any]) -> None:
        self.world = world
        self.name = self.machine_name = name
        self.machine = make()
        self.alive = True
        self.journal: Journal | None = None
        self._make = make
        self._due_ns = 0
        world.parties[name] = self

    def receive(self, route: bytes, message: Any) -> None:
        """Take a message."""
        self.handle(Received(route, message))

    def handle(self, event: Any) -> None:
        """Let the machine take an event, and do what it asks."""
        if not self.alive:
            return
        world = self.world
        if self.journal is not None:
            self.journal.entries.append((world.now_ns, event))
        for effect in self.machine.handle(event, world.now_ns):
            kind = type(effect)
            if kind is Send:
                world.send(self, effect.to, effect.message)
            elif kind is not Connect and kind is not Disconnect:
                self.perform(effect)
        due_ns = self.machine.deadline_ns()
        if due_ns is not None and (due_ns < self._due_ns or self._due_ns <= world.now_ns):
            self._due_ns = max(due_ns, world.now_ns + 1)
            world.at(self._due_ns, self.wake, self._due_ns)

    def wake(self, due_ns: int) -> None:
        """The timer went off; it may have been set to an earlier time meanwhile."""
        if due_ns != self._due_ns:
            return
        deadline_ns = self.machine.deadline_ns()
        if deadline_ns is not None and deadline_ns > self.world.now_ns:
            self._due_ns = deadline_ns
            self.world.at(deadline_ns, self.wake, deadline_ns)
        else:
            self.handle(Tick())

    def fresh(self) -> Callable[[], Decide]:
        """Return what makes a process that decides again about the entries of the journal."""
        return functools.partial(_handle_of, self._make)

    def perform(self, effect: Any) -> None:
        """Do what only nodes ask for."""


def _handle_of(make: Callable[[], Any]) -> Decide:
    return make().handle  # type: ignore[no-any-return]


class Node(Process):
    """A node with its workers."""

    def __init__(self, world: World, number: int, cpus: int) -> None:
        name = f"n{number}"
        super().__init__(world, name, functools.partial(LocalScheduler, name, name, f"sim://{name}", {
            "CPU": cpus * UNIT}, schedulers=world.schedulers, prestart=cpus))
        self.workers: dict[str, Worker] = {}
        self._started = 0
        world.at(world.now_ns + world.random.randrange(config.HEARTBEAT_NS), self.handle, Tick())

    def perform(self, effect: Any) -> None:
        """Start and end workers."""
        if isinstance(effect, StartWorkers):
            for _ in range(effect.count):
                self.world.at(self.world.now_ns + START_NS, self._born)
        elif isinstance(effect, StopWorker):
            worker = self.workers.pop(effect.name, None)
            if worker is not None:
                worker.end()
                self.world.at(self.world.now_ns + MS, self.handle, WorkerDied(
                    worker.name, Death(worker.name, 1, self.name)))

    def _born(self) -> None:
        if self.alive:
            self._started += 1
            worker = Worker(self.world, f"w{self._started}.{self.name}", self.name)
            self.workers[worker.name] = worker
            self.handle(SessionJoined(worker.name, worker.name.encode(), "worker", self._started,
                                      f"sim://{worker.name}"))

    def crash(self) -> None:
        """The machine is gone, with everything on it."""
        self.alive = False
        for worker in self.workers.values():
            worker.end()
        del self.world.parties[self.name]


class Worker:
    """Runs what is pushed, one after the other; run times are the world's secret."""

    def __init__(self, world: World, name: str, machine_name: str) -> None:
        self.world = world
        self.name = name
        self.machine_name = machine_name
        self._queue: deque[tuple[bytes, int, int, Owner]] = deque()
        self._results: list[TaskResult] = []
        self._answered_ns = 0
        self._mean_ns: dict[Any, int] = {}
        self._alive = True
        world.parties[name] = self

    def end(self) -> None:
        """The process is gone."""
        self._alive = False
        self.world.parties.pop(self.name, None)

    def receive(self, route: bytes, message: Any) -> None:
        """Take tasks, or give back those that have not started."""
        if isinstance(message, PushTasks):
            idle = not self._queue
            owner = self.world.parties[route.decode()]
            self._queue.extend((route, message.lease, entry.seq, owner) for entry in message.tasks)
            if idle:
                self._begin()
        elif isinstance(message, RecallTasks):
            back = [item for position, item in enumerate(self._queue) if position and item[1] == message.lease]
            self._queue = deque(item for item in self._queue if item not in back)
            self.world.send(self, route, TasksRecalled(message.lease, [seq for _, _, seq, _ in back]))

    def _begin(self) -> None:
        _, _, seq, owner = self._queue[0]
        spent_ns = owner.run_ns[seq]
        self.world.at(self.world.now_ns + spent_ns, self._finish, spent_ns)

    def _finish(self, spent_ns: int) -> None:
        if not self._alive:
            return
        route, lease, seq, owner = self._queue.popleft()
        function = owner.function_of(seq)
        mean_ns = self._mean_ns.get(function, spent_ns)
        self._mean_ns[function] = mean_ns = mean_ns + (spent_ns - mean_ns) // MEAN_WEIGHT
        self._results.append(TaskResult(seq))
        now_ns = self.world.now_ns
        if not self._queue or self._queue[0][1] != lease or now_ns - self._answered_ns >= ANSWER_NS:
            self._answered_ns = now_ns
            self.world.send(self, route, TasksFinished(self._results, mean_ns, lease))
            self._results = []
        if self._queue:
            self._begin()


class Owner:
    """A driver: the real ``Submitter`` in a session without socket, and a program that keeps its queues filled."""

    job = "job"
    closing = False
    endpoint = "sim://"

    def __init__(self, world: World, number: int, node: str, functions: int, window: int) -> None:
        self.world = world
        self.name = f"d{number}"
        self.machine_name = self.node = node
        self.journal: Journal | None = None
        self.run_ns: list[int] = [0]
        """How long each task takes, by its number."""
        self.left = 0
        self.retried = 0
        self.now_ns = world.now_ns
        self.next_seq = itertools.count(1 << 40).__next__
        self.outcomes = SimpleNamespace(task_lost=self._lost)
        self.references = None
        session: Any = self
        self.submitter = Submitter(session)
        self._functions = functions
        self._window = window
        self._submitted = 0
        self._due_ns = 0
        self._classes = []
        for index in range(functions):
            klass = SchedulingClass(index, b"%d" % index, f"f{index}", {"CPU": UNIT}, Strategy(), 1, ready=True,
                                    leases={}, max_retries=3)
            self.submitter.classes[index] = klass
            self._classes.append(klass)
        world.parties[self.name] = self

    def function_of(self, seq: int) -> int:
        """Return which function a task runs: they take turns."""
        return seq % self._functions

    def begin(self) -> None:
        """Submit the first tasks."""
        self._go(self._submit)

    def _submit(self, _: Any = None) -> None:
        queued = sum(len(klass.queue) for klass in self._classes)
        if queued * 2 > self._window or self._submitted == len(self.run_ns) - 1:
            return
        last = min(len(self.run_ns) - 1, self._submitted + self._window - queued)
        for seq in range(self._submitted + 1, last + 1):
            klass = self._classes[seq % self._functions]
            klass.queue.append(Task(seq, klass, b"prefix", seq, []))
        self._submitted = last
        for klass in self._classes:
            self.submitter.pump(klass)

    def receive(self, route: bytes, message: Any) -> None:
        """Take what the node or a worker says."""
        self._go(self._take, message)

    def _go(self, call: Callable[[Any], None], message: Any = None) -> None:
        if self.journal is not None:
            self.journal.entries.append((self.world.now_ns, (call.__name__, message)))
        self.now_ns = self.world.now_ns
        call(message)
        due_ns = self.submitter.deadline_ns()
        if due_ns is not None and self._due_ns <= self.now_ns:
            self._due_ns = max(due_ns, self.now_ns + 1)
            self.world.at(self._due_ns, self._go, self._sweep)

    def fresh(self) -> Callable[[], Decide]:
        """Return what makes an owner that decides again about the entries of the journal, without wires."""
        return functools.partial(Owner.again, int(self.name[1:]), self.node, self._functions, self._window, self.run_ns)

    @classmethod
    def again(cls, number: int, node: str, functions: int, window: int, run_ns: list[int]) -> Decide:
        """Return what decides about the entries of such an owner's journal."""
        owner = cls(Silence(0), number, node, functions, window)
        owner.run_ns = run_ns
        calls = {call.__name__: call for call in (owner._submit, owner._take, owner._sweep)}

        def decide(entry: tuple[str, Any], now_ns: int) -> None:
            owner.now_ns = now_ns
            calls[entry[0]](entry[1])

        return decide

    def _sweep(self, _: Any = None) -> None:
        self.submitter.sweep(self.now_ns)

    def _take(self, message: Any) -> None:
        submitter = self.submitter
        match message:
            case TasksFinished():
                self._finished(message)
            case TasksRecalled():
                submitter.recalled(message)
            case LeaseGranted():
                submitter.granted(message)
            case LeaseReclaimed():
                submitter.reclaimed(message)
            case LeaseLost():
                submitter.lost(message)

    def _finished(self, message: TasksFinished) -> None:
        lease = self.submitter.leases.get(message.lease)
        if lease is None:
            return
        for result in message.results:
            task = lease.outstanding.pop(result.seq, None)
            if task is not None:
                task.state = FINISHED
                self.left -= 1
        lease.klass.mean_ns = message.mean_ns
        self.submitter.answered(lease, len(message.results))
        self._submit()

    def _lost(self, task: Task, death: Death, *, started: bool) -> None:
        self.retried += 1
        task.state, task.lease = QUEUED, None
        task.attempt += started
        task.klass.queue.append(task)

    # --- what the submitter asks of its session ------------------------------------------------------------------

    def send(self, route: bytes, message: Any) -> None:
        """Send to a worker."""
        self.world.send(self, route, message)

    def to_node(self, message: Any) -> None:
        """Send to the own node."""
        self.world.send(self, b">" + self.node.encode(), message)

    def connect(self, name: str, endpoint: str) -> bytes:
        """Return the route to a worker."""
        return b">" + name.encode()

    def forget_peer(self, name: str) -> None:
        """A worker is gone."""

    def warn(self, text: str) -> None:
        """Nothing here is stuck for good."""


def make_cluster(seed: int, nodes: int, cpus: int, replicas: int) -> tuple[World, list[Node]]:
    """Return a cluster whose nodes are about to say hello."""
    world = World(seed)
    world.schedulers = {f"s{number}": f"sim://s{number}" for number in range(replicas)}
    for name in world.schedulers:
        Process(world, name, functools.partial(GlobalScheduler, name))
    return world, [Node(world, number, cpus) for number in range(nodes)]
