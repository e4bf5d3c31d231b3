"""Actors: state, order, names, handles, options of methods, and their end."""

from __future__ import annotations

import os
import uuid

import pytest

import meshray

from .support import Gate, Journal, is_alive, wait_gone, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")


@meshray.remote
class Counter:
    """Counts."""

    step = 1

    def __init__(self, start=0, *, step=1):
        self.value, self.step = start, step

    def add(self, n=1):
        self.value += n * self.step
        return self.value

    @meshray.method(num_returns=2)
    def both(self):
        return self.value, -self.value

    def pid(self):
        return os.getpid()

    def raises(self):
        raise KeyError("from a method")

    def me(self):
        return meshray.get_runtime_context().current_actor


@meshray.remote
def add_through(handle, n):
    return meshray.get(handle.add.remote(n))


def test_state_and_constructor_arguments():
    counter = Counter.remote(meshray.put(10), step=2)
    assert meshray.get([counter.add.remote(), counter.add.remote(3)]) == [12, 18]
    assert meshray.get(counter.add.remote(n=1)) == 20


def test_each_actor_is_a_process_of_its_own():
    actors = [Counter.remote() for _ in range(3)]
    pids = meshray.get([actor.pid.remote() for actor in actors])
    assert len({*pids, os.getpid()}) == 4
    assert meshray.get(actors[0].pid.remote()) == pids[0]


def test_actors_take_no_cpu_while_they_run():
    actors = [Counter.remote() for _ in range(6)]
    assert meshray.get([actor.add.remote() for actor in actors], timeout=30) == [1] * 6


def test_calls_of_one_caller_run_in_order():
    @meshray.remote
    class Log:
        def __init__(self):
            self.seen = []

        def note(self, i):
            self.seen.append(i)

        def all(self):
            return self.seen

    log = Log.remote()
    for i in range(1000):
        log.note.remote(i)
    assert meshray.get(log.all.remote()) == list(range(1000))


def test_order_holds_when_an_earlier_call_waits_for_its_argument(tmp_path):
    gate = Gate(tmp_path / "gate")

    @meshray.remote(num_cpus=0)
    def late():
        gate.wait()
        return 100

    counter = Counter.remote()
    first, second = counter.add.remote(late.remote()), counter.add.remote(1)
    assert meshray.wait([second], timeout=0.05) == ([], [second])
    gate.open()
    assert meshray.get([first, second]) == [100, 101]


def test_each_caller_keeps_its_own_order():
    @meshray.remote
    class Log:
        def __init__(self):
            self.seen = []

        def note(self, who, i):
            self.seen.append((who, i))

        def all(self):
            return self.seen

    @meshray.remote
    def caller(log, who):
        meshray.get([log.note.remote(who, i) for i in range(100)])

    log = Log.remote()
    meshray.get([caller.remote(log, who) for who in range(4)])
    seen = meshray.get(log.all.remote())
    assert [[i for who, i in seen if who == wanted] for wanted in range(4)] == [list(range(100))] * 4


def test_exceptions_leave_the_actor_alive():
    counter = Counter.remote()
    with pytest.raises(KeyError, match="from a method"):
        meshray.get(counter.raises.remote())
    assert meshray.get(counter.add.remote()) == 1


def test_method_options():
    counter = Counter.remote(7)
    plus, minus = counter.both.remote()
    assert meshray.get([plus, minus]) == [7, -7]
    assert meshray.get(counter.both.options(num_returns=1).remote()) == (7, -7)
    assert counter.add.options(num_returns=0).remote() is None
    assert meshray.get(counter.add.options(name="shown").remote()) == 9


def test_handles_are_passed_around():
    counter = Counter.remote()
    assert meshray.get(add_through.remote(counter, 5)) == 5
    assert meshray.get(meshray.get(meshray.put({"deep": [counter]}))["deep"][0].add.remote()) == 6
    assert meshray.get(meshray.get(counter.me.remote()).add.remote()) == 7


def test_actors_made_inside_tasks_and_actors():
    @meshray.remote
    class Parent:
        def __init__(self):
            self.child = Counter.remote(40)

        def through(self):
            return meshray.get(self.child.add.remote(2))

        def give(self):
            return self.child

    @meshray.remote
    def make():
        return Counter.remote(1)

    parent = Parent.remote()
    assert meshray.get(parent.through.remote()) == 42
    child = meshray.get(parent.give.remote())
    made = meshray.get(make.remote())
    assert meshray.get([child.add.remote(1), made.add.remote(1)]) == [43, 2]


def test_methods_call_other_actors_and_tasks():
    @meshray.remote
    class Relay:
        def __init__(self, target):
            self.target = target

        def add(self, n):
            return meshray.get(self.target.add.remote(n))

    last = Counter.remote()
    chain = last
    for _ in range(3):
        chain = Relay.remote(chain)
    assert meshray.get(chain.add.remote(11)) == 11


def test_inheritance_and_special_methods():
    class Base:
        def hello(self):
            return f"hello {self.name}"

    @meshray.remote
    class Derived(Base):
        name = "derived"

        @property
        def secret(self):
            return 1

        @classmethod
        def make(cls):
            return cls.name

        @staticmethod
        def still(x):
            return x

        def __call__(self, x):
            return x + self.secret

    actor = Derived.remote()
    assert meshray.get(actor.hello.remote()) == "hello derived"
    assert meshray.get([actor.make.remote(), actor.still.remote(3), actor.__call__.remote(4)]) == ["derived", 3, 5]


def test_unknown_method_and_direct_use_are_refused():
    counter = Counter.remote()
    with pytest.raises(AttributeError, match="multiply"):
        _ = counter.multiply
    with pytest.raises(TypeError, match="remote"):
        counter.add(1)
    with pytest.raises(TypeError, match="remote"):
        Counter()


def test_names():
    name = f"name-{uuid.uuid4().hex}"
    counter = Counter.options(name=name).remote()
    assert meshray.get(meshray.get_actor(name).add.remote()) == 1

    @meshray.remote
    def by_name():
        return meshray.get(meshray.get_actor(name).add.remote())

    assert meshray.get(by_name.remote()) == 2
    with pytest.raises(ValueError, match=name):
        Counter.options(name=name).remote()
    assert meshray.get(counter.add.remote()) == 3


def test_name_is_free_again_after_the_end():
    name = f"name-{uuid.uuid4().hex}"
    counter = Counter.options(name=name).remote()
    meshray.get(counter.add.remote())
    meshray.kill(counter)

    def taken():
        try:
            meshray.get_actor(name)
        except ValueError:
            return False
        return True

    wait_until(lambda: not taken())
    assert meshray.get(Counter.options(name=name).remote(5).add.remote()) == 6


def test_get_actor_of_an_unknown_name():
    with pytest.raises(ValueError, match="nobody"):
        meshray.get_actor("nobody")
    with pytest.raises(ValueError, match="get_actor"):
        meshray.get_actor("")


def test_namespaces_are_separate():
    name = f"name-{uuid.uuid4().hex}"
    here = Counter.options(name=name).remote(1)
    there = Counter.options(name=name, namespace="elsewhere").remote(100)
    assert meshray.get([here.add.remote(), there.add.remote()]) == [2, 101]
    assert meshray.get(meshray.get_actor(name, namespace="elsewhere").add.remote()) == 102
    with pytest.raises(ValueError, match=name):
        meshray.get_actor(name, namespace="third")


def test_get_if_exists():
    name = f"name-{uuid.uuid4().hex}"
    options = {"name": name, "get_if_exists": True}
    first, second = Counter.options(**options).remote(5), Counter.options(**options).remote(50)
    assert meshray.get([first.add.remote(), second.add.remote()]) == [6, 7]
    with pytest.raises(ValueError, match="name"):
        Counter.options(get_if_exists=True).remote()


def test_actor_ends_when_its_last_handle_goes():
    counter = Counter.remote()
    pid = meshray.get(counter.pid.remote())
    other = meshray.get(meshray.put([counter]))[0]
    del counter
    assert meshray.get(other.add.remote()) == 1
    del other
    wait_gone(pid)


def test_queued_calls_are_done_before_an_actor_without_handles_ends(tmp_path):
    journal = Journal(tmp_path / "journal")

    @meshray.remote
    class Notes:
        def note(self, i):
            journal.write(i)
            return i

    notes = Notes.remote()
    refs = [notes.note.remote(i) for i in range(20)]
    del notes
    assert meshray.get(refs) == list(range(20))
    assert journal.lines() == [str(i) for i in range(20)]


def test_handle_inside_an_object_keeps_the_actor():
    counter = Counter.remote()
    pid = meshray.get(counter.pid.remote())
    box = meshray.put([counter])
    del counter
    assert meshray.get(meshray.get(box)[0].add.remote()) == 1
    assert is_alive(pid)
    del box
    wait_gone(pid)


def test_detached_actor_outlives_its_handles():
    name = f"name-{uuid.uuid4().hex}"
    counter = Counter.options(name=name, lifetime="detached").remote()
    pid = meshray.get(counter.pid.remote())
    del counter
    again = meshray.get_actor(name)
    assert meshray.get(again.pid.remote()) == pid
    meshray.kill(again)
    wait_gone(pid)


def test_terminate_ends_in_good_order():
    counter = Counter.remote()
    pid = meshray.get(counter.pid.remote())
    last = counter.add.remote()
    counter.__ray_terminate__.remote()
    assert meshray.get(last) == 1
    wait_gone(pid)
    with pytest.raises(meshray.exceptions.RayActorError):
        meshray.get(counter.add.remote(), timeout=30)


def test_class_defined_again():
    for generation in (1, 2):
        @meshray.remote
        class Again:
            def which(self, generation=generation):
                return generation

        assert meshray.get(Again.remote().which.remote()) == generation


def test_many_actors_created_and_called():
    actors = [Counter.remote(i) for i in range(12)]
    assert meshray.get([actor.add.remote() for actor in actors]) == [i + 1 for i in range(12)]


def test_results_of_the_last_calls_arrive_before_the_end():
    for i in range(20):
        assert meshray.get(Counter.remote(i).add.remote(), timeout=30) == i + 1


def test_max_pending_calls(tmp_path):
    gate = Gate(tmp_path / "gate")

    @meshray.remote(max_pending_calls=2)
    class Slow:
        def wait(self):
            gate.wait()
            return "done"

    name = f"slow-{uuid.uuid4().hex}"
    slow = Slow.options(name=name).remote()
    refs = [slow.wait.remote() for _ in range(2)]
    for handle in (slow, meshray.get_actor(name)):
        with pytest.raises(meshray.exceptions.PendingCallsLimitExceeded, match="max_pending_calls"):
            handle.wait.remote()
    gate.open()
    assert meshray.get(refs, timeout=30) == ["done"] * 2
    assert meshray.get(slow.wait.remote(), timeout=30) == "done"
