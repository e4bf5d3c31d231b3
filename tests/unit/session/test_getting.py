"""get and wait: what is returned, raised, split and refused."""

from __future__ import annotations

from typing import Any

import pytest

from meshray import failures, serialization
from meshray.errors import GetTimeoutError, MeshraySystemError
from meshray.messages.objects import ResolveObjects
from meshray.messages.tasks import CancelTask, Value
from meshray.object_ref import DATA, PENDING, READY, ObjectRef
from meshray.session import getting
from meshray.session.values import fail, fill
from tests.unit.session.fake_session import PREFIX, FakeSession

BROKE = failures.encode_system("system", "it broke")


def refs_of(count: int) -> list[ObjectRef]:
    return [ObjectRef(_prefix=PREFIX, _index=index + 1) for index in range(count)]


def arrive(session: Any, ref: ObjectRef, value: Any) -> None:
    fill(ref, Value(serialization.serialize(value).data), None)
    session.outcomes.completed(ref)


def break_(session: Any, ref: ObjectRef) -> None:
    fail(ref, BROKE)
    session.outcomes.completed(ref)


def test_a_ready_value_costs_no_turn() -> None:
    ref = ObjectRef(_state=READY, _value=7)
    nobody: Any = None
    assert getting.get_one(nobody, ref, 0) == 7


def test_values_come_in_list_order_however_they_arrive() -> None:
    session: Any = FakeSession()
    refs = refs_of(3)
    for position in (2, 0, 1):
        session.happens.append(lambda position=position: arrive(session, refs[position], position))
    assert getting.get_many(session, [*refs, refs[0]], None) == [0, 1, 2, 0]
    assert getting.get_many(session, [], None) == []


def test_two_gets_of_a_mutable_value_share_nothing() -> None:
    session: Any = FakeSession()
    ref, = refs_of(1)
    arrive(session, ref, [1])
    assert ref._state == DATA
    assert getting.get_one(session, ref, None) is not getting.get_one(session, ref, None)


def test_the_first_failure_is_raised_without_waiting_for_the_rest() -> None:
    session: Any = FakeSession()
    refs = refs_of(3)
    session.happens.append(lambda: break_(session, refs[2]))
    with pytest.raises(MeshraySystemError, match="it broke"):
        getting.get_many(session, refs, None)
    assert refs[0]._state == PENDING


def test_a_timeout_says_what_is_missing() -> None:
    session: Any = FakeSession()
    refs = refs_of(3)
    session.happens.append(lambda: arrive(session, refs[0], 1))
    with pytest.raises(GetTimeoutError, match="1 of 3 objects are ready") as raised:
        getting.get_many(session, refs, 0.5)
    assert refs[1].hex() in str(raised.value)


def test_owners_of_borrowed_references_are_asked() -> None:
    session: Any = FakeSession()
    ref = session.references.restore(b"x" * 18, "other", "ipc://other")
    session.happens.append(lambda: arrive(session, ref, 3))
    assert getting.get_one(session, ref, None) == 3
    assert session.take_sent(ResolveObjects) == [ResolveObjects([b"x" * 18])]


def test_ctrl_c_cancels_what_was_waited_for_and_goes_on_to_the_user() -> None:
    session: Any = FakeSession()
    klass = session.new_class()
    task, = session.new_tasks(klass, 1)
    session.grant(klass, 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    session.happens.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        getting.get_many(session, [task.returns], None)
    assert session.take_sent(CancelTask) == [CancelTask(task.seq, False, True)]


@pytest.mark.parametrize("thing", [3, None, "x", [1]])
def test_get_refuses_what_is_not_a_reference(thing: Any) -> None:
    session: Any = FakeSession()
    with pytest.raises(TypeError, match="ObjectRef"):
        getting.get_many(session, [thing], None)


@pytest.mark.parametrize(("timeout", "error"), [("1", TypeError), (True, TypeError), (-1, ValueError)])
def test_bad_timeouts_are_refused(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout"):
        getting.deadline_of(timeout)
    assert getting.deadline_of(None) is None


def test_wait_splits_in_the_callers_order() -> None:
    session: Any = FakeSession()
    refs = refs_of(5)
    for position in (4, 1, 2):
        session.happens.append(lambda position=position: arrive(session, refs[position], 0))
    ready, rest = getting.wait(session, refs, 3, None)
    assert ready == [refs[1], refs[2], refs[4]]
    assert rest == [refs[0], refs[3]]


def test_wait_returns_no_more_than_was_asked_for() -> None:
    session: Any = FakeSession()
    refs = refs_of(4)
    for ref in refs[1:]:
        arrive(session, ref, 0)
    assert getting.wait(session, refs, 1, None) == ([refs[1]], [refs[0], *refs[2:]])
    assert getting.wait(session, refs, 2, None) == (refs[1:3], [refs[0], refs[3]])


def test_wait_counts_failures_as_ready_and_returns_what_there_is_at_its_timeout() -> None:
    session: Any = FakeSession()
    refs = refs_of(3)
    session.happens.append(lambda: break_(session, refs[1]))
    assert getting.wait(session, refs, 2, 1.0) == ([refs[1]], [refs[0], refs[2]])


def test_wait_without_time_looks_once_at_what_came() -> None:
    session: Any = FakeSession()
    refs = refs_of(2)
    session.happens.extend([lambda: arrive(session, refs[1], 0), lambda: arrive(session, refs[0], 0)])
    assert getting.wait(session, refs, 2, 0) == ([refs[1]], [refs[0]])


@pytest.mark.parametrize(("refs", "count", "error", "words"), [
    (ObjectRef(), 1, TypeError, "wrap it in a list"),
    ((ObjectRef(),), 1, TypeError, "not tuple"),
    ([1], 1, TypeError, "int"),
    ([[]], 1, TypeError, "list"),
    ([ObjectRef(), 3], 1, TypeError, "int"),
    ([ObjectRef()] * 1 + [ObjectRef()], 3, ValueError, "between 1 and"),
    ([ObjectRef()], 0, ValueError, "between 1 and"),
    ([ObjectRef()], True, TypeError, "num_returns"),
    ([ObjectRef()], 1.0, TypeError, "num_returns"),
])
def test_wait_refuses_what_makes_no_sense(refs: Any, count: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        getting.check_wait(refs, count)


def test_wait_refuses_repeated_references() -> None:
    ref = ObjectRef()
    with pytest.raises(ValueError, match="1 of 2 are repeated"):
        getting.check_wait([ref, ref], 1)
