"""The rows: each measured operation, written once against Ray's API.

*Pure.* Runs in subjects and under pytest-benchmark; ``api`` is the module under test (``meshray``, ``ray``) or an
adapter with the same names.

1. A row does the same work on every system: nothing here asks which system it runs on.
2. What a row makes it also lets go of, so that memory after the rows is the system's own.

Source: the shapes are those of Ray's ``ray_perf.py``, sized for two CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from perf.row_kinds import Operation, Row, row

MIB = 1024 * 1024
LARGE_BYTES = 256 * MIB
CALLS = 2000
NESTED = 200
REFS = 10_000
ACTORS = 10


def nothing() -> None:
    """Do nothing: what remains is the system's own cost."""


def take(value: Any) -> None:
    """Take an argument and do nothing with it."""


def make_mib() -> np.ndarray:
    """Return one MiB."""
    return np.ones(MIB, dtype=np.uint8)


class Counter:
    """An actor with one cheap method."""

    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> int:
        """Count one."""
        self.count += 1
        return self.count


class AsyncCounter:
    """The same as a coroutine."""

    def __init__(self) -> None:
        self.count = 0

    async def increment(self) -> int:
        """Count one."""
        self.count += 1
        return self.count


@row("task_sync", "get(f.remote()), one at a time", unit="1/s", at_least=6, aim=10)
def task_sync(api: Any) -> Iterator[Operation]:
    """One task in flight: latency."""
    f = api.remote(nothing)
    yield Operation(lambda: api.get(f.remote()))


@row("task_batch", "2000 no-op tasks submitted, then got", unit="1/s", at_least=20, aim=40)
def task_batch(api: Any) -> Iterator[Operation]:
    """Many tasks in flight: throughput."""
    f = api.remote(nothing)
    yield Operation(lambda: api.get([f.remote() for _ in range(CALLS)]), CALLS)


@row("task_nested", "2 tasks that each run 200 tasks", unit="1/s", at_least=10, aim=20)
def task_nested(api: Any) -> Iterator[Operation]:
    """Tasks submitted by tasks."""
    f = api.remote(nothing)

    def parent(child: Any, count: int) -> None:
        api.get([child.remote() for _ in range(count)])

    g = api.remote(parent)
    yield Operation(lambda: api.get([g.remote(f, NESTED) for _ in range(2)]), 2 * NESTED)


@row("actor_sync", "actor call, one at a time", unit="1/s", at_least=4, aim=6)
def actor_sync(api: Any) -> Iterator[Operation]:
    """One call in flight."""
    actor = api.remote(Counter).remote()
    yield Operation(lambda: api.get(actor.increment.remote()))
    api.kill(actor)


@row("actor_batch", "2000 actor calls, then got", unit="1/s", at_least=12, aim=25)
def actor_batch(api: Any) -> Iterator[Operation]:
    """Many calls in flight."""
    actor = api.remote(Counter).remote()
    yield Operation(lambda: api.get([actor.increment.remote() for _ in range(CALLS)]), CALLS)
    api.kill(actor)


@row("actor_async", "calls to an async actor", unit="1/s", at_least=10, aim=20)
def actor_async(api: Any) -> Iterator[Operation]:
    """Many calls in flight to coroutine methods."""
    actor = api.remote(AsyncCounter).remote()
    yield Operation(lambda: api.get([actor.increment.remote() for _ in range(CALLS)]), CALLS)
    api.kill(actor)


@row("get_small", "get of a small put object", unit="1/s", at_least=20, aim=50)
def get_small(api: Any) -> Iterator[Operation]:
    """The same small object again and again."""
    ref = api.put(0)

    def get_many() -> None:
        for _ in range(100):
            api.get(ref)

    yield Operation(get_many, 100)


@row("put_small", "put(0)", unit="1/s", at_least=40, aim=100)
def put_small(api: Any) -> Iterator[Operation]:
    """A small object, dropped at once."""

    def put_many() -> None:
        for _ in range(100):
            api.put(0)

    yield Operation(put_many, 100)


@row("put_large", "put of 256 MiB, repeated", unit="GB/s", at_least="4x, or 70% of limit", aim="90% of limit")
def put_large(api: Any) -> Iterator[Operation]:
    """A large array, dropped at once: memory bandwidth."""
    array = np.ones(LARGE_BYTES, dtype=np.uint8)
    yield Operation(lambda: api.put(array), LARGE_BYTES / 1e9)


@row("put_mib", "put of 1 MiB arrays", unit="1/s", at_least=3, aim=6)
def put_mib(api: Any) -> Iterator[Operation]:
    """Arrays of one MiB, dropped at once."""
    array = np.ones(MIB, dtype=np.uint8)
    yield Operation(lambda: api.put(array))


@row("get_large", "get of a 256 MiB array", unit="1/s", at_least=5, aim=20)
def get_large(api: Any) -> Iterator[Operation]:
    """A large array read in place."""
    ref = api.put(np.ones(LARGE_BYTES, dtype=np.uint8))
    yield Operation(lambda: api.get(ref))


@row("task_mib_argument", "task with a 1 MiB array argument by value", unit="1/s", at_least=5, aim=8)
def task_mib_argument(api: Any) -> Iterator[Operation]:
    """Data travels with the call."""
    f, array = api.remote(take), np.ones(MIB, dtype=np.uint8)
    yield Operation(lambda: api.get(f.remote(array)))


@row("task_mib_result", "task returning 1 MiB", unit="1/s", at_least=5, aim=10)
def task_mib_result(api: Any) -> Iterator[Operation]:
    """Data comes back."""
    f = api.remote(make_mib)
    yield Operation(lambda: api.get(f.remote()))


@row("wait_thousand", "wait one by one over 1000 refs", unit="1/s", at_least=10, aim=30)
def wait_thousand(api: Any) -> Iterator[Operation]:
    """Take a thousand tasks' results one by one, as each comes."""
    f = api.remote(nothing)

    def rounds() -> None:
        waiting = [f.remote() for _ in range(1000)]
        while waiting:
            _, waiting = api.wait(waiting)

    yield Operation(rounds)


@row("get_ref_list", "get of a list of 10 000 refs", unit="1/s", at_least=4, aim=10)
def get_ref_list(api: Any) -> Iterator[Operation]:
    """Read one object that contains ten thousand references, made by a task."""

    def make_refs(count: int) -> list[Any]:
        return [api.put(1) for _ in range(count)]

    ref = api.remote(make_refs).remote(REFS)
    yield Operation(lambda: api.get(ref))


@row("get_refs", "get([10 000 refs])", unit="1/s")
def get_refs(api: Any) -> Iterator[Operation]:
    """Get ten thousand small objects with one call."""
    refs = [api.put(1) for _ in range(REFS)]
    yield Operation(lambda: api.get(refs))


@row("actor_churn", "actor created, called, killed (10 at a time)", unit="1/s", at_least=20, aim=50)
def actor_churn(api: Any) -> Iterator[Operation]:
    """How fast actors come and go."""
    actor_class = api.remote(Counter)

    def churn() -> None:
        actors = [actor_class.remote() for _ in range(ACTORS)]
        api.get([actor.increment.remote() for actor in actors])
        for actor in actors:
            api.kill(actor)

    yield Operation(churn, ACTORS)


ROWS: dict[str, Row] = {
    each.name: each
    for each in (
        task_sync, task_batch, task_nested, actor_sync, actor_batch, actor_async, get_small, put_small, put_large,
        put_mib, get_large, task_mib_argument, task_mib_result, wait_thousand, get_ref_list, get_refs, actor_churn,
    )
}
"""Rows that need a running system, by name, in the table's order."""
