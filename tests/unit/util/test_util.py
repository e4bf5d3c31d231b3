"""ActorPool, Queue, as_completed and map_unordered, on a stand-in for the public API."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

import pytest

import meshray
from meshray import exceptions, util
from meshray.util import ActorPool, as_completed, map_unordered
from meshray.util.queue import Empty, Full, Queue, QueueActor


class Ref:
    """A reference with a value from the beginning; ``ready`` says whether anybody may know."""

    def __init__(self, value: Any, *, ready: bool = True) -> None:
        self.value = value
        self.ready = ready


def fake_wait(refs: list[Ref], *, num_returns: int = 1, timeout: float | None = None) -> tuple[list[Ref], list[Ref]]:
    assert len(set(refs)) == len(refs)
    ready = [ref for ref in refs if ref.ready][:num_returns]
    assert ready or timeout is not None, "this would wait for ever"
    return ready, [ref for ref in refs if ref not in ready]


def fake_get(ref: Any) -> Any:
    if isinstance(ref, list):
        return [fake_get(one) for one in ref]
    if isinstance(ref.value, BaseException):
        raise ref.value
    return ref.value


@pytest.fixture(autouse=True)
def public_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshray, "wait", fake_wait, raising=False)
    monkeypatch.setattr(meshray, "get", fake_get, raising=False)
    monkeypatch.setattr(meshray, "exceptions", exceptions, raising=False)


class Calls:
    """Records the calls of a pool."""

    def __init__(self) -> None:
        self.refs: dict[Any, Ref] = {}
        self.actors: dict[Any, str] = {}

    def __call__(self, actor: str, value: Any) -> Ref:
        self.actors[value] = actor
        self.refs[value] = Ref(value)
        return self.refs[value]


def test_map_keeps_the_order_and_uses_every_actor() -> None:
    calls = Calls()
    assert list(ActorPool(["a", "b"]).map(calls, range(5))) == [0, 1, 2, 3, 4]
    assert set(calls.actors.values()) == {"a", "b"}


def test_map_unordered_yields_what_is_ready() -> None:
    calls = Calls()
    results = ActorPool(["a", "b"]).map_unordered(calls, "xyz")
    calls.refs["x"].ready = False
    assert [next(results), next(results)] == ["y", "z"]
    calls.refs["x"].ready = True
    assert list(results) == ["x"]


def test_an_actor_has_one_call_at_a_time() -> None:
    calls, pool = Calls(), ActorPool(["a"])
    pool.submit(calls, 1)
    pool.submit(calls, 2)
    assert list(calls.refs) == [1]
    assert not pool.has_free()
    assert pool.pop_idle() is None
    assert pool.get_next() == 1
    assert list(calls.refs) == [1, 2]
    assert pool.get_next_unordered() == 2
    assert pool.has_free()
    assert not pool.has_next()
    with pytest.raises(StopIteration):
        pool.get_next()
    assert pool.pop_idle() == "a"


def test_a_timeout_keeps_the_result_or_gives_it_up() -> None:
    calls, pool = Calls(), ActorPool(["a"])
    pool.submit(calls, 1)
    calls.refs[1].ready = False
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.1)
    assert pool.has_next()
    with pytest.raises(TimeoutError, match="was given up"):
        pool.get_next_unordered(timeout=0.1, ignore_if_timedout=True)
    assert not pool.has_next()
    assert pool.has_free()


def test_a_dead_actor_leaves_the_pool_and_a_failed_call_does_not() -> None:
    def call(actor: str, value: Any) -> Ref:
        return Ref(value)

    pool = ActorPool(["a"])
    pool.submit(call, ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        pool.get_next()
    assert pool.has_free()
    pool.submit(call, exceptions.ActorDiedError("gone"))
    with pytest.raises(exceptions.ActorDiedError):
        pool.get_next()
    assert not pool.has_free()
    pool.submit(call, 5)
    pool.push("b")
    assert pool.get_next() == 5
    with pytest.raises(ValueError, match="belongs to this pool already"):
        pool.push("b")


def test_as_completed_yields_chunks_of_what_is_ready() -> None:
    refs = [Ref(0, ready=False), Ref(1), Ref(2)]
    results = as_completed(refs, chunk_size=1)
    assert [next(results), next(results)] == [1, 2]
    refs[0].ready = True
    assert list(results) == [0]
    assert list(as_completed(refs, yield_obj_refs=True)) == refs
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        as_completed(refs, chunk_size=0)
    with pytest.raises(ValueError, match="use chunk_size"):
        as_completed(refs, num_returns=2)


def test_map_unordered_takes_items_only_as_results_are_taken() -> None:
    class Doubled:
        submitted = 0

        def remote(self, item: int) -> Ref:
            self.submitted += 1
            return Ref(2 * item)

    fn = Doubled()
    results = map_unordered(fn, iter(range(100)), backpressure_size=5, chunk_size=1)
    assert next(results) == 0
    assert fn.submitted == 5
    assert sorted([0, *results]) == [2 * item for item in range(100)]
    with pytest.raises(ValueError, match="backpressure_size must be at least 1"):
        map_unordered(fn, [], backpressure_size=0)


# --- queue -----------------------------------------------------------------------------------------------------------


def test_the_queue_actor_is_first_in_first_out_and_has_a_limit() -> None:
    async def scenario() -> None:
        actor = QueueActor(2)
        await actor.put(1)
        await actor.put_nowait(2)
        assert (await actor.qsize(), await actor.full(), await actor.empty()) == (2, True, False)
        with pytest.raises(Full, match="cannot add 1 items to a queue that has 2 of at most 2"):
            await actor.put_nowait(3)
        with pytest.raises(Full):
            await actor.put(3, 0)
        assert await actor.get() == 1
        with pytest.raises(Empty):
            await actor.get_nowait_batch(2)
        assert await actor.get_nowait_batch(1) == [2]
        with pytest.raises(Empty):
            await actor.get(0)

    asyncio.run(scenario())


def test_a_consumer_waits_for_a_producer() -> None:
    async def scenario() -> None:
        actor = QueueActor(0)
        waiting = asyncio.ensure_future(actor.get())
        await asyncio.sleep(0)
        await actor.put("late")
        assert await waiting == "late"

    asyncio.run(scenario())


def test_the_errors_are_those_of_the_standard_library() -> None:
    assert issubclass(Full, queue.Full)
    assert issubclass(Empty, queue.Empty)


class Method:
    def __init__(self, function: Any) -> None:
        self.function = function

    def remote(self, *args: Any) -> Ref:
        async def call() -> Any:
            result = self.function(*args)
            return await result if asyncio.iscoroutine(result) else result

        try:
            return Ref(asyncio.run(call()))
        except Exception as error:
            return Ref(error)


class Handle:
    """An actor in this process."""

    def __init__(self, instance: Any) -> None:
        self.instance = instance
        self.ended: list[str] = []

    def __getattr__(self, name: str) -> Method:
        if name == "__ray_terminate__":
            return Method(lambda: self.ended.append("terminated"))
        return Method(getattr(self.instance, name))


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Queue:
    class Remote:
        def __init__(self, cls: Any) -> None:
            self.cls = cls

        def options(self, **options: Any) -> Remote:
            return self

        def remote(self, *args: Any) -> Handle:
            return Handle(self.cls(*args))

    def kill(handle: Handle, *, no_restart: bool) -> None:
        handle.ended.append("killed")

    monkeypatch.setattr(meshray, "remote", Remote, raising=False)
    monkeypatch.setattr(meshray, "kill", kill, raising=False)
    return Queue(2, {"num_cpus": 0})


def test_a_queue_from_outside(shared: Queue) -> None:
    shared.put(1)
    shared.put_nowait(2)
    assert (len(shared), shared.qsize(), shared.full(), shared.empty()) == (2, 2, True, False)
    with pytest.raises(Full):
        shared.put(3, block=False)
    assert shared.get() == 1
    assert shared.get_nowait() == 2
    with pytest.raises(Empty):
        shared.get(timeout=0)
    shared.put_nowait_batch([5, 6])
    assert shared.get_nowait_batch(2) == [5, 6]
    with pytest.raises(ValueError, match="timeout cannot be negative"):
        shared.get(timeout=-1)
    with pytest.raises(ValueError, match="num_items cannot be negative"):
        shared.get_nowait_batch(-1)


@pytest.mark.parametrize(("force", "how"), [(False, "terminated"), (True, "killed")])
def test_shutdown_ends_the_actor_once(shared: Queue, force: bool, how: str) -> None:
    actor = shared.actor
    shared.shutdown(force=force)
    shared.shutdown()
    assert actor.ended == [how]


def test_names_where_ray_programs_look_for_them() -> None:
    from meshray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    assert NodeAffinitySchedulingStrategy("n", soft=False).node_id == "n"
    assert set(util.__all__) >= {"ActorPool", "inspect_serializability", "register_serializer"}
