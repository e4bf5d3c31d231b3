"""The systems under test, each started and stopped in the same way and speaking Ray's API.

*Shell (processes of the system).* Runs in subjects. Imports a system only when it is asked for.

1. A system's module is imported before its start is timed.
2. A row that has no natural counterpart in a peer is left out for it (``skips``), not imitated: Dask has no references
   inside values, and takes results one by one with ``as_completed``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class System:
    """``start(cpus)`` returns the API to run rows on; ``skips`` are names of rows, or ``only`` these run."""

    start: Callable[[int], Any]
    stop: Callable[[], None]
    skips: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    def runs(self, name: str) -> bool:
        """Whether row ``name`` makes sense on this system."""
        return name not in self.skips and (self.only is None or name in self.only)


def meshray_system() -> System:
    """An embedded meshray cluster of one node."""
    import meshray

    def start(cpus: int) -> Any:
        meshray.init(num_cpus=cpus)
        return meshray

    return System(start, meshray.shutdown)


def replicated_system(replicas: int) -> System:
    """A meshray cluster of one node, as ``meshray up`` starts it, whose control store has so many replicas."""
    import meshray
    from perf.gcs_cluster import gcs_cluster

    clusters = ExitStack()

    def start(cpus: int) -> Any:
        cluster = clusters.enter_context(gcs_cluster(replicas, nodes=1, cpus=cpus))
        meshray.init(cluster.file.address)
        return meshray

    def stop() -> None:
        meshray.shutdown()
        clusters.close()

    return System(start, stop)


def ray_system() -> System:
    """A local Ray, without its dashboard and log forwarding (both cost it time)."""
    import ray

    def start(cpus: int) -> Any:
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        return ray

    return System(start, ray.shutdown)


def dask_system() -> System:
    """Dask's distributed scheduler with one process per CPU."""
    import distributed

    clients: list[Any] = []

    def start(cpus: int) -> Any:
        clients.append(distributed.Client(n_workers=cpus, threads_per_worker=1, dashboard_address=None))
        return DaskApi()

    return System(start, lambda: clients.pop().shutdown(), skips=frozenset({"get_ref_list", "wait_thousand"}))


def pool_system() -> System:
    """``multiprocessing.Pool``: tasks only."""
    pools: list[Any] = []

    def start(cpus: int) -> Any:
        pools.append(multiprocessing.get_context("spawn").Pool(cpus))
        return PoolApi(pools[0])

    def stop() -> None:
        pool = pools.pop()
        pool.terminate()
        pool.join()

    return System(start, stop, only=frozenset({"task_sync", "task_batch", "task_mib_argument", "task_mib_result"}))


class Submitter:
    """What ``remote`` returns in the adapters: a function or class with ``.remote``."""

    def __init__(self, submit: Callable[..., Any], target: Any) -> None:
        self._submit, self._target = submit, target

    def remote(self, *arguments: Any) -> Any:
        """Submit a call of the function, or make an actor of the class."""
        return self._submit(self._target, *arguments)


class DaskApi:
    """Dask under Ray's names. Holds nothing, so that tasks can carry it along."""

    def remote(self, target: Any) -> Submitter:
        """Wrap a function or an actor class."""
        return Submitter(dask_actor if isinstance(target, type) else dask_submit, target)

    def put(self, value: Any) -> Any:
        """Store a value on a worker."""
        from distributed import get_client

        return get_client().scatter(value, hash=False)

    def get(self, refs: Any) -> Any:
        """Return values of futures and of actor calls; a task that waits gives its thread back."""
        from distributed import get_client, rejoin, secede
        from distributed.worker import thread_state

        inside_task = hasattr(thread_state, "execution_state")
        if inside_task:
            secede()
        try:
            if not isinstance(refs, list):
                return refs.result()
            if refs and hasattr(refs[0], "key"):
                return get_client().gather(refs)
            return [ref.result() for ref in refs]
        finally:
            if inside_task:
                rejoin()

    def wait(self, refs: list[Any]) -> tuple[list[Any], list[Any]]:
        """Return one finished future and the others."""
        from distributed import wait

        done = next(iter(wait(refs, return_when="FIRST_COMPLETED").done))
        return [done], [ref for ref in refs if ref is not done]

    def kill(self, actor: Any) -> None:
        """Drop the actor."""
        actor.release()


def dask_submit(target: Any, *arguments: Any) -> Any:
    """Submit one task that Dask must not deduplicate."""
    from distributed import get_client

    return get_client().submit(target, *arguments, pure=False)


def dask_actor(target: Any) -> Any:
    """Make an actor; its methods get ``.remote``."""
    from distributed import get_client

    return DaskActor(get_client().submit(target, actor=True, pure=False))


class DaskActor:
    """A Dask actor with Ray's way of calling."""

    def __init__(self, future: Any) -> None:
        self._future, self._actor = future, None

    def __getattr__(self, method: str) -> Submitter:
        if self._actor is None:
            self._actor = self._future.result()
        bound = getattr(self._actor, method)
        return Submitter(lambda _, *arguments: bound(*arguments), None)

    def release(self) -> None:
        """Let go of the actor, which ends it."""
        self._future.release()


class PoolApi:
    """A process pool under Ray's names."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def remote(self, target: Any) -> Submitter:
        """Wrap a function."""
        return Submitter(lambda function, *arguments: self._pool.apply_async(function, arguments), target)

    def get(self, refs: Any) -> Any:
        """Return one result or a list of them."""
        return [ref.get() for ref in refs] if isinstance(refs, list) else refs.get()


def bare_system() -> System:
    """The limits: no system, just the parts."""
    from perf import limits

    return System(limits.start, limits.stop)


SYSTEMS: dict[str, Callable[[], System]] = {
    "meshray": meshray_system,
    "meshray_r1": partial(replicated_system, 1),
    "meshray_r3": partial(replicated_system, 3),
    "ray": ray_system,
    "dask": dask_system,
    "pool": pool_system,
    "bare": bare_system,
}
