"""The API from many threads, from a driver whose main thread spins, and from an asyncio driver."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

import meshray

from .support import Gate

pytestmark = pytest.mark.usefixtures("meshray_local")


@meshray.remote
def double(x):
    return 2 * x


@meshray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n


def in_threads(count, work):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_tasks_from_many_threads():
    results = in_threads(8, lambda t: meshray.get([double.remote(100 * t + i) for i in range(50)]))
    assert results == [[2 * (100 * t + i) for i in range(50)] for t in range(8)]


def test_one_actor_from_many_threads():
    counter = Counter.remote()
    results = in_threads(8, lambda t: [meshray.get(counter.add.remote()) for _ in range(25)])
    assert all(line == sorted(line) for line in results)
    assert sorted(n for line in results for n in line) == list(range(1, 201))


def test_everybody_waits_for_the_same_ref(tmp_path):
    gate = Gate(tmp_path / "gate")

    @meshray.remote
    def late():
        gate.wait()
        return "late"

    ref, started = late.remote(), threading.Barrier(7)

    def work(t):
        if t == 0:
            started.wait(30)
            gate.open()
            return "late"
        started.wait(30)
        return meshray.get(ref, timeout=30) if t % 2 else meshray.get(meshray.wait([ref], timeout=30)[0][0])

    assert in_threads(7, work) == ["late"] * 7


def test_blocked_thread_does_not_hold_up_the_others(tmp_path):
    gate = Gate(tmp_path / "gate")

    @meshray.remote(num_cpus=0)
    def late():
        gate.wait()
        return "late"

    blocked, results = late.remote(), []
    thread = threading.Thread(target=lambda: results.append(meshray.get(blocked)))
    thread.start()
    assert meshray.get([double.remote(i) for i in range(20)], timeout=30) == [2 * i for i in range(20)]
    gate.open()
    thread.join(30)
    assert results == ["late"]


def test_puts_and_drops_from_many_threads():
    def work(t):
        for i in range(30):
            ref = meshray.put(bytes([t]) * 200_000)
            assert meshray.get(ref)[i] == t
        return True

    assert all(in_threads(6, work))


def test_a_spinning_thread_does_not_stop_the_session():
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    spinner = threading.Thread(target=spin)
    spinner.start()
    try:
        assert meshray.get([double.remote(i) for i in range(500)], timeout=30) == [2 * i for i in range(500)]
        counter = Counter.remote()
        assert [meshray.get(counter.add.remote()) for _ in range(20)] == list(range(1, 21))
    finally:
        stop.set()
        spinner.join()


def test_results_arrive_while_nobody_asks():
    done = threading.Event()
    future = double.remote(4).future()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(30)
    assert future.result() == 8


def test_main_thread_busy_without_api_calls():
    ref = double.remote(double.remote(double.remote(1)))
    future = ref.future()
    total = 0
    while not future.done():
        total += 1
    assert future.result() == 8


def test_refs_dropped_in_other_threads():
    refs = [double.remote(i) for i in range(100)]
    lists = [refs[i::4] for i in range(4)]
    del refs
    wanted = [sum(2 * i for i in range(t, 100, 4)) for t in range(4)]
    assert in_threads(4, lambda t: sum(meshray.get(lists[t]))) == wanted


def test_asyncio_driver():
    async def pipeline(i):
        first = await double.remote(i)
        return await double.remote(first)

    async def program():
        counter = Counter.remote()
        results = await asyncio.gather(*[pipeline(i) for i in range(50)])
        counts = await asyncio.gather(*[counter.add.remote() for _ in range(20)])
        pending, seen = {asyncio.ensure_future(pipeline(i)) for i in range(10)}, []
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            seen += [task.result() for task in done]
        return results, counts, sorted(seen)

    results, counts, seen = asyncio.run(program())
    assert results == [4 * i for i in range(50)]
    assert sorted(counts) == list(range(1, 21))
    assert seen == [4 * i for i in range(10)]


def test_event_loops_in_several_threads():
    async def program(t):
        return await asyncio.gather(*[double.remote(10 * t + i) for i in range(10)])

    assert in_threads(4, lambda t: asyncio.run(program(t))) == [[2 * (10 * t + i) for i in range(10)] for t in range(4)]
