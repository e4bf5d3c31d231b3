"""Asyncio actors, threaded actors and concurrency groups. Concurrency is proved by meetings, never by durations."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

import meshray

from .support import Journal, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")


@meshray.remote
class Door:
    """Async: calls wait at the door until another call opens it."""

    def __init__(self):
        self.event, self.inside, self.most = asyncio.Event(), 0, 0

    async def enter(self, i):
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.event.wait()
        self.inside -= 1
        return i

    async def open(self):
        self.event.set()

    async def count(self):
        return self.inside

    async def most_inside(self):
        return self.most


@meshray.remote
def echo(x):
    return x


def test_async_calls_overlap():
    door = Door.remote()
    refs = [door.enter.remote(i) for i in range(300)]
    wait_until(lambda: meshray.get(door.count.remote()) == 300)
    meshray.get(door.open.remote())
    assert meshray.get(refs) == list(range(300))


def test_async_max_concurrency_limits():
    door = Door.options(max_concurrency=3).remote()
    refs = [door.enter.remote(i) for i in range(5)]
    assert meshray.wait(refs, timeout=0.05)[0] == []
    # The three inside hold every slot, so the door can be opened only by a call that overtakes none: a fourth slot.
    roomy = Door.options(max_concurrency=6).remote()
    others = [roomy.enter.remote(i) for i in range(5)]
    meshray.get(roomy.open.remote(), timeout=30)
    assert meshray.get(others) == list(range(5))
    assert meshray.get(roomy.most_inside.remote()) <= 5
    meshray.kill(door)
    del refs


def test_async_method_awaits_refs_and_other_actors():
    @meshray.remote
    class Client:
        async def use(self, ref_in_list):
            first = await ref_in_list[0]
            second = await echo.remote(first + 1)
            many = await asyncio.gather(*[echo.remote(i) for i in range(20)])
            return first, second, sum(many)

    assert meshray.get(Client.remote().use.remote([meshray.put(1)])) == (1, 2, 190)


def test_async_exceptions():
    @meshray.remote
    class Fails:
        async def fail(self):
            await asyncio.sleep(0)
            raise LookupError("async")

        async def fine(self):
            return "fine"

    actor = Fails.remote()
    with pytest.raises(LookupError, match="async"):
        meshray.get(actor.fail.remote())
    assert meshray.get(actor.fine.remote()) == "fine"


def test_plain_methods_of_async_actors_run_in_the_loop():
    @meshray.remote
    class Mixed:
        async def running(self):
            return threading.get_ident()

        def plain(self):
            asyncio.get_running_loop()
            return threading.get_ident()

    actor = Mixed.remote()
    assert meshray.get(actor.running.remote()) == meshray.get(actor.plain.remote())


def test_async_calls_start_in_order():
    @meshray.remote
    class Log:
        def __init__(self):
            self.seen = []

        async def note(self, i):
            self.seen.append(i)

        async def all(self):
            return self.seen

    log = Log.remote()
    meshray.get([log.note.remote(i) for i in range(200)])
    assert sorted(meshray.get(log.all.remote())) == list(range(200))


def test_async_actor_as_semaphore_between_tasks():
    door = Door.remote()

    @meshray.remote(num_cpus=0)
    def enter(door, i):
        return meshray.get(door.enter.remote(i))

    refs = [enter.remote(door, i) for i in range(4)]
    wait_until(lambda: meshray.get(door.count.remote()) == 4)
    door.open.remote()
    assert meshray.get(refs, timeout=30) == [0, 1, 2, 3]


@meshray.remote
class Meeting:
    def __init__(self, parties):
        self.barrier, self.inside, self.most = threading.Barrier(parties), 0, 0
        self.lock = threading.Lock()

    def meet(self):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.barrier.wait(30)
        with self.lock:
            self.inside -= 1
        return threading.get_ident()

    def most_inside(self):
        return self.most


def test_threaded_calls_overlap():
    meeting = Meeting.options(max_concurrency=3).remote(3)
    assert len(set(meshray.get([meeting.meet.remote() for _ in range(3)], timeout=30))) == 3


def test_threaded_calls_are_limited():
    meeting = Meeting.options(max_concurrency=2).remote(2)
    meshray.get([meeting.meet.remote() for _ in range(10)], timeout=30)
    assert meshray.get(meeting.most_inside.remote()) == 2


def test_plain_actor_runs_one_call_at_a_time():
    @meshray.remote
    class Alone:
        def __init__(self):
            self.inside = 0

        def enter(self):
            self.inside += 1
            time.sleep(0)
            alone = self.inside == 1
            self.inside -= 1
            return alone, threading.current_thread() is threading.main_thread()

    actor = Alone.remote()
    results = meshray.get([actor.enter.remote() for _ in range(100)])
    assert all(alone for alone, _ in results)
    assert {main for _, main in results} == {True}


def test_threads_use_the_api():
    @meshray.remote
    class Threads:
        def use(self, i):
            return meshray.get(echo.remote(i)) + meshray.get(meshray.put(i))

    actor = Threads.options(max_concurrency=4).remote()
    assert meshray.get([actor.use.remote(i) for i in range(20)]) == [2 * i for i in range(20)]


@meshray.remote(concurrency_groups={"io": 2, "compute": 1})
class Grouped:
    def __init__(self):
        self.open = threading.Event()
        self.barrier = threading.Barrier(2)

    @meshray.method(concurrency_group="io")
    def meet(self):
        self.barrier.wait(30)
        return "io"

    @meshray.method(concurrency_group="compute")
    def block(self):
        assert self.open.wait(30)
        return "compute"

    def plain(self):
        return "plain"

    def release(self):
        self.open.set()


def test_concurrency_groups_do_not_block_one_another():
    actor = Grouped.remote()
    blocked = [actor.block.remote() for _ in range(2)]
    assert meshray.get([actor.meet.remote(), actor.meet.remote()], timeout=30) == ["io", "io"]
    assert meshray.get(actor.plain.remote(), timeout=30) == "plain"
    assert meshray.wait(blocked, timeout=0)[0] == []
    meshray.get(actor.release.remote(), timeout=30)
    assert meshray.get(blocked, timeout=30) == ["compute"] * 2


def test_concurrency_group_by_option():
    actor = Grouped.remote()
    blocked = actor.block.remote()
    assert meshray.get(actor.plain.options(concurrency_group="io").remote(), timeout=30) == "plain"
    meshray.get(actor.release.remote())
    assert meshray.get(blocked) == "compute"


def test_async_concurrency_groups(tmp_path):
    journal = Journal(tmp_path / "journal")

    @meshray.remote(concurrency_groups={"narrow": 1})
    class Narrow:
        def __init__(self):
            self.event = None

        @meshray.method(concurrency_group="narrow")
        async def enter(self, i):
            journal.write(f"in {i}")
            await asyncio.sleep(0)
            journal.write(f"out {i}")

        async def wide(self):
            return "wide"

    actor = Narrow.remote()
    refs = [actor.enter.remote(i) for i in range(5)]
    assert meshray.get(actor.wide.remote()) == "wide"
    meshray.get(refs)
    assert [line.split()[0] for line in journal.lines()] == ["in", "out"] * 5


def test_blocking_get_inside_async_methods():
    @meshray.remote
    class Blocks:
        async def in_the_loop(self, i):
            return meshray.get(echo.remote(i))

        async def in_a_thread(self, i):
            return await asyncio.get_running_loop().run_in_executor(None, lambda: meshray.get(echo.remote(i)))

    actor = Blocks.remote()
    refs = [method.remote(i) for i in range(10) for method in (actor.in_the_loop, actor.in_a_thread)]
    assert meshray.get(refs, timeout=30) == [i for i in range(10) for _ in range(2)]


def test_async_actor_calls_itself():
    @meshray.remote
    class Self:
        async def value(self, x):
            return x

        async def total(self, me, n):
            return sum(await asyncio.gather(*[me.value.remote(i) for i in range(n)]))

    actor = Self.remote()
    assert meshray.get(actor.total.remote(actor, 50), timeout=30) == sum(range(50))


def test_only_async_actors_import_asyncio():
    @meshray.remote
    class Plain:
        def has_asyncio(self):
            return "asyncio" in sys.modules

    assert meshray.get(Plain.remote().has_asyncio.remote()) is False
