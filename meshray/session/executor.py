"""Tasks in: the worker's execute loop.

*Shell (runs user code, signals).* Runs in workers.

1. The main thread runs user code; between tasks it leads the session. Results leave in batches, and at once when
   nothing else is queued.
2. A worker that blocks gives its CPU back to the node and its unstarted tasks back to their owners.
3. Cancellation raises KeyboardInterrupt in user code only, never inside a turn of the session.

Source: DESIGN s4.5-8; the hot path is ``run`` and ``_run_task`` (``perf/test_tasks.py``).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshray import config, failures, serialization
from meshray.ids import task_id
from meshray.messages.node import Ping, Pong, StartActor, Unregister, WorkerBlocked, WorkerUnblocked
from meshray.messages.objects import HoldersDied
from meshray.messages.tasks import (
    CallActor,
    CancelTask,
    EndActor,
    PushTasks,
    RecallTasks,
    ReleaseReturns,
    TaskEntry,
    TaskResult,
    TasksFinished,
    TasksRecalled,
)
from meshray.session import current
from meshray.session.actor_host import ActorHost
from meshray.session.context import CURRENT, TaskContext
from meshray.session.task_values import TaskValues
from meshray.transport.endpoints import home_of
from meshray.transport.sockets import name_of

if TYPE_CHECKING:
    from meshray.session.session import Session

_FLUSH_NS = config.MILLISECOND_NS
_SETTLE_NS = config.SECOND_NS
_MEAN_WEIGHT = 8
"""The exponential average moves by 1/8 of the difference: a few tasks suffice to follow a change."""


class Executor:
    """Runs pushed tasks, and hosts the actor if this worker becomes one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ready: deque[tuple[bytes, PushTasks, TaskEntry]] = deque()
        self.out: deque[tuple[bytes, int, TaskResult]] = deque()
        self.jobs: deque[Callable[[], None]] = deque()
        """Work for the main thread other than tasks: becoming an actor, its calls, its end."""
        self.values = TaskValues(session)
        self.leaving = ""
        self.running: tuple[bytes, int, TaskContext] | None = None
        self.actor: ActorHost | None = None
        self.events: deque[tuple[str, int, int, str, bytes, bool]] = deque(maxlen=config.EVENTS_MAX)
        """What has run here: name, monotonic start and duration in ns, "task" or "actor", id, whether it failed."""
        self.executed = 0
        self._means: dict[bytes, int] = {}
        self._lease_function: dict[int, bytes] = {}
        self._calls_left: dict[int, int] = {}
        """By lease, for functions with ``max_calls``."""
        self._answered = b""
        """Who got the last results."""
        self.endpoints: dict[bytes, str] = {}
        """Where those live who push tasks or calls here, by route."""
        self._retiring = False
        self._blocked = 0
        self._cancel_seq = 0
        self._flushed_ns = 0
        self._main = threading.main_thread().ident or 0
        self._environment_gpus: list[int] | None = None
        handlers = session._handlers
        handlers[PushTasks] = self._on_push
        handlers[RecallTasks] = self._on_recall
        handlers[CancelTask] = self._on_cancel
        handlers[ReleaseReturns] = self.values.on_release_returns
        handlers[StartActor] = self._on_start_actor
        handlers[CallActor] = lambda route, message: self._actor().on_call(route, message)
        handlers[EndActor] = lambda route, message: self._actor().on_end(route, message)

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Run tasks until this worker leaves; return the reason."""
        driving = self.session.driving
        ready, jobs, out = self.ready, self.jobs, self.out
        clock = time.monotonic_ns
        while not self.leaving:
            if jobs:
                jobs.popleft()()
            elif ready:
                item = ready.popleft()
                self._run_task(*item)
                if len(out) >= config.BATCH_TASKS_MAX or (out and clock() - self._flushed_ns > _FLUSH_NS):
                    driving.try_step()
            else:
                try:
                    driving.until(self._has_work)
                except KeyboardInterrupt:
                    continue
        self._settle()
        return self.leaving

    def _settle(self) -> None:
        """Wait until the callers have the last answers: news of this worker's end travel on another way, and must not
        overtake them."""
        waiting = {self._answered} if self.actor is None else set(self.actor.callers)
        waiting.discard(b"")

        def ask() -> None:
            self.hand_out()
            waiting.difference_update([route for route in waiting if not self.session.send(route, Ping(0))])

        self.session._handlers[Pong] = lambda route, message: waiting.discard(route)
        self.session.call(ask)
        self.session.driving.until(lambda: not waiting or self.session.closing, time.monotonic_ns() + _SETTLE_NS)

    def _has_work(self) -> bool:
        return bool(self.ready or self.jobs or self.leaving)

    def _run_task(self, route: bytes, push: PushTasks, entry: TaskEntry) -> None:
        context = TaskContext(task_id(push.prefix, entry.index), push.name, push.job, push.attempt, gpus=push.gpus,
                              seq=entry.seq)
        token = CURRENT.set(context)
        self.running = (route, entry.seq, context)
        started_ns = time.monotonic_ns()
        try:
            if push.gpus != self._environment_gpus:
                self.set_gpus(push.gpus)
            function = self.session.functions.load(push.function, push.job)
            if entry.args is None and entry.arguments is None and entry.args_location is None:
                value = function()
            else:
                args, kwargs = self.values.arguments(route, context.task, entry, push.endpoint)
                value = function(*args, **kwargs)
                del args, kwargs
            result = (TaskResult(entry.seq) if value is None and push.num_returns == 1
                      else self.values.result(route, entry.seq, context, value, push.num_returns))
            del value
        except BaseException as error:
            result = self.failure(entry.seq, error, push.name, context, push.retry_exceptions)
        finally:
            self.running = None
            CURRENT.reset(token)
        ended_ns = time.monotonic_ns()
        spent_ns = ended_ns - started_ns
        mean_ns = self._means.get(push.function)
        if mean_ns is None:
            mean_ns = spent_ns or 1
        self._means[push.function] = mean_ns + (spent_ns - mean_ns) // _MEAN_WEIGHT
        self.events.append((push.name, started_ns, spent_ns, "task", context.task, result.error is not None))
        self.executed += 1
        if self.values.lent:
            self.values.keep_borrowed(route, entry.seq)
        self.out.append((route, push.lease, result))

    # --- failures ----------------------------------------------------------------------------------------------------

    def failure(self, seq: int, error: BaseException, name: str, context: TaskContext,
                retry_exceptions: bytes | None) -> TaskResult:
        """Return the encoded failure of a task."""
        if isinstance(error, failures.DependencyFailed):
            return TaskResult(seq, None, failures.encode_dependency(error, name))
        if isinstance(error, KeyboardInterrupt) and (context.cancelled or self._cancel_seq == seq):
            return TaskResult(seq, None, failures.encode_system("cancelled", f"task {name} was cancelled"))
        if isinstance(error, SystemExit) and self.actor is None:
            self.leaving = f"{name} called exit({error.code!r})"
        encoded = failures.encode_exception(error, name, os.getpid(), self.session.surroundings.node_name,
                                            context.attempt)
        retryable = False
        if retry_exceptions is not None:
            wanted = serialization.deserialize(retry_exceptions)
            retryable = wanted is True or (isinstance(wanted, (list, tuple)) and isinstance(error, tuple(wanted)))
        error.__traceback__ = None
        return TaskResult(seq, None, encoded, retryable)

    def set_gpus(self, gpus: list[int] | None) -> None:
        """Show the task exactly the GPUs that its lease holds."""
        self._environment_gpus = gpus
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus or ()))

    # --- turns ---------------------------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Send the results there are. (leader)"""
        out = self.out
        self._flushed_ns = time.monotonic_ns()
        while out:
            route, lease, result = out.popleft()
            results = [result]
            while out and len(results) < config.BATCH_TASKS_MAX and out[0][1] == lease and out[0][0] == route:
                results.append(out.popleft()[2])
            function = self._lease_function.get(lease)
            mean_ns = self._means.get(function, 0) if function is not None else 0
            self._answered = route
            self.session.send(route, TasksFinished(results, mean_ns, lease))
            if lease in self._calls_left:
                self._count_calls(lease, len(results))

    def _count_calls(self, lease: int, count: int) -> None:
        self._calls_left[lease] -= count
        if self._calls_left[lease] <= 0:
            self.leave("it has run max_calls tasks")

    def _on_push(self, route: bytes, message: PushTasks) -> None:
        if self._blocked or self.leaving:
            seqs = [entry.seq for entry in message.tasks]
            self.session.send(route, TasksRecalled(message.lease, seqs, bool(self._blocked)))
            return
        self.endpoints[route] = message.endpoint
        self._lease_function.clear()
        self._lease_function[message.lease] = message.function
        if message.job != self.session.job:
            self._serve(message.job)
        if message.max_calls:
            self._calls_left.setdefault(message.lease, message.max_calls)
        append = self.ready.append
        for entry in message.tasks:
            append((route, message, entry))

    def _serve(self, job: str) -> None:
        """From here on this worker runs tasks of another job: what it exported and knew for the last one is void."""
        session = self.session
        session.job = session.root.job = job
        session.namespace = ""
        current.renew()

    def _on_start_actor(self, route: bytes, message: StartActor) -> None:
        if self.actor is None:
            self._serve(message.spec.job)
            self.actor = ActorHost(self, message)
            self.jobs.append(self.actor.start)

    def _actor(self) -> ActorHost:
        assert self.actor is not None, "a call arrived before the actor was started"
        return self.actor

    def _on_recall(self, route: bytes, message: RecallTasks) -> None:
        self.session.send(route, TasksRecalled(message.lease, self._take_back(message.lease, message.count_max)))

    def _take_back(self, lease: int, count_max: int = 0) -> list[int]:
        seqs: list[int] = []
        kept = []
        while self.ready and (not count_max or len(seqs) < count_max):
            try:
                item = self.ready.pop()
            except IndexError:
                break
            if item[1].lease == lease:
                seqs.append(item[2].seq)
            else:
                kept.append(item)
        self.ready.extend(reversed(kept))
        seqs.reverse()
        return seqs

    # --- blocking ------------------------------------------------------------------------------------------------

    def block(self) -> bool:
        """The running task is about to wait. Return whether the node was told, for ``unblock``."""
        if self.running is None or self.actor is not None or threading.get_ident() != self._main:
            return False
        self._blocked += 1
        if self._blocked == 1:
            self.session.later(self._tell_blocked)
        return True

    def _tell_blocked(self) -> None:
        self.session.to_node(WorkerBlocked())
        leases: dict[int, bytes] = {item[1].lease: item[0] for item in self.ready}
        for lease, route in leases.items():
            self.session.send(route, TasksRecalled(lease, self._take_back(lease), True))

    def unblock(self) -> None:
        """The running task goes on."""
        self._blocked -= 1
        if self._blocked == 0:
            self.session.later(lambda: self.session.to_node(WorkerUnblocked()))

    # --- cancelling ----------------------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Turn SIGINT into cancellation of the running task."""
        signal.signal(signal.SIGINT, self._on_sigint)

    def _on_sigint(self, number: int, frame: Any) -> None:
        running = self.running
        if running is None or running[1] != self._cancel_seq:
            return
        if not self.session.driving.note_interrupt():
            raise KeyboardInterrupt

    def _on_cancel(self, route: bytes, message: CancelTask) -> None:
        for item in list(self.ready):
            if item[0] == route and item[2].seq == message.seq:
                try:
                    self.ready.remove(item)
                except ValueError:
                    break
                self.out.append((route, item[1].lease, TaskResult(message.seq, None, failures.encode_system(
                    "cancelled", f"task {item[1].name} was cancelled before it started"))))
                return
        if self.actor is not None:
            self.actor.cancel(route, message)
            return
        running = self.running
        if running is None or running[0] != route or running[1] != message.seq:
            return
        if message.recursive:
            self.session.outcomes.cancel_children(message.seq, force=message.force)
        if message.force:
            self.session.to_node(Unregister("force-cancelled"))
            self.session.linger()
            os._exit(1)
        running[2].cancelled = True
        self._cancel_seq = message.seq
        signal.pthread_kill(self._main, signal.SIGINT)

    # --- end -----------------------------------------------------------------------------------------------------

    def owners_died(self, message: HoldersDied) -> None:
        """Drop what dead owners wanted. (leader)"""
        gone = {route for route, endpoint in self.endpoints.items()
                if message.covers(name_of(route), home_of(endpoint))}
        for item in list(self.ready):
            if item[0] in gone:
                try:
                    self.ready.remove(item)
                except ValueError:
                    continue
        self.values.owners_died(gone)
        if self.actor is not None:
            self.actor.callers_died(gone)
        for route in gone:
            self.session.references.holds.dead[name_of(route)] = None
            del self.endpoints[route]

    def retire(self) -> None:
        """The node needs this worker no longer: leave once nobody refers to what it owns. (leader)"""
        self._retiring = True
        self.tick()

    def tick(self) -> None:
        """Leave if that was waited for; ask after old pins. (leader)"""
        if self.values.pinned:
            self.values.ask_after_pins(self.session.now_ns)
        if self._retiring and not self._lends() and not any(
                link.creation is not None for link in list(self.session.actors.links.values())):
            self.leave("idle")

    def stay_for_holders(self) -> None:
        """The node knows that this worker has ended: stay a while as long as others refer to what it owns."""
        session = self.session
        session.driving.until(lambda: session.closing or not self._lends(),
                              time.monotonic_ns() + config.OWNER_STAYS_NS)

    def _lends(self) -> bool:
        return bool(self.session.references.holds.held) or self.values.pinned

    def leave(self, reason: str) -> None:
        """End the loop after the running task. Any thread."""
        self.leaving = self.leaving or reason or "asked to leave"
        self.session.driving.wake()
