"""Tasks and calls from submission to outcome: waiting for arguments, results, retries, failures, cancellation.

*Pure* but for the sends it asks of its session. Runs in drivers and workers; only the leader enters.

1. A task has exactly one outcome: a value for each return, or one failure for all of them.
2. A task that was lost with its worker is retried as long as ``max_retries`` allows; one that had not started does not
   count as a try.
3. A reference completes once; then everybody who waits for it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from meshray import failures
from meshray.messages.node import Death
from meshray.messages.tasks import ReleaseReturns, ReturnsPinned, TaskResult, TasksFinished, Value
from meshray.object_ref import FAILED, PENDING, READY, ObjectRef
from meshray.session import values
from meshray.session.holds import Cookies
from meshray.session.records import CANCELLED, FINISHED, QUEUED, SchedulingClass, Task
from meshray.transport.sockets import Route, name_of

if TYPE_CHECKING:
    from meshray.session.session import Session


class Outcomes:
    """Tasks and calls of one session that have not answered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.pending: dict[int, Task] = {}
        self._unheld: set[int] = set()
        """Calls whose results contain references that we do not hold yet."""
        """By their number."""
        self.failures = 0
        """Grows with every reference that fails: a ``get`` of many looks for failures only when it has."""

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
            klass = self._session.submitter.near_inputs(task.klass, task)
            klass.queue.append(task)
            self._session.fresh.append(klass)
        else:
            self._session.actors.fresh.append(task.klass)

    def cancel_task(self, ref: ObjectRef, *, force: bool, recursive: bool) -> None:
        """Cancel the task that makes ``ref``; nothing happens if it has ended. (leader)"""
        for task in [task for task in list(self.pending.values()) if _makes(task, ref)]:
            self._cancel(task, force=force, recursive=recursive)

    def cancel_children(self, parent_seq: int, *, force: bool) -> None:
        """Cancel the tasks that the task with that number submitted. (leader)"""
        for task in [task for task in list(self.pending.values()) if task.parent_seq == parent_seq]:
            self._cancel(task, force=force, recursive=True)

    def _cancel(self, task: Task, *, force: bool, recursive: bool) -> None:
        queued = task.state == QUEUED
        task.state = CANCELLED
        task.retries_left = 0
        if queued:
            self.pending.pop(task.seq, None)
            name = task.klass.name if not task.method else f"{task.klass.name}.{task.method}"
            self.fail(task, failures.encode_system("cancelled", f"task {name} was cancelled before it started"))
            task.state = CANCELLED
            if isinstance(task.klass, SchedulingClass):
                self._session.submitter.dropped(task.klass)
        elif isinstance(task.klass, SchedulingClass):
            self._session.submitter.cancel(task, force=force, recursive=recursive)
        else:
            self._session.actors.cancel(task)

    def interrupt(self, refs: Sequence[ObjectRef]) -> None:
        """Ctrl-C in a driver's ``get``: cancel what the user waited for. Any thread."""
        if self._session.kind != "driver":
            return
        wanted = list(refs)

        def cancel() -> None:
            for ref in wanted:
                if ref._state == PENDING and ref._owner is None:
                    self.cancel_task(ref, force=False, recursive=True)

        self._session.call(cancel)

    def finished(self, route: Route, message: TasksFinished) -> None:
        """Results came. (leader)"""
        lease = self._session.submitter.leases.get(message.lease) if message.lease else None
        outstanding = lease.outstanding if lease is not None else None
        pending = self.pending
        held: list[tuple[int, Cookies]] = []
        for result in message.results:
            seq = result.seq
            if outstanding is not None:
                outstanding.pop(seq, None)
            task = pending.get(seq)
            if task is None:
                if result.values is not None and any(value.refs for value in result.values):
                    held.append((seq, ()))
                continue
            if result.error is None:
                del pending[seq]
                self._succeed(task, result.values, held)
            else:
                self._task_failed(task, result)
        if held:
            self._release_returns(route, held)
        if lease is not None:
            if message.mean_ns:
                lease.klass.mean_ns = message.mean_ns
            self._session.submitter.answered(lease, len(message.results))
        elif message.lease == 0:
            self._session.actors.answered(name_of(route), message)

    def _release_returns(self, route: Route, held: list[tuple[int, Cookies]]) -> None:
        """Tell the worker that it may let go of what its results contain, once our holds count."""
        seqs = [seq for seq, _ in held]
        cookies = tuple(cookie for _, cookies in held for cookie in cookies)
        self._unheld.update(seqs)

        def release() -> None:
            self._unheld.difference_update(seqs)
            self._session.send(route, ReleaseReturns(seqs))

        self._session.references.holds.when_held(cookies, release)

    def returns_pinned(self, route: Route, message: ReturnsPinned) -> None:
        """A worker still keeps what results contain: say again what it need not keep. (leader)"""
        seqs = [seq for seq in message.seqs if seq not in self.pending and seq not in self._unheld]
        if seqs:
            self._session.send(route, ReleaseReturns(seqs))

    def _succeed(self, task: Task, values: list[Value] | None, held: list[tuple[int, Cookies]]) -> None:
        task.state = FINISHED
        task.pins = task.slots = task.lease = None
        if task.lost_at:
            self._free_lost(task, values)
        returns, task.returns = task.returns, []
        if isinstance(returns, ObjectRef):
            if values is None:
                returns._value = None
                returns._state = READY
            else:
                cookies = self._session.references.take(returns, values[0], owned=True)
                if values[0].refs:
                    held.append((task.seq, cookies))
            if returns._waiters:
                self.completed(returns)
            return
        for ref, value in zip(returns, values or [Value()] * len(returns), strict=True):
            cookies = self._session.references.take(ref, value, owned=True)
            if value.refs:
                held.append((task.seq, cookies))
            if ref._waiters:
                self.completed(ref)

    def _task_failed(self, task: Task, result: TaskResult) -> None:
        if result.retryable and task.retries_left != 0 and task.state != CANCELLED:
            self._retry(task)
            return
        self.pending.pop(task.seq, None)
        self.fail(task, result.error or b"")

    def _retry(self, task: Task) -> None:
        task.retries_left -= 1 if task.retries_left > 0 else 0
        task.attempt += 1
        task.lease = None
        if isinstance(task.klass, SchedulingClass):
            task.state = QUEUED
            task.klass.queue.append(task)
            self._session.fresh.append(task.klass)
        else:
            self._session.actors.resend(task)

    def task_lost(self, task: Task, death: Death, *, started: bool) -> None:
        """The worker of ``task`` died before it answered. (leader)"""
        if task.seq not in self.pending:
            return
        if task.lease is not None:
            self.lost_at(task, task.lease.node)
        if task.state == CANCELLED:
            self.pending.pop(task.seq, None)
            self.fail(task, failures.encode_death("worker_died", task.klass.name, death, task.attempt))
        elif task.retries_left != 0 or not started:
            if not started:
                task.retries_left += 1 if task.retries_left >= 0 else 0
            self._retry(task)
        else:
            self.pending.pop(task.seq, None)
            self.fail(task, failures.encode_death("worker_died", task.klass.name, death, task.attempt))

    def lost_at(self, task: Task, node: str) -> None:
        """The worker that had ``task`` died on ``node``, perhaps after it had stored the result. (leader)"""
        task.lost_at = {*(task.lost_at or ()), node}

    def _free_lost(self, task: Task, values: list[Value] | None) -> None:
        """Free what earlier attempts may have stored. Not sooner: a free that finds nothing waits for the object, and
        would meet that of the next attempt."""
        kept = {value.location.node for value in values or () if value.location is not None}
        returns = [task.returns] if isinstance(task.returns, ObjectRef) else task.returns
        for node in (task.lost_at or set()) - kept:
            self._session.objects.free_at([ref.binary() for ref in returns], node)

    def fail(self, task: Task, error: bytes) -> None:
        """Give all returns of ``task`` a failure. (leader)"""
        task.state = FINISHED
        if task.pins or task.slots:
            self._session.references.holds.linger((task.pins, task.slots))
        task.pins = task.slots = task.lease = None
        if task.lost_at:
            self._free_lost(task, None)
        returns = [task.returns] if isinstance(task.returns, ObjectRef) else task.returns
        task.returns = []
        for ref in returns:
            values.fail(ref, error)
            self.completed(ref)

    def fail_all(self, reason: str) -> None:
        """Give everything that has not answered a failure: the session ends. (leader)"""
        error = failures.encode_system("lost", reason)
        for task in list(self.pending.values()):
            self.pending.pop(task.seq, None)
            self.fail(task, error)

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
            self._session.references.resolve((ref,))


def _makes(task: Task, ref: ObjectRef) -> bool:
    returns = task.returns
    return returns is ref if isinstance(returns, ObjectRef) else any(one is ref for one in returns)
