"""Simulated processes: sessions made of the real parts.

*Pure.* Runs in tests.

1. What a session decides about references, values and calls is the shipped code; here are only the socket, the clock
   and the arena. Every message is encoded and decoded on its way.
2. A call is a method call of an actor that runs as many at once as arrive.
3. A turn comes at once after a message, and else when ``until_deadline_ns`` of a real session would have it come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from meshray import failures
from meshray.ids import object_id, root_task
from meshray.messages import objects as messages
from meshray.messages.node import ActorSpec, Death, StartActor
from meshray.messages.tasks import CallActor, CallEntry, ReleaseReturns, ReturnsPinned, TaskEntry, TasksFinished
from meshray.object_ref import PENDING, ObjectRef
from meshray.remote_function import attach_arguments
from meshray.session.actor_host import ActorHost
from meshray.session.context import CURRENT, TaskContext
from meshray.session.executor import Executor
from meshray.session.objects import Objects
from meshray.session.outcomes import Outcomes
from meshray.session.records import PUSHED, Task
from meshray.session.references import References
from meshray.transport.endpoints import process_of
from tests.sim.network import MS
from tests.sim.reference_sim.fibers import Fiber
from tests.sim.reference_sim.nodes import Arena, Node, name_of

if TYPE_CHECKING:
    from tests.sim.reference_sim.world import World


class Link:
    """One process as another one calls it."""

    def __init__(self, target: Process) -> None:
        self.name = target.name
        self.target = target
        self.queue: deque[Task] = deque()
        self.outstanding: dict[int, Task] = {}
        self.order = 0
        self.lost = False
        """The node has said that the target is gone."""


class Process:
    """A driver or an actor: what the shipped code takes for its session."""

    kind, job, closing = "worker", "job", False

    def __init__(self, world: World, name: str, node: Node) -> None:
        self.world = world
        self.name = name
        self.home = node
        self.node = node.name
        self.endpoint = f"via://{node.name}/{name}"
        self.alive = True
        self.fibers: list[Fiber] = []
        session: Any = self
        self._handlers: dict[type, Callable[[bytes, Any], object]] = {}
        self.submitter = SimpleNamespace(leases={})
        self.lineage = SimpleNamespace(escaped=lambda ref: None)
        self.driving = SimpleNamespace(until=self.block_until, rouse=lambda: None, stepping_thread=0)
        self.surroundings = SimpleNamespace(node_name=node.name)
        self.arena = self.pins = Arena(node)
        self.links: dict[str, Link] = {}
        self.actors = SimpleNamespace(fresh=deque(), answered=self._answered, links={})
        self.outcomes = Outcomes(session)
        self.objects = Objects(session)
        self.references = References(session)
        self.root = TaskContext(root_task(name), name=name)
        self.executor = Executor(session)
        self.executor.actor = self.host = ActorHost(self.executor, StartActor(_spec(), 0))
        self.host.instance = SimpleNamespace(run=lambda *args: world.program(self, args))
        self._failed, self.host.failed = self.host.failed, self._call_failed  # type: ignore[method-assign]
        self._handlers.update({
            **self.references.holds.handlers(),
            TasksFinished: self.outcomes.finished,
            ReleaseReturns: self.executor.values.on_release_returns,
            ReturnsPinned: self.outcomes.returns_pinned,
            messages.ResolveObjects: self.references.on_resolve,
            messages.ObjectResolved: lambda route, message: self.references.on_resolved(message),
            messages.ObjectFetched: lambda route, message: self.objects.on_fetched(message),
            messages.FetchFailed: lambda route, message: self.objects.on_fetch_failed(message),
            messages.HoldersDied: lambda route, message: self._on_died(message),
            messages.RangesFreed: lambda route, message: self.arena.ranges_freed(message.ranges),
        })
        self._turn_ns = -1
        self.rest()

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return self.world.clock.now_ns

    # --- what the shipped code asks of its session ---------------------------------------------------------------

    def send(self, route: bytes, message: Any) -> bool:
        """Send on a route: ``>name`` is a dialog that we opened, ``name`` one that we were called on."""
        back = b">" + self.name.encode() if not route.startswith(b">") else self.name.encode()
        self.world.send(self, name_of(route), route[:1] == b">", back, message)
        return True

    def to_node(self, message: Any) -> None:
        """Send to the own node."""
        self.world.send(self, self.node, True, self.name.encode(), message)

    def connect(self, name: str, endpoint: str) -> bytes:
        """Nothing has to be opened here."""
        assert process_of(endpoint) == name
        return b">" + name.encode()

    def out_route(self, name: str) -> bytes:
        """The same."""
        return b">" + name.encode()

    def call(self, function: Callable[[], None]) -> None:
        """There is one thread at a time, and it leads."""
        function()

    later = call

    def context(self) -> TaskContext:
        """The running call, or the program of a driver."""
        return CURRENT.get() or self.root

    def block_until(self, done: Callable[[], bool], deadline_ns: int | None, *, keep_cpu: bool = False) -> bool:
        """Wait in a fiber."""
        self.hand_out()
        if deadline_ns is not None:
            self.world.clock.at(deadline_ns, lambda: self.world.settle(self))
        self.world.fibers.wait(lambda: done() or (deadline_ns is not None and self.now_ns >= deadline_ns))
        return done()

    # --- calls ---------------------------------------------------------------------------------------------------

    def submit(self, target: Process, args: tuple[Any, ...]) -> ObjectRef:
        """Call ``target``; return the result's reference."""
        context = self.context()
        prefix, index = context.prefix(), context.next_index()
        link = self.links.setdefault(target.name, Link(target))
        ref = ObjectRef(PENDING, None, None, prefix, index)
        task = Task(self.world.next_seq(), link, prefix, index, ref, method="run")
        attach_arguments(self, task, args, {}, "run")  # type: ignore[arg-type]
        self.outcomes.pending[task.seq] = task
        link.queue.append(task)
        self.actors.fresh.append(link)
        if task.waits_for:
            self.outcomes.wait_for_arguments(task)
        return ref

    def _pump(self, link: Link) -> None:
        while link.queue and not link.queue[0].waits_for:
            task = link.queue.popleft()
            if link.lost:
                self._call_lost(link, task)
                continue
            if not link.target.alive:
                self.world.news_of_calls(self, link.target)
            task.state = PUSHED
            link.order += 1
            link.outstanding[task.seq] = task
            entry = self.references.entry_of(task, link.target.node)
            call = CallEntry(task.seq, task.index, link.order, "run", task.args, entry.arguments, task.refs, 1,
                             entry.args_location)
            self.send(b">" + link.name.encode(), CallActor(b"a", 0, task.prefix, [call], self.job, self.endpoint))

    def _answered(self, worker: str, message: TasksFinished) -> None:
        for result in message.results:
            self.links[worker].outstanding.pop(result.seq, None)

    def _call_failed(self, call: CallEntry, error: BaseException, context: TaskContext) -> Any:
        self.world.truth.started(object_id(context.task, 0))
        return self._failed(call, error, context)

    def calls_lost(self, target: Process) -> None:
        """The node says that calls at a dead process will not be answered."""
        link = self.links.setdefault(target.name, Link(target))
        link.lost = True
        for task in list(link.outstanding.values()):
            self._call_lost(link, task)
        link.outstanding.clear()
        self.actors.fresh.append(link)
        self.hand_out()

    def _call_lost(self, link: Link, task: Task) -> None:
        self.world.truth.lost(self, task.seq)
        self.outcomes.lost_at(task, link.target.node)
        if self.outcomes.pending.pop(task.seq, None) is not None:
            death = Death(link.name, 1, link.target.node)
            self.outcomes.fail(task, failures.encode_death("actor_died", "actor", death))

    # --- turns ---------------------------------------------------------------------------------------------------

    def receive(self, route: bytes, message: Any) -> None:
        """Handle one message, then run the calls that came with it."""
        handler = self._handlers.get(type(message))
        assert handler is not None, message
        handler(route, message)
        while self.executor.jobs:
            self.world.begin(self, self.executor.jobs.popleft())
        self.hand_out()

    def _on_died(self, message: messages.HoldersDied) -> None:
        self.references.on_holders_died(message)
        self.executor.owners_died(message)

    def hand_out(self) -> None:
        """The end of a turn."""
        while self.actors.fresh:
            self._pump(self.actors.fresh.popleft())
        self.executor.hand_out()
        self.references.holds.send_releases()
        self.objects.free_dropped()

    def turn(self) -> None:
        """A turn without a message."""
        self.hand_out()
        self.objects.flush(self.now_ns)
        self.objects.send_freed()
        self.references.tick(self.now_ns)
        self.executor.tick()
        self.hand_out()

    def rest(self) -> None:
        """Have the next turn when a session that nobody talks to would."""
        busy = self.references.holds.waiting or self.objects.waiting
        delay_ns = (100 if busy else 1000) * MS
        if self._turn_ns < self.now_ns or self._turn_ns > self.now_ns + delay_ns:
            self._turn_ns = due_ns = self.now_ns + delay_ns
            self.world.clock.at(due_ns, lambda: self._rested(due_ns))

    def _rested(self, due_ns: int) -> None:
        if self._turn_ns == due_ns:
            self._turn_ns = -1
            self.world.take_turn(self)

    def leftovers(self) -> dict[str, Any]:
        """What is left in the tables; empty when everything was dropped."""
        references, values = self.references, self.executor.values
        holds = references.holds
        found = {
            "held": holds.held, "asked": holds._asked, "then": holds._then, "released": holds.released,
            "lingering": holds._lingering, "sweeps": holds._sweeps, "resolving": references._resolving,
            "questions": references._questions, "returned": values._returned, "lent": values.lent,
            "lenders": self.host._lenders, "pending": self.outcomes.pending,
            "known": [identity for identity, one in references.known.items() if one() is not None],
        }
        return {name: table for name, table in found.items() if table}


def _spec() -> ActorSpec:
    return ActorSpec(b"a", "", "", "job", b"", "Actor", TaskEntry(0, 0), {}, {})
