"""A session: what makes a process a driver or a worker of a cluster.

*Shell (zmq, threads).* Runs in drivers and workers.

1. All tables belong to the leader thread (see ``driving``). Other threads hand work over by appending to deques:
   ``enqueue`` for tasks, ``call`` for anything else.
2. A turn is: hand out what was queued, sleep, receive, handle, hand out again. Nothing in a turn runs user code.
3. Whoever waits for an answer re-reads the truth after a while; no push is relied on alone.
"""

from __future__ import annotations

import logging
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from meshray import config, errors, failures, serialization
from meshray.gcs.client import GcsClient
from meshray.gcs.requests import Answered, RowChanged
from meshray.ids import root_task
from meshray.machine import Connect, Received, Send, Tick, Undeliverable
from meshray.messages import node as node_messages
from meshray.messages import objects as object_messages
from meshray.messages import state as state_messages
from meshray.messages import tasks as task_messages
from meshray.messages.base import Message
from meshray.messages.node import Death, Registered
from meshray.object_ref import FAILED, PENDING, ObjectRef
from meshray.session.actors import Actors
from meshray.session.context import CURRENT, TaskContext
from meshray.session.driving import Driving
from meshray.session.functions import Functions
from meshray.session.lineage import Lineage
from meshray.session.log_printer import LogPrinter
from meshray.session.objects import Objects
from meshray.session.records import CANCELLED, FINISHED, QUEUED, SchedulingClass, Task
from meshray.session.submit import Submitter
from meshray.session.values import fail
from meshray.store.arena_file import ArenaFile
from meshray.store.client import ArenaClient
from meshray.transport.codec import BadFrame, decode, encode
from meshray.transport.sockets import Peers, Route, name_of, route_to

log = logging.getLogger("meshray.session")

_RECEIVE_MAX = 64


class Session:
    """One process's membership in a cluster. Made by ``session.connect``."""

    def __init__(self, peers: Peers, registered: Registered, *, kind: str, early: list[list[bytes]]) -> None:
        """``early`` are messages that came before the session was there."""
        self.kind = kind
        self.name = peers.name
        self.endpoint = peers.endpoint
        self.surroundings = registered
        self.node = registered.node
        self.job = registered.job
        self.namespace = registered.namespace
        self.run_dir = registered.run_dir
        self.node_route = route_to("node")
        self.now_ns = time.monotonic_ns()
        self.closing = False
        self.lost_reason = ""
        self.known_live = 1024
        self.failures = 0
        """Grows with every reference that fails: a ``get`` of many looks for failures only when it has."""
        self.pending: dict[int, Task] = {}
        """Tasks and calls that have not answered, by their number."""
        self.printer: LogPrinter | None = None
        self.restore_signals: Callable[[], object] | None = None
        self._peers = peers
        self._early = early
        self._calls: deque[Callable[[], None]] = deque()
        self._fresh: deque[SchedulingClass] = deque()
        self._watchers: dict[int, Callable[[Any], None]] = {}
        self._seq = 0
        self._seq_lock = threading.Lock()
        self._extents: dict[int, Any] = {}
        self._extent_cookie = 0
        self.gcs = GcsClient(self.name, registered.shards)
        self._asked_cluster = 0
        self._descriptions: dict[int, list[bytes]] = {}
        self._gcs_waiting: dict[int, Callable[[Answered], None]] = {}
        self._gcs_watches: dict[int, Callable[[RowChanged], None]] = {}
        self.driving = Driving(self._step)
        self.objects = Objects(self)
        self.functions = Functions(self)
        self.lineage = Lineage(self)
        self.submitter = Submitter(self)
        self.actors = Actors(self)
        self.executor: Any = None
        self.arena_file = ArenaFile.open(registered.arena_path)
        self.arena = ArenaClient(self.arena_file, self._request_extent)
        self.root = TaskContext(root_task(registered.job + ":" + self.name), name="driver", job=self.job)
        self._next_flush_ns = 0
        self._handlers = self._make_handlers()
        peers.watch_fd(self.driving.wake_fd)
        serialization.set_ref_hooks(self.objects.info_of, self.objects.restore)

    def _make_handlers(self) -> dict[type, Callable[[Route, Any], None]]:
        objects, submitter, actors = self.objects, self.submitter, self.actors
        return {
            task_messages.TasksFinished: self._on_finished,
            task_messages.TasksRecalled: lambda route, message: submitter.recalled(message),
            task_messages.CallsRefused: lambda route, message: actors.refused(message),
            node_messages.LeaseGranted: lambda route, message: submitter.granted(message),
            node_messages.LeaseReclaimed: lambda route, message: submitter.reclaimed(message),
            node_messages.LeaseLost: lambda route, message: submitter.lost(message),
            node_messages.DemandStuck: lambda route, message: submitter.stuck(message.klass, message.reason),
            node_messages.ActorChanged: lambda route, message: actors.changed(message),
            node_messages.Leave: self._on_leave,
            node_messages.Ping: lambda route, message: self.send(route, node_messages.Pong(message.cookie)),
            object_messages.HoldObjects: lambda route, message: objects.on_hold(route, name_of(route), message),
            object_messages.HoldsRegistered: lambda route, message: objects.on_registered(message),
            object_messages.ReleaseObjects: lambda route, message: objects.on_release(name_of(route), message),
            object_messages.ResolveObjects: lambda route, message: objects.on_resolve(route, message),
            object_messages.ObjectResolved: lambda route, message: objects.on_resolved(message),
            object_messages.ObjectFetched: lambda route, message: objects.on_fetched(message),
            object_messages.FetchFailed: lambda route, message: objects.on_fetch_failed(message),
            object_messages.HoldersDied: self._on_holders_died,
            object_messages.ExtentGranted: self._on_extent,
            object_messages.ExtentRefused: self._on_extent,
            object_messages.RangesFreed: lambda route, message: self.arena.ranges_freed(message.ranges),
            object_messages.SurplusWanted: self._on_surplus_wanted,
            state_messages.DescribeSession: self._on_describe,
            state_messages.Description: self._on_description,
            state_messages.LogLines: self._on_log_lines,
            state_messages.Notice: self._on_notice,
        }

    # --- the turn ------------------------------------------------------------------------------------------------

    def _step(self, timeout_ms: int) -> None:
        self._hand_out()
        if timeout_ms and not self._fresh and not self._calls and not self._early:
            self._peers.wait(min(timeout_ms, self._until_deadline_ms()))
        self.driving.drain_wakes()
        self.now_ns = time.monotonic_ns()
        arrived = self._peers.receive(_RECEIVE_MAX)
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
                self._gcs_effects(self.gcs.handle(Received(parts[0], message, parts[2:]), self.now_ns))
        if self.now_ns >= self._next_flush_ns:
            self._flush()
        self._hand_out()

    def _hand_out(self) -> None:
        while self._calls:
            self._calls.popleft()()
        while self._fresh:
            self.submitter.pump(self._fresh.popleft())
        self.actors.hand_out()
        if self.executor is not None and self.executor.out:
            self.executor.hand_out()
        if self.objects.released or self.objects.dropped:
            self.objects.flush(self.now_ns)

    def _flush(self) -> None:
        now_ns = self.now_ns
        self.objects.flush(now_ns)
        self.submitter.sweep(now_ns)
        self.lineage.flush(now_ns)
        self.actors.recheck(now_ns)
        if self.printer is not None and (self.printer.deadline_ns() or now_ns) < now_ns:
            self.printer.tick(now_ns)
        deadline_ns = self.gcs.deadline_ns()
        if deadline_ns is not None and deadline_ns <= now_ns:
            self._gcs_effects(self.gcs.handle(Tick(), now_ns))
        self._next_flush_ns = now_ns + 10 * config.MILLISECOND_NS

    def _until_deadline_ms(self) -> int:
        if self.submitter.leases or self.lineage.waiting or self.gcs.deadline_ns() is not None:
            return 10 if self.pending or self.submitter.leases else 100
        return 1000

    def later(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the leader thread, at the latest with the next turn."""
        self._calls.append(function)

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the leader thread, soon."""
        self._calls.append(function)
        self.driving.rouse()

    def block_until(self, done: Callable[[], bool], deadline_ns: int | None) -> bool:
        """Wait for ``done``; a worker's task meanwhile gives its CPU back. Raise when the cluster goes away."""
        if done():
            return True
        executor = self.executor
        blocked = executor is not None and executor.block()
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
        log.warning("%s is not there to take %s", name_of(route), type(message).__name__)
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

    # --- control store -------------------------------------------------------------------------------------------

    def gcs_write(self, operations: list[Any], done: Callable[[Answered], None] | None = None) -> None:
        """Write rows; ``done`` gets the answer. (leader)"""
        request, effects = self.gcs.write(operations, self.now_ns)
        if done is not None:
            self._gcs_waiting[request] = done
        self._gcs_effects(effects)

    def gcs_read(self, table: str, key: bytes, done: Callable[[Answered], None]) -> None:
        """Read one row. (leader)"""
        request, effects = self.gcs.read([(table, key)], self.now_ns)
        self._gcs_waiting[request] = done
        self._gcs_effects(effects)

    def gcs_scan(self, table: str, prefix: bytes, done: Callable[[Answered], None]) -> None:
        """Read rows by key prefix. (leader)"""
        request, effects = self.gcs.scan(table, prefix, self.now_ns)
        self._gcs_waiting[request] = done
        self._gcs_effects(effects)

    def _gcs_effects(self, effects: list[Any]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                if not self._peers.send(effect.to, encode(effect.message), *effect.buffers):
                    self._gcs_effects(self.gcs.handle(Undeliverable(effect.to, effect.message), self.now_ns))
            elif kind is Connect:
                self._peers.connect(effect.name, effect.endpoint)
            elif kind is Answered:
                waiting = self._gcs_waiting.pop(effect.request, None)
                if waiting is not None:
                    waiting(effect)
            elif kind is RowChanged:
                watch = self._gcs_watches.get(effect.watch)
                if watch is not None:
                    watch(effect)

    def ask_gcs(self, start: Callable[[Callable[[Answered], None]], None], timeout_s: float = 30.0) -> Answered:
        """Do a control store request from any thread and wait for its answer."""
        answers: list[Answered] = []
        self.call(lambda: start(answers.append))
        deadline_ns = time.monotonic_ns() + int(timeout_s * config.SECOND_NS)
        if not self.driving.until(lambda: bool(answers) or self.closing, deadline_ns) or not answers:
            raise errors.MeshrayError(f"the control store did not answer within {timeout_s:.0f} s: see meshray status")
        return answers[0]

    def ask_cluster(self, topics: list[str], timeout_s: float = 10.0) -> dict[str, list[dict[str, Any]]]:
        """Ask the node for descriptions of the whole cluster (see ``messages.state``). Any thread."""
        answers: list[bytes] = []
        self._asked_cluster += 1
        cookie = self._asked_cluster
        self._descriptions[cookie] = answers
        question = state_messages.DescribeCluster(cookie, topics)
        self.call(lambda: self.to_node(question))
        if not self.driving.until(lambda: bool(answers), time.monotonic_ns() + int(timeout_s * config.SECOND_NS)):
            raise errors.MeshraySystemError(f"the node did not answer within {timeout_s:.0f} s: see meshray status")
        return msgspec.json.decode(answers[0], type=dict[str, list[dict[str, Any]]])

    def _on_description(self, route: Route, message: state_messages.Description) -> None:
        answers = self._descriptions.pop(message.cookie, None)
        if answers is not None:
            answers.append(message.rows)

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

    def next_seq(self) -> int:
        """Return a number for a task or call; dense, unique in this session."""
        with self._seq_lock:
            self._seq += 1
            return self._seq

    def enqueue(self, klass: SchedulingClass, task: Task) -> None:
        """Take a task whose arguments all have values. Called by any thread."""
        self.pending[task.seq] = task
        queue = klass.queue
        queue.append(task)
        if klass.hungry > 0 or not klass.declared or len(queue) % config.BATCH_TASKS_MAX == 0:
            self._fresh.append(klass)
            self.driving.try_step() if klass.hungry else self.driving.rouse()
        elif len(queue) == 1:
            self._fresh.append(klass)

    def wait_for_arguments(self, task: Task) -> None:
        """Queue ``task`` when its reference arguments have values. (leader)"""
        def arrived(ref: ObjectRef) -> None:
            task.waits_for -= 1
            if task.waits_for == 0 and task.state == QUEUED:
                self.queue_ready(task)

        waiting = [ref for _, ref in task.slots or () if ref._state == PENDING]
        task.waits_for = len(waiting)
        if not waiting:
            self.queue_ready(task)
        for ref in waiting:
            self.when_complete(ref, arrived)

    def wait_for_creation(self, task: Task, create: Callable[[], None]) -> None:
        """Call ``create`` when the constructor arguments in ``task`` have values. (leader)"""
        waiting = [ref for _, ref in task.slots or () if ref._state == PENDING]
        task.waits_for = len(waiting)

        def arrived(ref: ObjectRef) -> None:
            task.waits_for -= 1
            if task.waits_for == 0:
                create()

        if not waiting:
            create()
        for ref in waiting:
            self.when_complete(ref, arrived)

    def queue_ready(self, task: Task) -> None:
        """Queue a task whose arguments have values. (leader)"""
        if isinstance(task.klass, SchedulingClass):
            task.klass.queue.append(task)
            self._fresh.append(task.klass)
        else:
            self.actors.fresh.append(task.klass)

    def cancel_task(self, ref: ObjectRef, *, force: bool, recursive: bool) -> None:
        """Cancel the task that makes ``ref``; nothing happens if it has ended. (leader)"""
        for task in [task for task in self.pending.values() if _makes(task, ref)]:
            self._cancel(task, force=force, recursive=recursive)

    def cancel_children(self, parent_seq: int, *, force: bool) -> None:
        """Cancel the tasks that the task with that number submitted. (leader)"""
        for task in [task for task in self.pending.values() if task.parent_seq == parent_seq]:
            self._cancel(task, force=force, recursive=True)

    def _cancel(self, task: Task, *, force: bool, recursive: bool) -> None:
        queued = task.state == QUEUED
        task.state = CANCELLED
        task.retries_left = 0
        if queued:
            self.pending.pop(task.seq, None)
            name = task.klass.name if not task.method else f"{task.klass.name}.{task.method}"
            self.fail_task(task, failures.encode_system("cancelled", f"task {name} was cancelled before it started"))
            task.state = CANCELLED
        elif isinstance(task.klass, SchedulingClass):
            self.submitter.cancel(task, force=force, recursive=recursive)
        else:
            self.actors.cancel(task)

    def interrupt(self, refs: Any) -> None:
        """Ctrl-C in a driver's ``get``: cancel what the user waited for. Any thread."""
        if self.kind != "driver":
            return
        wanted = list(refs)

        def cancel() -> None:
            for ref in wanted:
                if ref._state == PENDING and ref._owner is None:
                    self.cancel_task(ref, force=False, recursive=True)

        self.call(cancel)

    def _on_finished(self, route: Route, message: task_messages.TasksFinished) -> None:
        lease = self.submitter.leases.get(message.lease) if message.lease else None
        outstanding = lease.outstanding if lease is not None else None
        pending = self.pending
        held: list[int] = []
        for result in message.results:
            seq = result.seq
            if outstanding is not None:
                outstanding.pop(seq, None)
            task = pending.get(seq)
            if task is None:
                if result.values is not None and any(value.refs for value in result.values):
                    held.append(seq)
                continue
            if result.error is None:
                del pending[seq]
                self._succeed(task, result.values, held)
            else:
                self._task_failed(task, result)
        if held:
            self.send(route, task_messages.ReleaseReturns(held))
        if lease is not None:
            if message.mean_ns:
                lease.klass.mean_ns = message.mean_ns
            self.submitter.answered(lease, len(message.results))
        elif message.lease == 0:
            self.actors.answered(name_of(route), message)

    def _succeed(self, task: Task, values: list[task_messages.Value] | None, held: list[int]) -> None:
        task.state = FINISHED
        task.pins = task.slots = task.lease = None
        returns, task.returns = task.returns, []
        if type(returns) is ObjectRef:
            if values is None:
                returns._value = None
                returns._state = 1
            else:
                if values[0].refs:
                    held.append(task.seq)
                self.objects.take(returns, values[0], owned=True)
            if returns._waiters:
                self.completed(returns)
            return
        for ref, value in zip(returns, values or [task_messages.Value()] * len(returns), strict=True):
            if value.refs and task.seq not in held:
                held.append(task.seq)
            self.objects.take(ref, value, owned=True)
            if ref._waiters:
                self.completed(ref)

    def _task_failed(self, task: Task, result: task_messages.TaskResult) -> None:
        if result.retryable and task.retries_left != 0 and task.state != CANCELLED:
            self._retry(task)
            return
        self.pending.pop(task.seq, None)
        self.fail_task(task, result.error or b"")

    def _retry(self, task: Task) -> None:
        task.retries_left -= 1 if task.retries_left > 0 else 0
        task.attempt += 1
        task.lease = None
        if isinstance(task.klass, SchedulingClass):
            task.state = QUEUED
            task.klass.queue.append(task)
            self._fresh.append(task.klass)
        else:
            self.actors.resend(task)

    def task_lost(self, task: Task, death: Death, *, started: bool) -> None:
        """The worker of ``task`` died before it answered. (leader)"""
        if task.seq not in self.pending:
            return
        if task.state == CANCELLED:
            self.pending.pop(task.seq, None)
            self.fail_task(task, failures.encode_death("worker_died", task.klass.name, death, task.attempt))
        elif task.retries_left != 0 or not started:
            if not started:
                task.retries_left += 1 if task.retries_left >= 0 else 0
            self._retry(task)
        else:
            self.pending.pop(task.seq, None)
            self.fail_task(task, failures.encode_death("worker_died", task.klass.name, death, task.attempt))

    def fail_task(self, task: Task, error: bytes) -> None:
        """Give all returns of ``task`` a failure. (leader)"""
        task.state = FINISHED
        task.pins = task.slots = task.lease = None
        returns = [task.returns] if isinstance(task.returns, ObjectRef) else task.returns
        task.returns = []
        for ref in returns:
            fail(ref, error)
            self.completed(ref)

    # --- completion ----------------------------------------------------------------------------------------------

    def completed(self, ref: ObjectRef) -> None:
        """Tell everybody who waits for ``ref``. (leader)"""
        if ref._state == FAILED:
            self.failures += 1
        waiters = ref._waiters
        if waiters:
            ref._waiters = None
            for waiter in waiters:
                waiter(ref)

    def when_complete(self, ref: ObjectRef, waiter: Callable[[ObjectRef], None]) -> None:
        """Call ``waiter(ref)`` once ``ref`` has a value or failure. (leader)"""
        if ref._state != PENDING:
            waiter(ref)
            return
        if ref._waiters is None:
            ref._waiters = []
        ref._waiters.append(waiter)
        if ref._owner is not None:
            self.objects.resolve((ref,))

    # --- what the node says --------------------------------------------------------------------------------------

    def _on_leave(self, route: Route, message: node_messages.Leave) -> None:
        self._lose_cluster(message.reason or "the node asked this process to leave")

    def _lose_cluster(self, reason: str) -> None:
        if not self.closing:
            self.lost_reason = reason
            self.closing = True
            for task in list(self.pending.values()):
                self.pending.pop(task.seq, None)
                self.fail_task(task, failures.encode_system("lost", f"the cluster has gone: {reason}"))
            if self.executor is not None:
                self.executor.leave(reason)

    def _on_holders_died(self, route: Route, message: object_messages.HoldersDied) -> None:
        self.objects.on_holders_died(message)
        if self.executor is not None:
            self.executor.owners_died(message.processes)

    def _on_describe(self, route: Route, message: state_messages.DescribeSession) -> None:
        from meshray.session.describe import describe

        self.send(self.node_route, state_messages.Description(message.cookie, describe(self, message), []))

    def _on_log_lines(self, route: Route, message: state_messages.LogLines) -> None:
        if self.printer is not None:
            self.printer.take(message, self.now_ns)

    def _on_notice(self, route: Route, message: state_messages.Notice) -> None:
        self.warn(message.text)

    def warn(self, text: str) -> None:
        """Tell the user something."""
        sys.stderr.write(f"(meshray) {text}\n")

    # --- arena ---------------------------------------------------------------------------------------------------

    def _request_extent(self, size_bytes: int) -> tuple[int, int, int]:
        answer: list[Any] = []

        def ask() -> None:
            self._extent_cookie += 1
            self._extents[self._extent_cookie] = answer
            self.to_node(object_messages.RequestExtent(size_bytes, self._extent_cookie))

        if self.driving.lock.locked() and self.driving.stepping_thread == threading.get_ident():
            raise AssertionError("the arena may not grow inside a turn")
        self.call(ask)
        if not self.block_until(lambda: bool(answer), time.monotonic_ns() + 60 * config.SECOND_NS):
            raise errors.ObjectStoreFullError(need_bytes=size_bytes, free_bytes=0, used_bytes=0,
                                              capacity_bytes=self.surroundings.arena_bytes)
        granted = answer[0]
        if isinstance(granted, object_messages.ExtentRefused):
            raise errors.ObjectStoreFullError(
                need_bytes=granted.need_bytes, free_bytes=granted.free_bytes, used_bytes=granted.used_bytes,
                capacity_bytes=granted.capacity_bytes)
        return granted.offset, granted.size_bytes, granted.populated_bytes

    def _on_extent(self, route: Route, message: Any) -> None:
        if getattr(message, "pending", False):
            return
        answer = self._extents.pop(message.cookie, None)
        if answer is not None:
            answer.append(message)
        elif isinstance(message, object_messages.ExtentGranted):
            self.to_node(object_messages.ReturnExtents([message.offset]))

    def _on_surplus_wanted(self, route: Route, message: Any) -> None:
        self.objects.free_dropped()
        surplus = self.arena.surplus(everything=True)
        if surplus:
            self.to_node(object_messages.ReturnExtents(surplus))

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
        self._peers.close(linger_ms=200)
        serialization.set_ref_hooks(None, None)
        self.arena_file.close()
        self.driving.close()


def _makes(task: Task, ref: ObjectRef) -> bool:
    returns = task.returns
    return returns is ref if isinstance(returns, ObjectRef) else any(one is ref for one in returns)
