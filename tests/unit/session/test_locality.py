"""Tasks with large inputs are told apart by where these lie."""

from __future__ import annotations

from meshray import config
from meshray.messages.node import DeclareDemand
from meshray.messages.tasks import Location
from meshray.object_ref import STORED, ObjectRef
from meshray.session.records import Task
from meshray.session.values import Stored
from tests.unit.session.fake_session import FakeSession

LARGE = config.LOCALITY_BYTES_MIN


def stored(node: str, size_bytes: int) -> ObjectRef:
    ref = ObjectRef(_prefix=b"0123456789", _index=1)
    ref._value = Stored(b"object", Location(node, 0, size_bytes), None, sealed=True)
    ref._state = STORED
    return ref


def with_inputs(session: FakeSession, task: Task, *refs: ObjectRef) -> str:
    """Queue a task with these arguments by its class; return the part in which it is."""
    task.slots = list(enumerate(refs))
    klass = session.submitter.near_inputs(task.klass, task)
    assert task.klass is klass
    whole = session.submitter.classes[0]
    return next((node for node, part in whole.parts.items() if part is klass), "")


def test_a_task_belongs_to_the_node_with_most_of_its_input_bytes() -> None:
    session = FakeSession()
    klass = session.new_class(mean_ns=5)
    first, second, third, fourth = session.new_tasks(klass, 4)
    assert with_inputs(session, first, stored("b", LARGE)) == "b"
    assert with_inputs(session, second, stored("b", LARGE), stored("c", LARGE), stored("c", 1)) == "c"
    assert with_inputs(session, third, stored("b", LARGE - 1)) == "", "too small to count"
    assert with_inputs(session, fourth) == ""
    part = klass.parts["b"]
    assert (part.function, part.mean_ns, part.resources, part.ready) == (
        klass.function, 5, klass.resources, True)
    assert session.submitter.classes[part.number] is part


def test_a_part_says_where_its_inputs_lie() -> None:
    session = FakeSession()
    klass = session.new_class()
    (task,) = session.new_tasks(klass, 1)
    klass.queue.clear()
    with_inputs(session, task, stored("b", 3 * LARGE))
    task.klass.queue.append(task)
    session.submitter.pump(task.klass)
    (message,) = session.take_sent(DeclareDemand)
    assert [(demand.klass, demand.input_bytes) for demand in message.demands] == [
        (task.klass.number, {"b": 3 * LARGE})]


def test_the_number_of_parts_is_bounded() -> None:
    session = FakeSession()
    klass = session.new_class()
    tasks = session.new_tasks(klass, config.LOCALITY_SPLITS_MAX + 1)
    found = [with_inputs(session, task, stored(f"n{number}", LARGE)) for number, task in enumerate(tasks)]
    assert found[:-1] == [f"n{number}" for number in range(config.LOCALITY_SPLITS_MAX)]
    assert found[-1] == ""


def test_parts_are_ready_when_the_function_is() -> None:
    session = FakeSession()
    klass = session.new_class()
    klass.ready = False
    (task,) = session.new_tasks(klass, 1)
    klass.queue.clear()
    with_inputs(session, task, stored("b", LARGE))
    task.klass.queue.append(task)
    session.grant(task.klass, 1)
    assert session.pushed() == {}
    session.submitter.exported(klass)
    assert session.pushed() == {1: [[task.seq]]}
