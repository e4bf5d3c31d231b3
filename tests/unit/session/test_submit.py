"""Tasks out: who gets how many, when tasks come back, and what the node is told."""

from __future__ import annotations

from itertools import chain

from meshray import config, failures
from meshray.errors import WorkerCrashedError
from meshray.messages.node import (
    Death,
    DeclareDemand,
    LeaseLost,
    LeaseReclaimed,
    ReassignLeases,
    ReturnLease,
    Strategy,
)
from meshray.messages.tasks import RecallTasks, TasksRecalled
from meshray.object_ref import FAILED, READY
from meshray.session.piles import STALL_NS
from tests.unit.session.fake_session import SHORT_NS, FakeSession, check


def test_without_experience_a_worker_gets_one_task() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.new_tasks(klass, 5)
    session.grant(klass, 1)
    assert session.pushed() == {1: [[1]]}
    check(session, klass)


def test_short_tasks_go_by_batches_up_to_the_depth() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 300)
    session.grant(klass, 1)
    batches = session.pushed()[1]
    assert [len(batch) for batch in batches] == [config.BATCH_TASKS_MAX, 100 - config.BATCH_TASKS_MAX]
    assert list(chain(*batches)) == list(range(1, 101)), "in the order of submission"
    check(session, klass)


def test_the_depth_has_a_limit_and_is_one_for_tasks_that_must_not_run_twice() -> None:
    session = FakeSession()
    assert session.submitter.depth(session.new_class(mean_ns=1)) == config.PIPELINE_TASKS_MAX
    assert session.submitter.depth(session.new_class(mean_ns=SHORT_NS, max_retries=0)) == 1
    assert session.submitter.depth(session.new_class(mean_ns=100 * config.PIPELINE_NS)) == 1


def test_a_worker_is_refilled_when_half_is_left() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 300)
    session.grant(klass, 1)
    session.pushed()
    session.finish(1, list(range(1, 50)), mean_ns=SHORT_NS)
    assert session.pushed() == {}, "51 of 100 are left"
    session.finish(1, [50], mean_ns=SHORT_NS)
    assert list(chain(*session.pushed()[1])) == list(range(101, 151))
    check(session, klass)


def test_the_least_loaded_worker_is_fed_first() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 40)
    session.grant(klass, 1)
    session.grant(klass, 2)
    assert list(session.pushed()) == [1]
    late = session.new_tasks(klass, 3)
    session.submitter.pump(klass)
    assert session.pushed() == {2: [[task.seq for task in late]]}
    check(session, klass)


def test_a_worker_that_does_not_answer_gets_no_more() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 2)
    session.grant(klass, 1)
    session.pushed()
    session.now_ns += STALL_NS + 1
    session.new_tasks(klass, 2)
    session.submitter.pump(klass)
    assert session.pushed() == {}
    session.finish(1, [1], mean_ns=SHORT_NS)
    assert session.pushed() == {1: [[3, 4]]}


def test_an_idle_lease_is_returned_although_others_of_its_class_are_busy() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.new_tasks(klass, 2)
    session.grant(klass, 1)
    session.grant(klass, 2)
    session.finish(1, [1])
    session.now_ns += config.LEASE_IDLE_NS // 2
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReturnLease) == [], "work may come"
    other = session.new_class(max_calls=5)
    session.new_tasks(other, 1)
    session.submitter.pump(other)
    session.now_ns += config.LEASE_IDLE_NS // 4
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReturnLease) == [ReturnLease([1])], "work of another class is there"
    assert session.take_sent(ReassignLeases) == [], "which cannot use this worker"
    check(session, klass)


def test_idle_leases_serve_the_classes_that_wait_and_can_use_them() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.new_tasks(klass, 4)
    for number in range(1, 5):
        session.grant(klass, number)
    for number in range(1, 4):
        session.finish(number, [number])
    alike, large = session.new_class(), session.new_class(max_calls=1)
    second = session.new_class()
    for waiting, count in ((alike, 1), (large, 2), (second, 1)):
        session.new_tasks(waiting, count)
        session.submitter.pump(waiting)
    session.pushed()
    session.take_sent(DeclareDemand)
    session.now_ns += config.LEASE_IDLE_NS // 2
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReassignLeases) == [ReassignLeases([1], alike.number, klass.number, 3),
                                                 ReassignLeases([2], second.number, klass.number, 2)]
    assert session.take_sent(ReturnLease) == [ReturnLease([3])], "no more than they can use"
    assert session.pushed() == {1: [[5]], 2: [[8]]}
    assert session.submitter.leases[1].klass is alike
    for each in (klass, alike, second):
        check(session, each)
    session.finish(1, [5])
    session.submitter.reclaimed(LeaseReclaimed(1))
    assert session.take_sent(ReturnLease) == [ReturnLease([1])]
    check(session, alike)


def test_a_class_of_which_the_node_has_not_heard_gets_no_lease_of_another_class() -> None:
    session = FakeSession()
    klass, fresh = session.new_class(), session.new_class()
    session.new_tasks(klass, 1)
    session.submitter.pump(klass)
    session.grant(klass, 1)
    session.finish(1, [1])
    session.new_tasks(fresh, 1)
    session.now_ns += config.LEASE_IDLE_NS // 2
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReassignLeases) == [], "the node could not follow"
    assert session.take_sent(ReturnLease) == [ReturnLease([1])]
    session.take_sent(DeclareDemand)
    session.submitter.pump(fresh)
    assert [demand.count for message in session.take_sent(DeclareDemand) for demand in message.demands] == [1]


def test_a_node_that_grants_more_than_was_declared_last_is_told_again() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.grant(klass, 1)
    assert klass.leases
    session.now_ns += 2 * config.LEASE_IDLE_NS
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReturnLease) == [ReturnLease([1])]
    counts = [(demand.klass, demand.count) for message in session.take_sent(DeclareDemand)
              for demand in message.demands]
    assert counts == [(klass.number, 0)], "or it grants another one, for ever"
    check(session, klass)


def test_the_cost_of_an_answer_does_not_grow_with_the_leases() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=100 * config.PIPELINE_NS)
    session.new_tasks(klass, 2000)
    for number in range(1, 501):
        session.grant(klass, number)
    session.pushed()
    refilled = []
    session.submitter._refill, refill = lambda lease, depth: (refilled.append(lease.number), refill(lease, depth)), (
        session.submitter._refill)
    session.finish(7, [7], mean_ns=100 * config.PIPELINE_NS)
    assert refilled == [7]
    assert session.pushed() == {7: [[501]]}
    check(session, klass)


def test_a_function_that_workers_cannot_fetch_yet_is_not_pushed() -> None:
    session = FakeSession()
    klass = session.new_class()
    klass.ready = False
    session.new_tasks(klass, 1)
    session.grant(klass, 1)
    assert session.pushed() == {}
    klass.ready = True
    session.submitter.pump(klass)
    assert session.pushed() == {1: [[1]]}


def test_a_task_that_is_tried_again_goes_alone() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    first, second, third = session.new_tasks(klass, 3)
    first.attempt = 1
    session.grant(klass, 1)
    assert session.pushed() == {1: [[first.seq]]}
    session.finish(1, [first.seq], mean_ns=SHORT_NS)
    assert session.pushed() == {1: [[second.seq, third.seq]]}


def test_what_waits_behind_a_long_task_is_recalled_for_a_free_worker_and_keeps_its_order() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 10)
    session.grant(klass, 1)
    session.pushed()
    session.now_ns += STALL_NS + 1
    session.grant(klass, 2)
    assert [message.lease for message in session.take_sent(RecallTasks)] == [1]
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(RecallTasks) == [], "it was asked already"
    session.new_tasks(klass, 1)
    session.submitter.recalled(TasksRecalled(1, [2, 3, 4, 5, 6, 7, 8, 9, 10]))
    assert session.pushed() == {2: [[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]}
    check(session, klass)


def test_what_is_to_be_spread_is_pushed_one_by_one_and_keeps_no_worker() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    klass.strategy = Strategy("spread")
    session.new_tasks(klass, 3)
    session.grant(klass, 1)
    assert session.pushed() == {1: [[1]]}
    session.grant(klass, 2)
    assert session.pushed() == {2: [[2]]}
    session.finish(1, [1], mean_ns=SHORT_NS)
    assert session.pushed() == {1: [[3]]}
    session.finish(2, [2], mean_ns=SHORT_NS)
    assert session.take_sent(ReturnLease) == [ReturnLease([2])], "the next task goes elsewhere"
    session.finish(1, [3], mean_ns=SHORT_NS)
    assert not klass.leases
    check(session, klass)


def test_a_worker_that_stalls_later_is_found_by_the_clock() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 10)
    session.grant(klass, 1)
    session.grant(klass, 2)
    session.pushed()
    assert session.take_sent(RecallTasks) == [], "it has only just begun"
    session.now_ns += STALL_NS + 1
    session.submitter.sweep(session.now_ns)
    assert [message.lease for message in session.take_sent(RecallTasks)] == [1]
    check(session, klass)


def test_a_recall_that_comes_after_all_answers_counts_no_lease_twice() -> None:
    """A lease too many made the class want none when its real ones had been returned: tasks then waited for ever."""
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 2)
    session.grant(klass, 1)
    session.pushed()
    session.now_ns += STALL_NS + 1
    session.grant(klass, 2)
    assert [message.lease for message in session.take_sent(RecallTasks)] == [1]
    session.finish(1, [1, 2], mean_ns=SHORT_NS)
    session.submitter.recalled(TasksRecalled(1, []))
    check(session, klass)


def test_a_worker_that_waits_for_others_gets_no_more_until_it_answers() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 3)
    session.grant(klass, 1)
    session.pushed()
    session.submitter.recalled(TasksRecalled(1, [2, 3], blocked=True))
    assert session.pushed() == {}
    assert [task.seq for task in klass.queue] == [2, 3]
    session.finish(1, [1], mean_ns=SHORT_NS)
    assert session.pushed() == {1: [[2, 3]]}
    check(session, klass)


def test_a_reclaimed_lease_is_returned_when_its_running_task_ends() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 3)
    session.grant(klass, 1)
    session.pushed()
    session.submitter.reclaimed(LeaseReclaimed(1))
    assert [message.lease for message in session.take_sent(RecallTasks)] == [1]
    session.submitter.recalled(TasksRecalled(1, [2, 3]))
    assert session.pushed() == {}, "it is not fed any more"
    session.finish(1, [1], mean_ns=SHORT_NS)
    assert session.take_sent(ReturnLease) == [ReturnLease([1])]
    assert not session.submitter.leases
    check(session, klass)


def test_an_idle_lease_that_is_reclaimed_is_returned_at_once() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.grant(klass, 1)
    session.submitter.reclaimed(LeaseReclaimed(1))
    session.submitter.reclaimed(LeaseReclaimed(7))
    assert session.take_sent(ReturnLease) == [ReturnLease([1]), ReturnLease([7])]
    check(session, klass)


def test_a_lost_lease_has_its_first_task_retried_and_does_not_count_the_others() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    first, second = session.new_tasks(klass, 2, retries_left=1)
    session.grant(klass, 1)
    session.submitter.lost(LeaseLost(1, Death("worker-1", 1, "node-1", signal=9)))
    assert session.forgotten == ["worker-1"]
    assert (first.retries_left, second.retries_left) == (0, 1)
    assert [task.seq for task in klass.queue] == [1, 2]
    check(session, klass)


def test_a_lost_task_without_retries_fails_with_how_its_worker_died() -> None:
    session = FakeSession()
    klass = session.new_class(max_retries=0)
    task, = session.new_tasks(klass, 1)
    ref = task.returns
    session.grant(klass, 1)
    session.submitter.lost(LeaseLost(1, Death("worker-1", 4711, "node-1", signal=9)))
    assert ref._state == FAILED
    error = failures.decode(ref._value)
    assert isinstance(error, WorkerCrashedError)
    assert "4711" in str(error)
    assert not session.outcomes.pending


def test_every_task_runs_once_when_recalls_and_losses_are_mixed() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    refs = [task.returns for task in session.new_tasks(klass, 200)]
    session.grant(klass, 1)
    session.grant(klass, 2)
    session.submitter.recalled(TasksRecalled(2, list(session.submitter.leases[2].outstanding)[50:]))
    check(session, klass)
    session.submitter.lost(LeaseLost(1, Death("worker-1", 1, "node-1")))
    check(session, klass)
    lease = session.submitter.leases[2]
    while lease.outstanding:
        session.finish(2, list(lease.outstanding)[:7], mean_ns=SHORT_NS)
        check(session, klass)
    assert all(ref._state == READY for ref in refs)
    assert not session.outcomes.pending


def test_a_class_that_comes_while_the_sweep_looks_at_the_others_does_no_harm() -> None:
    session = FakeSession()
    klass = session.new_class()

    class Queue(type(klass.queue)):  # type: ignore[misc]
        """Somebody submits for the first time while this is looked at."""

        def __bool__(self) -> bool:
            session.new_class()
            return False

    klass.queue = Queue()
    session.submitter.sweep(session.now_ns + 10**12)
    assert len(session.submitter.classes) > 1
