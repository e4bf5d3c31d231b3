"""Results, retries, cancellation and waiting for arguments: a task has one outcome."""

from __future__ import annotations

from typing import Any

import pytest

from meshray import failures, serialization
from meshray.errors import TaskCancelledError, WorkerCrashedError
from meshray.messages.node import Death
from meshray.messages.objects import HoldObjects, HoldsRegistered, ResolveObjects
from meshray.messages.tasks import CancelTask, RefInfo, ReleaseReturns, ReturnsPinned, TaskResult, TasksFinished, Value
from meshray.object_ref import FAILED, PENDING, READY, ObjectRef
from meshray.session.records import CANCELLED, PUSHED, QUEUED, Task
from meshray.session.values import fail
from tests.unit.session.fake_session import PREFIX, FakeSession

LIST = serialization.serialize([1, 2]).data
ERROR = failures.encode_system("system", "it broke")


def running(**fields: Any) -> tuple[FakeSession, Task, ObjectRef]:
    """Return a session with one task at worker 1, and the task's reference."""
    session = FakeSession()
    klass = session.new_class()
    task, = session.new_tasks(klass, 1, **fields)
    session.grant(klass, 1)
    assert task.state == PUSHED
    session.sent.clear()
    return session, task, task.returns  # type: ignore[return-value]


def test_a_result_completes_its_reference_and_forgets_the_task() -> None:
    session, task, ref = running(pins=[ObjectRef()])
    told: list[ObjectRef] = []
    session.outcomes.when_complete(ref, told.append)
    session.finish(1, [1])
    assert (ref._state, ref._value) == (READY, None)
    assert told == [ref]
    assert task.pins is None, "arguments are let go"
    assert not session.outcomes.pending


def test_only_the_first_outcome_counts() -> None:
    session, _, ref = running()
    session.finish(1, [1])
    session.finish(1, [1], error=ERROR)
    assert ref._state == READY
    assert session.outcomes.failures == 0


def test_several_returns_are_filled_in_order_or_fail_together() -> None:
    for error in (None, ERROR):
        session = FakeSession()
        klass = session.new_class()
        refs = [ObjectRef(_prefix=PREFIX, _index=1, _return=index) for index in range(2)]
        session.new_tasks(klass, 1, retries_left=0)
        session.outcomes.pending[1].returns = refs
        values = [Value(), Value()] if error is None else None
        session.grant(klass, 1)
        session.outcomes.finished(b"worker", TasksFinished([TaskResult(1, values, error)], 0, 1))
        assert [ref._state for ref in refs] == [READY if error is None else FAILED] * 2


def test_an_exception_is_retried_only_if_the_worker_says_so_and_tries_are_left() -> None:
    session, task, ref = running(retries_left=1)
    session.finish(1, [1], error=ERROR, retryable=True)
    assert ref._state == PENDING
    assert (task.attempt, task.retries_left) == (1, 0)
    assert task in task.klass.queue or task.state == PUSHED
    session.submitter.pump(task.klass)
    session.finish(1, [1], error=ERROR, retryable=True)
    assert ref._state == FAILED
    assert session.outcomes.failures == 1

    session, _, ref = running(retries_left=5)
    session.finish(1, [1], error=ERROR)
    assert ref._state == FAILED


def test_retries_without_end_stay_without_end() -> None:
    session, task, ref = running(retries_left=-1)
    for _ in range(5):
        session.outcomes.task_lost(task, Death("worker-1", 1, "node-1"), started=True)
    assert ref._state == PENDING
    assert (task.retries_left, task.attempt) == (-1, 5)


def test_a_task_that_had_not_started_keeps_its_tries() -> None:
    for tries in (-1, 0, 2):
        session, task, ref = running(retries_left=tries)
        session.outcomes.task_lost(task, Death("worker-1", 1, "node-1"), started=False)
        assert (ref._state, task.retries_left, task.state) == (PENDING, tries, QUEUED)
    session, task, ref = running(retries_left=0)
    session.outcomes.task_lost(task, Death("worker-1", 1, "node-1"), started=True)
    assert isinstance(failures.decode(ref._value), WorkerCrashedError)


def test_a_queued_task_is_cancelled_at_once_and_never_pushed() -> None:
    session = FakeSession()
    klass = session.new_class()
    first, second = session.new_tasks(klass, 2)
    ref = first.returns
    session.outcomes.cancel_task(ref, force=False, recursive=True)
    assert isinstance(failures.decode(ref._value), TaskCancelledError)
    session.grant(klass, 1)
    assert session.pushed() == {1: [[second.seq]]}


def test_the_demand_of_cancelled_tasks_is_taken_back() -> None:
    """What no node can run would be asked for for ever, and its queue be kept."""
    session = FakeSession()
    klass = session.new_class()
    tasks = session.new_tasks(klass, 8)
    refs = [task.returns for task in tasks]
    session.submitter.pump(klass)
    for ref in refs[1:]:
        session.outcomes.cancel_task(ref, force=False, recursive=True)
    assert list(klass.queue) == tasks[:1]
    session.outcomes.cancel_task(refs[0], force=False, recursive=True)
    assert [message.demands[0].count for message in session.told][-1] == 0
    assert not klass.queue


def test_a_running_task_is_asked_to_stop_and_not_tried_again() -> None:
    session, task, ref = running()
    session.outcomes.cancel_task(ref, force=True, recursive=False)
    assert session.take_sent(CancelTask) == [CancelTask(1, True, False)]
    assert (ref._state, task.state) == (PENDING, CANCELLED)
    session.finish(1, [1], error=failures.encode_system("cancelled", "stopped"), retryable=True)
    assert isinstance(failures.decode(ref._value), TaskCancelledError)
    session.outcomes.cancel_task(ref, force=True, recursive=False)
    assert session.take_sent(CancelTask) == []


def test_a_cancelled_task_whose_worker_dies_is_not_tried_again() -> None:
    session, task, ref = running()
    session.outcomes.cancel_task(ref, force=True, recursive=False)
    session.outcomes.task_lost(task, Death("worker-1", 1, "node-1", signal=9), started=True)
    assert ref._state == FAILED


def test_children_of_a_task_are_cancelled_with_it() -> None:
    session = FakeSession()
    klass = session.new_class()
    child, = session.new_tasks(klass, 1, parent_seq=40)
    other, = session.new_tasks(klass, 1, parent_seq=41)
    session.outcomes.cancel_children(40, force=False)
    assert (child.state, other.state) == (CANCELLED, QUEUED)


@pytest.mark.parametrize("kind", ["driver", "worker"])
def test_ctrl_c_cancels_what_a_driver_waited_for(kind: str) -> None:
    session, _, ref = running()
    session.kind = kind
    session.outcomes.interrupt([ref])
    assert bool(session.take_sent(CancelTask)) == (kind == "driver")


def test_a_task_is_queued_when_its_last_argument_arrives() -> None:
    session = FakeSession()
    klass = session.new_class()
    task, = session.new_tasks(klass, 1)
    klass.queue.clear()
    inputs = [ObjectRef(_prefix=PREFIX, _index=90 + index) for index in range(3)]
    inputs[2]._state = READY
    task.slots = list(enumerate(inputs))
    session.outcomes.wait_for_arguments(task)
    for ref in inputs[:2]:
        assert not klass.queue
        ref._state = READY
        session.outcomes.completed(ref)
    assert list(klass.queue) == [task]
    assert list(session.fresh) == [klass]


def test_a_failed_argument_also_arrives_and_a_cancelled_task_stays_out_of_the_queue() -> None:
    session = FakeSession()
    klass = session.new_class()
    task, cancelled = session.new_tasks(klass, 2)
    klass.queue.clear()
    argument = ObjectRef(_prefix=PREFIX, _index=90)
    for each in (task, cancelled):
        each.slots = [(0, argument)]
        session.outcomes.wait_for_arguments(each)
    session.outcomes.cancel_task(cancelled.returns, force=False, recursive=True)
    fail(argument, ERROR)
    session.outcomes.completed(argument)
    assert list(klass.queue) == [task]


def test_waiting_for_a_borrowed_reference_asks_its_owner() -> None:
    session = FakeSession()
    borrowed = session.references.restore(b"x" * 18, "other", "ipc://other")
    session.outcomes.when_complete(borrowed, lambda ref: None)
    assert session.take_sent(ResolveObjects) == [ResolveObjects([b"x" * 18])]


def test_references_inside_a_result_are_held_before_the_worker_may_let_go() -> None:
    session, _, ref = running()
    inner = RefInfo(b"y" * 18, "other", "ipc://other")
    session.outcomes.finished(b">worker-1", TasksFinished([TaskResult(1, [Value(LIST, None, [inner])])], 0, 1))
    (_, asked), = session.sent
    assert isinstance(asked, HoldObjects)
    session.references.holds.on_registered(HoldsRegistered(asked.cookie, []))
    assert session.sent[1:] == [(b">worker-1", ReleaseReturns([1]))]
    assert [each.binary() for each in ref._contains] == [b"y" * 18]


def test_a_worker_that_asks_is_told_again_what_it_need_not_pin() -> None:
    session, _, _ = running()
    pinned = ReturnsPinned([1, 77])
    session.outcomes.returns_pinned(b">worker-1", pinned)
    assert session.take_sent(ReleaseReturns) == [ReleaseReturns([77])], "the answer of 1 may be on its way"
    inner = RefInfo(b"y" * 18, "other", "ipc://other")
    session.outcomes.finished(b">worker-1", TasksFinished([TaskResult(1, [Value(LIST, None, [inner])])], 0, 1))
    session.outcomes.returns_pinned(b">worker-1", pinned)
    assert session.take_sent(ReleaseReturns) == [ReleaseReturns([77])], "what is inside is not held yet"
    asked, = session.take_sent(HoldObjects)
    session.references.holds.on_registered(HoldsRegistered(asked.cookie, []))
    assert session.take_sent(ReleaseReturns) == [ReleaseReturns([1])]
    session.outcomes.returns_pinned(b">worker-1", pinned)
    assert session.take_sent(ReleaseReturns) == [ReleaseReturns([1, 77])]


def test_a_result_that_nobody_waits_for_lets_its_worker_go_of_what_it_pins() -> None:
    session, _, _ = running()
    inner = RefInfo(b"y" * 18, "other", "ipc://other")
    session.outcomes.finished(b">worker-1", TasksFinished([TaskResult(77, [Value(LIST, None, [inner])])], 0, 1))
    assert [type(message) for _, message in session.sent] == [ReleaseReturns]
