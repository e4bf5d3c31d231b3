"""get, put, wait and what an ObjectRef can do."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle

import pytest

import meshray

from .support import Gate, Journal, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")


@meshray.remote
def echo(x):
    return x


@meshray.remote
def fail(text):
    raise ValueError(text)


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def waits_at(gate):
    @meshray.remote(num_cpus=0)
    def wait_there(x=None):
        gate.wait()
        return x

    return wait_there


def test_list_keeps_order():
    refs = [echo.remote(i) for i in range(300)]
    assert meshray.get(refs[::-1]) == list(range(300))[::-1]
    assert meshray.get([refs[3], refs[3], refs[1]]) == [3, 3, 1]
    assert meshray.get([]) == []


def test_same_ref_again():
    ref = echo.remote("again")
    assert [meshray.get(ref) for _ in range(3)] == ["again"] * 3


def test_timeout_zero_polls(gate):
    ref = waits_at(gate).remote(5)
    with pytest.raises(meshray.exceptions.GetTimeoutError):
        meshray.get(ref, timeout=0)
    gate.open()
    assert meshray.get(ref) == 5
    assert meshray.get(ref, timeout=0) == 5


def test_timeout_is_a_timeout_error_and_leaves_the_task_running(gate):
    ref = waits_at(gate).remote("later")
    with pytest.raises(TimeoutError):
        meshray.get([echo.remote(1), ref], timeout=0.05)
    gate.open()
    assert meshray.get(ref, timeout=30) == "later"


def test_first_failure_is_raised_without_waiting_for_the_rest(gate):
    pending = waits_at(gate).remote()
    with pytest.raises(ValueError, match="early"):
        meshray.get([fail.remote("early"), pending], timeout=30)
    with pytest.raises(ValueError, match="behind"):
        meshray.get([pending, fail.remote("behind")], timeout=30)


@pytest.mark.parametrize("what", [5, "ref", None, {"a": 1}, [1, 2], [None]])
def test_get_of_a_non_ref(what):
    with pytest.raises((TypeError, ValueError), match=type(what).__name__ if not isinstance(what, list) else "."):
        meshray.get(what)


def test_put_of_a_ref_is_refused():
    with pytest.raises(TypeError, match="ObjectRef"):
        meshray.put(meshray.put(1))


def test_put_makes_a_copy():
    value = {"a": [1]}
    ref = meshray.put(value)
    value["a"].append(2)
    assert meshray.get(ref) == {"a": [1]}


def test_wait_splits_and_keeps_the_order_of_the_input(gate):
    pending = waits_at(gate)
    refs = [pending.remote(), echo.remote(1), pending.remote(), echo.remote(3)]
    ready, rest = meshray.wait(refs, num_returns=2, timeout=30)
    assert ready == [refs[1], refs[3]]
    assert rest == [refs[0], refs[2]]


def test_wait_returns_no_more_than_asked():
    refs = [meshray.put(i) for i in range(10)]
    ready, rest = meshray.wait(refs, num_returns=4)
    assert len(ready) == 4
    assert len(rest) == 6
    assert set(ready) | set(rest) == set(refs)


def test_wait_timeout_gives_what_is_there(gate):
    refs = [waits_at(gate).remote(), echo.remote(1)]
    meshray.get(refs[1])
    assert meshray.wait(refs, num_returns=2, timeout=0.02) == ([refs[1]], [refs[0]])
    assert meshray.wait(refs[:1], timeout=0) == ([], refs[:1])


def test_wait_counts_failures_as_ready():
    ref = fail.remote("x")
    assert meshray.wait([ref], timeout=30) == ([ref], [])


def test_wait_takes_results_as_they_come():
    rest, seen = [echo.remote(i) for i in range(100)], []
    while rest:
        ready, rest = meshray.wait(rest)
        seen += meshray.get(ready)
    assert sorted(seen) == list(range(100))


def test_wait_without_fetching():
    ref = echo.remote(b"z" * 1_000_000)
    assert meshray.wait([ref], fetch_local=False, timeout=30) == ([ref], [])


def test_wait_of_nothing():
    assert meshray.wait([], timeout=0) == ([], [])


def test_wait_refuses_bad_arguments():
    ref = meshray.put(1)
    with pytest.raises(ValueError, match="unique"):
        meshray.wait([ref, ref])
    for count in (0, -1, 2):
        with pytest.raises(ValueError, match="num_returns"):
            meshray.wait([ref], num_returns=count)
    for bad in (ref, [1], None):
        with pytest.raises(TypeError):
            meshray.wait(bad)
    with pytest.raises(ValueError, match="timeout"):
        meshray.wait([ref], timeout=-1)


def test_ref_is_hashable_and_equal_by_identity_of_the_object():
    first, second = meshray.put(1), meshray.put(1)
    same = meshray.get(echo.remote([first]))[0]
    assert same == first
    assert hash(same) == hash(first)
    assert len({first, second, same}) == 2
    assert first != second
    assert first != 1
    assert first.hex() in repr(first)
    assert len(bytes.fromhex(first.hex())) == len(first.binary())


def test_ref_cannot_be_pickled_outside_values():
    with pytest.raises(Exception, match=r"[Rr]ef|[Ss]erializ|[Pp]ickl"):
        pickle.dumps(meshray.put(1))


def test_future_is_a_concurrent_future(gate):
    refs = [waits_at(gate).remote("late"), echo.remote("soon")]
    futures = [ref.future() for ref in refs]
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    done, pending = concurrent.futures.wait(futures, timeout=30, return_when=concurrent.futures.FIRST_COMPLETED)
    assert {future.result() for future in done} == {"soon"}
    assert pending == {futures[0]}
    gate.open()
    assert {future.result() for future in concurrent.futures.as_completed(futures, timeout=30)} == {"late", "soon"}


def test_future_carries_the_error_and_calls_back():
    future = fail.remote("for the future").future()
    assert isinstance(future.exception(timeout=30), ValueError)
    seen = []
    later = echo.remote(9).future()
    later.add_done_callback(lambda done: seen.append(done.result()))
    wait_until(lambda: seen == [9])


def test_await_and_gather():
    async def program():
        assert await echo.remote(1) == 1
        assert await asyncio.gather(*[echo.remote(i) for i in range(50)]) == list(range(50))
        with pytest.raises(ValueError, match="awaited"):
            await fail.remote("awaited")
        ref = meshray.put("put")
        return await ref, await asyncio.wait_for(ref, 30)

    assert asyncio.run(program()) == ("put", "put")


def test_event_loop_runs_on_while_a_ref_is_awaited(gate):
    async def program():
        task = asyncio.ensure_future(asyncio.wait_for(waits_at(gate).remote("end"), 30))
        await asyncio.sleep(0)
        assert not task.done()
        gate.open()
        return await task

    assert asyncio.run(program()) == "end"


def test_cancelled_await_leaves_the_object(gate):
    async def program():
        ref = waits_at(gate).remote("still here")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.05)
        gate.open()
        return await ref

    assert asyncio.run(program()) == "still here"


def test_dependent_waits_for_its_inputs(gate, tmp_path):
    journal = Journal(tmp_path / "ran")

    @meshray.remote
    def after(x):
        journal.write("ran")
        return x

    ref = after.remote(waits_at(gate).remote(4))
    meshray.get([echo.remote(i) for i in range(20)])
    assert journal.lines() == []
    gate.open()
    assert meshray.get(ref) == 4


def test_ref_in_a_container_may_be_pending(gate):
    pending = waits_at(gate).remote("inner")
    (inside,) = meshray.get(echo.remote([pending]), timeout=30)
    assert inside == pending
    gate.open()
    assert meshray.get(inside, timeout=30) == "inner"
