"""What a session tells its node of its work, and what it gives back."""

from __future__ import annotations

from meshray import config, failures
from meshray.errors import TaskUnschedulableError
from meshray.messages.node import (
    DeclareDemand,
    DemandStuck,
    LeaseReclaimed,
    ReturnLease,
)
from meshray.object_ref import PENDING
from tests.unit.session.fake_session import SHORT_NS, FakeSession, check


def demands(session: FakeSession) -> list[int]:
    return [demand.count for message in session.take_sent(DeclareDemand) for demand in message.demands]


def test_demand_is_declared_only_when_it_changes() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.new_tasks(klass, 4)
    session.submitter.pump(klass)
    assert demands(session) == [4]
    session.submitter.pump(klass)
    session.new_tasks(klass, 0)
    session.submitter.pump(klass)
    assert demands(session) == []
    session.new_tasks(klass, 1)
    session.submitter.pump(klass)
    assert demands(session) == [5]


def test_demand_follows_the_work_not_the_number_of_tasks() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS)
    session.new_tasks(klass, 300)
    session.submitter.pump(klass)
    assert demands(session) == [3]


def test_idle_leases_are_returned_after_a_while_and_the_demand_goes_to_nothing() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.new_tasks(klass, 2)
    session.submitter.pump(klass)
    session.grant(klass, 1)
    session.grant(klass, 2)
    for lease in (1, 2):
        session.finish(lease, [lease])
    demands(session)
    session.now_ns += config.LEASE_IDLE_NS
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReturnLease) == [], "not before the time is over"
    session.now_ns += config.LEASE_IDLE_NS
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReturnLease) == [ReturnLease([1, 2])]
    assert demands(session)[-1] == 0
    check(session, klass)


def test_a_lease_that_comes_after_its_work_is_done_is_returned_like_any_other() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.new_tasks(klass, 1)
    session.submitter.pump(klass)
    session.grant(klass, 1)
    session.grant(klass, 2)
    session.now_ns += config.LEASE_IDLE_NS + 1
    session.submitter.sweep(session.now_ns)
    assert session.take_sent(ReturnLease) == [ReturnLease([2])]
    check(session, klass)


def test_a_lease_that_nobody_asked_for_goes_back() -> None:
    session = FakeSession()
    klass = session.new_class()
    session.closing = True
    session.grant(klass, 1)
    assert session.take_sent(ReturnLease) == [ReturnLease([1])]
    assert not klass.leases


def test_a_worker_gets_no_more_tasks_than_it_may_run() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=SHORT_NS, max_calls=3)
    session.new_tasks(klass, 5)
    session.grant(klass, 1)
    assert session.pushed() == {1: [[1, 2, 3]]}
    session.finish(1, [1, 2, 3], mean_ns=SHORT_NS)
    assert session.pushed() == {}
    session.submitter.reclaimed(LeaseReclaimed(1))
    assert session.take_sent(ReturnLease) == [], "its worker ends: nobody else could use it"


def test_what_cannot_run_anywhere_is_told_once_and_fails_only_when_that_is_final() -> None:
    session = FakeSession()
    klass = session.new_class()
    task, = session.new_tasks(klass, 1)
    ref = task.returns
    for _ in range(2):
        session.submitter.stuck(DemandStuck(klass.number, "no node has GPU"))
    assert len(session.warned) == 1
    assert "no node has GPU" in session.warned[0]
    assert ref._state == PENDING
    session.submitter.stuck(DemandStuck(klass.number, "its node is gone", final=True))
    assert isinstance(failures.decode(ref._value), TaskUnschedulableError)
