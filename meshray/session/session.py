"""A session: what makes a process a driver or a worker of a cluster.

*Shell (zmq, threads).* Runs in drivers and workers.

1. All tables belong to the leader thread (see ``driving``). Other threads hand work over by appending to deques:
   ``enqueue`` for tasks, ``call`` for anything else.
2. A turn is: hand out what was queued, sleep, receive, handle, hand out again. Nothing in a turn runs user code.
3. Whoever waits for an answer re-reads the truth after a while; no push is relied on alone.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from meshray import config, errors, serialization
from meshray.ids import root_task
from meshray.messages import node as node_messages
from meshray.messages import objects as object_messages
from meshray.messages import state as state_messages
from meshray.messages import tasks as task_messages
from meshray.messages.base import Message
from meshray.messages.node import Registered
from meshray.session.actors import Actors
from meshray.session.context import CURRENT, TaskContext
from meshray.session.control_tables import ControlTables
from meshray.session.driving import Driving
from meshray.session.extents import Extents
from meshray.session.functions import Functions
from meshray.session.lineage import Lineage
from meshray.session.log_printer import LogPrinter
from meshray.session.objects import Objects
from meshray.session.outcomes import Outcomes
from meshray.session.questions import Questions
from meshray.session.records import SchedulingClass, Task
from meshray.session.references import References
from meshray.session.submit import Submitter
from meshray.store.arena_file import ArenaFile
from meshray.store.client import ArenaClient
from meshray.store.pins import Pins
from meshray.transport.codec import BadFrame, decode, encode
from meshray.transport.endpoints import NODE_PROCESS
from meshray.transport.sockets import Route, SessionWire, name_of, route_to

log = logging.getLogger("meshray.session")

_RECEIVE_MAX = 64


class Session:
    """One process's membership in a cluster. Made by ``session.connect``."""

    def __init__(self, peers: SessionWire, registered: Registered, *, kind: str, early: list[list[bytes]]) -> None:
        """``early`` are messages that came before the session was there."""
        self.kind = kind
        self.name = peers.name
        self.endpoint = peers.endpoint
        self.surroundings = registered
        self.node = registered.node
        self.job = registered.job
        self.namespace = registered.namespace
        self.run_dir = registered.run_dir
        self.node_route = route_to(NODE_PROCESS)
        self.now_ns = time.monotonic_ns()
        self.closing = False
        self.lost_reason = ""
        self.printer: LogPrinter | None = None
        self.restore_signals: Callable[[], object] | None = None
        self._peers = peers
        self._early = early
        self._calls: deque[Callable[[], None]] = deque()
        self.fresh: deque[SchedulingClass] = deque()
        """Classes with something to push."""
        self.next_seq: Callable[[], int] = itertools.count(1).__next__
        """Numbers for tasks and calls: dense, unique in this session, from any thread."""
        self.driving = Driving(self._step, self._hand_out)
        self.tables = ControlTables(self, registered.shards)
        self.outcomes = Outcomes(self)
        self.questions = Questions(self)
        self.extents = Extents(self)
        self.objects = Objects(self)
        self.references = References(self)
        self.functions = Functions(self)
        self.lineage = Lineage(self)
        self.submitter = Submitter(self)
        self.actors = Actors(self)
        self.executor: Any = None
        self.arena_file = ArenaFile.open(registered.arena_path)
        self.arena = ArenaClient(self.arena_file, self.extents.request)
        self.pins = Pins(self.arena_file, registered.pin_slot)
        self.root = TaskContext(root_task(registered.job + ":" + self.name), name="driver", job=self.job)
        self._next_flush_ns = 0
        self._handlers = self._make_handlers()
        peers.watch_fd(self.driving.wake_fd)
        self._node_fd = self._watch_node(registered.pid)
        serialization.set_ref_hooks(self.references.info_of, self.references.restore)

    def _make_handlers(self) -> dict[type, Callable[[Route, Any], None]]:
        objects, submitter, actors, refs = self.objects, self.submitter, self.actors, self.references
        return {
            task_messages.TasksFinished: self.outcomes.finished,
            task_messages.ReturnsPinned: self.outcomes.returns_pinned,
            task_messages.TasksRecalled: lambda route, message: submitter.recalled(message),
            task_messages.CallsRefused: lambda route, message: actors.refused(message),
            node_messages.LeaseGranted: lambda route, message: submitter.granted(message),
            node_messages.LeaseReclaimed: lambda route, message: submitter.reclaimed(message),
            node_messages.LeaseLost: lambda route, message: submitter.lost(message),
            node_messages.DemandStuck: lambda route, message: submitter.stuck(message),
            node_messages.ActorChanged: lambda route, message: actors.changed(message),
            node_messages.Leave: self._on_leave,
            node_messages.Ping: self._on_ping,
            **refs.holds.handlers(),
            object_messages.ResolveObjects: lambda route, message: refs.on_resolve(route, message),
            object_messages.ObjectResolved: lambda route, message: refs.on_resolved(message),
            object_messages.ObjectFetched: lambda route, message: objects.on_fetched(message),
            object_messages.FetchFailed: lambda route, message: objects.on_fetch_failed(message),
            object_messages.HoldersDied: self._on_holders_died,
            object_messages.ExtentGranted: lambda route, message: self.extents.granted(message),
            object_messages.ExtentRefused: lambda route, message: self.extents.refused(message),
            object_messages.RangesFreed: lambda route, message: self.arena.ranges_freed(message.ranges),
            object_messages.SurplusWanted: lambda route, message: self.extents.surplus_wanted(message),
            state_messages.DescribeSession: self._on_describe,
            state_messages.Description: lambda route, message: self.questions.answered(message),
            state_messages.LogLines: self._on_log_lines,
            state_messages.Notice: self._on_notice,
        }

    def _watch_node(self, pid: int) -> int:
        """Return a descriptor that becomes readable when the node's process ends, -1 if there is none."""
        try:
            fd = os.pidfd_open(pid) if pid else -1
        except ProcessLookupError:
            self._lose_cluster("the node process is gone")
            return -1
        if fd >= 0:
            self._peers.watch_fd(fd)
        return fd

    def _check_node(self) -> None:
        if self._node_fd >= 0 and select.select([self._node_fd], [], [], 0)[0]:
            self._peers.unwatch_fd(self._node_fd)
            os.close(self._node_fd)
            self._node_fd = -1
            self._lose_cluster("the node process ended; see its logs in " + os.path.join(self.run_dir, "logs"))

    # --- the turn ------------------------------------------------------------------------------------------------

    def _step(self, timeout_ms: int) -> None:
        self._hand_out()
        may_wait = timeout_ms and not self.fresh and not self._calls and not self._early
        ready = self._peers.wait(min(timeout_ms, self.until_deadline_ms())) if may_wait else False
        self.driving.drain_wakes()
        self.now_ns = time.monotonic_ns()
        arrived = self._peers.receive(_RECEIVE_MAX, ready=ready)
        if self._early:
            arrived, self._early = self._early + arrived, []
        for parts in arrived:
            message = decode(parts[1])
            handler = self._handlers.get(type(message))
            if handler is not None:
                handler(parts[0], message)
            elif type(message) is BadFrame:
                log.warning("frame from %r dropped: %s", parts[0], message.reason)
            else:
                self.tables.received(parts[0], message, parts[2:])
        while self._peers.bounced:
            self._bounced(*self._peers.bounced.popleft())
        if self.now_ns >= self._next_flush_ns:
            self._flush()
        self._hand_out()

    def _bounced(self, route: Route, frame: bytes) -> None:
        """A message to a process of another node came back: what follows is what would have followed at once here."""
        message = decode(frame)
        match message:
            case BadFrame():
                return
            case node_messages.Ping(cookie=cookie):
                if node_messages.Pong in self._handlers:
                    self._handlers[node_messages.Pong](route, node_messages.Pong(cookie))
            case _:
                self.tables.undeliverable(route, message)

    def _hand_out(self) -> None:
        while self._calls:
            self._calls.popleft()()
        while self.fresh:
            self.submitter.pump(self.fresh.popleft())
        self.actors.hand_out()
        if self.executor is not None and self.executor.out:
            self.executor.hand_out()
        if self.references.holds.released:
            self.references.holds.send_releases()
        if self.objects.dropped:
            self.objects.free_dropped()

    def _flush(self) -> None:
        now_ns = self.now_ns
        self._check_node()
        self.objects.flush(now_ns)
        if self.objects.waiting:
            self.objects.send_freed()
        self.references.tick(now_ns)
        self.submitter.sweep(now_ns)
        self.lineage.flush(now_ns)
        self.actors.recheck(now_ns)
        if self.executor is not None:
            self.executor.tick()
        if self.printer is not None and (self.printer.deadline_ns() or now_ns) < now_ns:
            self.printer.tick(now_ns)
        self.tables.tick(now_ns)
        self.extents.tick(now_ns)
        self._next_flush_ns = now_ns + 10 * config.MILLISECOND_NS

    def until_deadline_ms(self) -> int:
        """Return how long a turn may sleep. (leader)"""
        if self.submitter.leases or self.lineage.waiting or self.tables.busy or self.objects.waiting:
            return 10 if self.outcomes.pending or self.submitter.leases else 100
        if self.references.holds.waiting:
            return 100
        return 1000

    def later(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the leader thread, at the latest with the next turn."""
        self._calls.append(function)

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the leader thread, soon."""
        self._calls.append(function)
        self.driving.rouse()

    def block_until(self, done: Callable[[], bool], deadline_ns: int | None, *, keep_cpu: bool = False) -> bool:
        """Wait for ``done``; a worker gives its CPU back, unless ``keep_cpu``. Raise when the cluster goes away."""
        if done():
            return True
        executor = self.executor
        blocked = executor is not None and not keep_cpu and executor.block()
        try:
            finished = self.driving.until(lambda: done() or self.closing, deadline_ns)
        finally:
            if blocked:
                executor.unblock()
        if not finished and self.driving.closed:
            self._refuse_closed()
        if finished and not done():
            self._refuse_closed()
        return finished

    def _refuse_closed(self) -> None:
        raise errors.MeshrayError(
            f"the cluster has gone: {self.lost_reason or 'this session was shut down'}. Call meshray.init() again")

    # --- sending -------------------------------------------------------------------------------------------------

    def send(self, route: Route, message: Message) -> bool:
        """Send to a peer; False if it is not there. (leader)"""
        if self._peers.send(route, encode(message)):
            return True
        log.debug("%s is not there to take %s", name_of(route), type(message).__name__)
        return False

    def to_node(self, message: Message) -> None:
        """Send to the own node. (leader)"""
        if not self._peers.send(self.node_route, encode(message)) and not self.closing:
            self._lose_cluster("the node process is gone")

    def connect(self, name: str, endpoint: str) -> Route:
        """Open a dialog with another process. (leader)"""
        return self._peers.connect(name, endpoint)

    def out_route(self, name: str) -> Route:
        """Return the route of a dialog that we opened."""
        return route_to(name)

    def forget_peer(self, name: str) -> None:
        """Close the dialog with a dead process. (leader)"""
        self._peers.disconnect(name)

    def socket_fd(self) -> int:
        """Return the descriptor that an event loop may watch; after each turn ask ``has_input``."""
        return self._peers.fileno()

    def has_input(self) -> bool:
        """Whether messages wait to be received. (leader's thread)"""
        return self._peers.has_input()

    def input_waits(self) -> bool:
        """Whether the socket's descriptor is readable. Any thread."""
        return bool(select.select([self._peers.fileno()], [], [], 0)[0])

    def patiently(self, condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> bool:
        """Ask ``condition`` again and again, ever more slowly, until it holds or the time is over."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * config.SECOND_NS)
        pause_ns = config.MILLISECOND_NS
        while not condition():
            if time.monotonic_ns() >= deadline_ns:
                log.warning("waited %.0f s in vain for %s", timeout_s, what)
                return False
            self.driving.until(lambda: self.closing, time.monotonic_ns() + pause_ns)
            pause_ns = min(pause_ns * 2, 100 * config.MILLISECOND_NS)
        return True

    # --- tasks ---------------------------------------------------------------------------------------------------

    def context(self) -> TaskContext:
        """Return the task (or driver program) that the calling code is part of."""
        return CURRENT.get() or self.root

    def enqueue(self, klass: SchedulingClass, task: Task) -> None:
        """Take a task whose arguments all have values. Called by any thread."""
        self.outcomes.pending[task.seq] = task
        queue = klass.queue
        queue.append(task)
        if klass.hungry > 0 or not klass.declared or len(queue) % config.BATCH_TASKS_MAX == 0:
            self.fresh.append(klass)
            self.driving.try_hand_out()
        elif len(queue) == 1:
            self.fresh.append(klass)

    # --- what the node says --------------------------------------------------------------------------------------

    def _on_ping(self, route: Route, message: node_messages.Ping) -> None:
        self.send(route, node_messages.Pong(message.cookie))

    def _on_leave(self, route: Route, message: node_messages.Leave) -> None:
        if message.reason == node_messages.NOT_NEEDED and self.executor is not None:
            self.executor.retire()
        else:
            self._lose_cluster(message.reason or "the node asked this process to leave")

    def _lose_cluster(self, reason: str) -> None:
        if not self.closing:
            self.lost_reason = reason
            self.closing = True
            self.outcomes.fail_all(f"the cluster has gone: {reason}")
            if self.executor is not None:
                self.executor.leave(reason)

    def _on_holders_died(self, route: Route, message: object_messages.HoldersDied) -> None:
        self.references.on_holders_died(message)
        if self.executor is not None:
            self.executor.owners_died(message)

    def _on_describe(self, route: Route, message: state_messages.DescribeSession) -> None:
        from meshray.session.describe import describe

        rows = describe(self, message, time.time_ns() - self.now_ns)
        self.send(self.node_route, state_messages.Description(message.cookie, rows, []))

    def _on_log_lines(self, route: Route, message: state_messages.LogLines) -> None:
        if self.printer is not None:
            self.printer.take(message, self.now_ns)

    def _on_notice(self, route: Route, message: state_messages.Notice) -> None:
        self.warn(message.text)

    def warn(self, text: str) -> None:
        """Tell the user something."""
        sys.stderr.write(f"(meshray) {text}\n")

    # --- end -----------------------------------------------------------------------------------------------------

    def farewell(self, reason: str, *, stop_cluster: bool = False, timeout_s: float = 5.0) -> bool:
        """Send what is queued, tell the node that this process leaves, and wait for its answer."""
        told: list[bool] = []
        self._handlers[node_messages.Unregistered] = lambda route, message: told.append(True)

        def say() -> None:
            self.submitter.return_all()
            self._peers.send(self.node_route, encode(node_messages.Unregister(reason, stop_cluster)))

        self.call(say)
        return self.driving.until(lambda: bool(told), time.monotonic_ns() + int(timeout_s * config.SECOND_NS))

    def linger(self) -> None:
        """Give the socket a moment to send before this process exits. (leader)"""
        self._peers.close(linger_ms=200)

    def close(self) -> None:
        """Leave the cluster and release everything."""
        self.closing = True
        if self.printer is not None:
            self.printer.flush()
        self.driving.stop()
        self.driving.lock.acquire(timeout=5.0)
        self.outcomes.fail_all("its session was shut down before it was there")
        self._peers.close(linger_ms=200)
        serialization.set_ref_hooks(None, None)
        for part in (self.pins, self.arena_file, self.driving):
            part.close()
        if self._node_fd >= 0:
            os.close(self._node_fd)
