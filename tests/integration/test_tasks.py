"""Tasks: calling, options, arguments, returns, nesting, retries of exceptions."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy
import pytest

import meshray

from .support import Gate, Journal, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")


@meshray.remote
def add(a, b=1, *rest, scale=1, **more):
    return (a + b + sum(rest) + sum(more.values())) * scale


@meshray.remote
def pid():
    return os.getpid()


def test_arguments_are_passed_as_in_a_call():
    assert meshray.get(add.remote(1)) == 2
    assert meshray.get(add.remote(1, 2, 3, 4, scale=10, x=5)) == 150
    assert meshray.get(add.remote(b=5, a=6)) == 11


def test_wrong_arguments_are_refused_by_the_call():
    with pytest.raises(TypeError, match="a"):
        add.remote()


def test_runs_in_another_process():
    assert meshray.get(pid.remote()) != os.getpid()


@pytest.mark.parametrize("value", [
    None, True, 0, -1, 2**70, 1.5, "text ü", b"\0bytes", (), (1, "a", None), [1, [2, [3]]], {"a": {"b": {1, 2}}},
    frozenset({1}), complex(1, 2), range(5), Path("/tmp/x"), float("inf"), "x" * 200_000, b"y" * 2_000_000, Ellipsis,
], ids=lambda value: f"{type(value).__name__}-{str(value)[:12]}")
def test_values_come_back_equal(value):
    @meshray.remote
    def echo(x):
        return x, type(x).__name__

    assert meshray.get(echo.remote(value)) == (value, type(value).__name__)
    assert meshray.get(meshray.put(value)) == value


def test_result_does_not_share_state_with_the_argument():
    @meshray.remote
    def echo(x):
        return x

    value = [1, 2]
    ref = echo.remote(value)
    value.append(3)
    first = meshray.get(ref)
    first.append(4)
    assert meshray.get(ref) == [1, 2]


def test_refs_as_arguments_are_resolved_at_top_level_only():
    @meshray.remote
    def look(direct, container, *, named):
        assert isinstance(container["ref"], meshray.ObjectRef)
        return direct + named + meshray.get(container["ref"])

    ref = add.remote(1, 1)
    assert meshray.get(look.remote(ref, {"ref": meshray.put(10)}, named=meshray.put(100))) == 112


def test_chains_and_fan_in():
    ref = add.remote(0, 0)
    for _ in range(50):
        ref = add.remote(ref, 1)
    assert meshray.get(ref) == 50
    parts = [add.remote(i, 0) for i in range(50)]
    assert meshray.get(add.remote(*parts)) == sum(range(50))


def test_one_ref_many_times():
    ref = meshray.put(3)
    assert meshray.get(add.remote(ref, ref, ref)) == 9


def test_large_argument_and_result_arrays():
    @meshray.remote
    def double(array):
        return array * 2

    array = numpy.arange(300_000, dtype=numpy.float64)
    assert numpy.array_equal(meshray.get(double.remote(array)), array * 2)
    assert numpy.array_equal(meshray.get(double.remote(double.remote(meshray.put(array)))), array * 4)


def test_multiple_returns():
    @meshray.remote(num_returns=3)
    def three():
        return 1, [2], {"three": 3}

    a, b, c = three.remote()
    assert meshray.get([c, a, b]) == [{"three": 3}, 1, [2]]
    assert meshray.get(three.options(num_returns=1).remote()) == (1, [2], {"three": 3})


def test_no_returns(tmp_path):
    journal = Journal(tmp_path / "ran")

    @meshray.remote(num_returns=0)
    def write():
        journal.write("here")

    assert write.remote() is None
    assert journal.wait_for(1) == ["here"]


def test_wrong_number_of_returns_is_an_error_in_each():
    @meshray.remote(num_returns=2)
    def three():
        return 1, 2, 3

    for ref in three.remote():
        with pytest.raises(ValueError, match="2"):
            meshray.get(ref)


def test_options_leave_the_original_alone():
    two = add.options(num_cpus=2, name="other")
    assert meshray.get(two.remote(1)) == 2
    assert meshray.get(add.remote(1)) == 2


def test_decorator_keeps_the_function_s_face():
    @meshray.remote
    def documented():
        """It says so."""

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "It says so."
    assert meshray.remote(lambda: 7) is not None
    assert meshray.get(meshray.remote(lambda: 7).remote()) == 7
    assert meshray.get(meshray.remote(num_cpus=1)(lambda: 8).remote()) == 8


def test_nested_tasks_do_not_deadlock_on_cpus():
    @meshray.remote
    def tree(depth):
        return 1 if depth == 0 else 1 + sum(meshray.get([tree.remote(depth - 1) for _ in range(2)]))

    assert meshray.get(tree.remote(4)) == 31


def test_nested_task_returns_a_ref():
    @meshray.remote
    def outer():
        return [add.remote(20, 1), meshray.put("made inside")]

    first, second = meshray.get(outer.remote())
    assert meshray.get(first) == 21
    assert meshray.get(second) == "made inside"


def test_tasks_run_at_the_same_time(tmp_path):
    gates = [Gate(tmp_path / "0"), Gate(tmp_path / "1")]

    @meshray.remote
    def meet(me):
        gates[me].open()
        gates[1 - me].wait()
        return os.getpid()

    assert len(set(meshray.get([meet.remote(0), meet.remote(1)]))) == 2


def test_no_more_tasks_at_once_than_cpus(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote(num_cpus=2)
    def wide(i):
        journal.write(f"start {i}")
        gate.wait()
        journal.write(f"end {i}")

    refs = [wide.remote(i) for i in range(3)]
    journal.wait_for(1)
    gate.open()
    meshray.get(refs)
    words = [line.split()[0] for line in journal.lines()]
    assert words == ["start", "end"] * 3


def test_zero_cpu_tasks_run_beside_full_cpus(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote
    def block():
        journal.write("in")
        gate.wait()

    blocked = [block.remote() for _ in range(2)]
    journal.wait_for(2)
    assert meshray.get(add.options(num_cpus=0).remote(1, 1), timeout=30) == 2
    gate.open()
    meshray.get(blocked)


def test_short_task_does_not_sit_behind_a_long_one(tmp_path):
    gate = Gate(tmp_path / "gate")

    @meshray.remote
    def maybe(block):
        if block:
            gate.wait()
        return block

    meshray.get([maybe.remote(False) for _ in range(200)])
    blocked = maybe.remote(True)
    assert meshray.get([maybe.remote(False) for _ in range(100)], timeout=30) == [False] * 100
    assert meshray.wait([blocked], timeout=0) == ([], [blocked])
    gate.open()
    assert meshray.get(blocked) is True


@pytest.mark.parametrize("retry", [True, [KeyError, OSError]])
def test_retry_exceptions(tmp_path, retry):
    journal = Journal(tmp_path / "attempts")

    @meshray.remote(max_retries=3, retry_exceptions=retry)
    def flaky():
        journal.write("attempt")
        if len(journal.lines()) < 3:
            raise KeyError("not yet")
        return "done"

    assert meshray.get(flaky.remote()) == "done"
    assert len(journal.lines()) == 3


@pytest.mark.parametrize("options", [{"max_retries": 3}, {"retry_exceptions": [OSError]},
                                     {"retry_exceptions": True, "max_retries": 0}])
def test_exceptions_not_listed_are_not_retried(tmp_path, options):
    journal = Journal(tmp_path / "attempts")

    @meshray.remote(**options)
    def broken():
        journal.write("attempt")
        raise KeyError("always")

    with pytest.raises(KeyError):
        meshray.get(broken.remote())
    assert len(journal.lines()) == 1


def test_closures_and_redefinition():
    results = []
    for factor in (2, 3):
        @meshray.remote
        def times(x, factor=factor):
            return x * factor

        results.append(meshray.get(times.remote(10)))
    captured = {"n": 5}

    @meshray.remote
    def read():
        return captured["n"]

    assert results == [20, 30]
    assert meshray.get(read.remote()) == 5


def test_function_defined_by_exec_as_in_a_notebook():
    space = {"meshray": meshray, "__name__": "__main__"}
    for cell, expected in (("1", 1), ("2", 2)):
        exec(f"@meshray.remote\ndef cell():\n    return helper()\ndef helper():\n    return {cell}", space)
        assert meshray.get(space["cell"].remote()) == expected


def test_remote_function_as_argument_and_recursion():
    @meshray.remote
    def apply(function, x):
        return meshray.get(function.remote(x))

    @meshray.remote
    def factorial(n):
        return 1 if n == 0 else n * meshray.get(factorial.remote(n - 1))

    assert meshray.get(apply.remote(add, 4)) == 5
    assert meshray.get(factorial.remote(6)) == 720


def test_task_that_starts_threads_which_use_the_api():
    @meshray.remote
    def threads():
        results = []
        workers = [threading.Thread(target=lambda i=i: results.append(meshray.get(add.remote(i)))) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sorted(results)

    assert meshray.get(threads.remote()) == [1, 2, 3, 4]


def test_ten_thousand_tasks_with_dropped_refs(tmp_path):
    journal = Journal(tmp_path / "last")

    @meshray.remote
    def count(i):
        if i % 1000 == 999:
            journal.write(i)

    for i in range(10_000):
        count.remote(i)
    wait_until(lambda: len(journal.lines()) == 10, 50)
    assert sorted(map(int, journal.lines())) == list(range(999, 10_000, 1000))
