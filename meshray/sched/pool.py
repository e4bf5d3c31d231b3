"""The node's workers: who is idle, who works for whom, and how many more should start.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. A worker is in exactly one state; only idle workers are handed out, the most recently used (warmest) first.
2. Workers start for work that resources allow now, plus a few spare ones while actors are being created; never more
   than ``WORKERS_STARTING_MAX`` at a time, and after a failed start only after a pause.
3. Idle workers above the number of CPUs end after ``WORKER_IDLE_NS``, the longest idle first.

::

    starting -> idle <-> leased -> (died)
                 |  \\-> actor   -> (died)
                 \\----> leaving -> (died)
"""

from __future__ import annotations

import msgspec

from meshray import config
from meshray.sched.ledger import Allocation

IDLE = "idle"
LEASED = "leased"
ACTOR = "actor"
LEAVING = "leaving"

SPARE_MAX = 16
"""Idle workers kept ready while actors are being created: an actor takes a worker over at once."""

SPARE_QUIET_NS = 2 * config.SECOND_NS
"""Spare workers are no longer replaced when no actor was created for this long."""

START_PAUSE_NS = 100 * config.MILLISECOND_NS
START_PAUSE_MAX_NS = 5 * config.SECOND_NS
"""Pause after a failed start; doubles with each failure in a row up to the maximum."""


class Worker(msgspec.Struct, eq=False):
    """One worker process. ``owner`` is the session it is leased to; ``lease`` or ``actor`` says for what."""

    name: str
    route: bytes
    pid: int
    endpoint: str
    state: str
    since_ns: int
    lease: int = 0
    actor: bytes = b""
    allocation: Allocation | None = None
    label: str = ""
    job: str = ""


class Pool:
    """All workers of the node."""

    def __init__(self, cpus: int, prestart: int) -> None:
        self.workers: dict[str, Worker] = {}
        self.starting = 0
        self._by_route: dict[bytes, Worker] = {}
        self._idle: dict[str, Worker] = {}
        self._not_for_tasks: set[str] = set()
        """Workers that are an actor's or about to end."""
        self._cpus = cpus
        self._prestart = prestart
        self._spare = 0
        self._actor_taken_ns = 0
        self._failures = 0
        self._start_after_ns = 0

    def joined(self, worker: Worker) -> None:
        """A started worker registered."""
        self.starting = max(0, self.starting - 1)
        self._failures = 0
        self.workers[worker.name] = worker
        self._by_route[worker.route] = worker
        self._idle[worker.name] = worker

    def at(self, route: bytes) -> Worker | None:
        """Return the worker that registered on ``route``."""
        return self._by_route.get(route)

    @property
    def idle(self) -> int:
        """Number of workers ready to be handed out."""
        return len(self._idle)

    def take(self, state: str, now_ns: int) -> Worker:
        """Hand out the warmest idle worker; there must be one."""
        _, worker = self._idle.popitem()
        worker.state = state
        worker.since_ns = now_ns
        if state == ACTOR:
            self._not_for_tasks.add(worker.name)
            self._spare = min(SPARE_MAX, self._spare + 1)
            self._actor_taken_ns = now_ns
        return worker

    def rest(self, worker: Worker, now_ns: int) -> None:
        """A worker is free again."""
        worker.state = IDLE
        worker.since_ns = now_ns
        worker.lease = 0
        self._idle[worker.name] = worker

    def leaving(self, worker: Worker) -> None:
        """A worker is about to end: hand it out no more."""
        worker.state = LEAVING
        self._not_for_tasks.add(worker.name)
        self._idle.pop(worker.name, None)

    def died(self, name: str) -> Worker | None:
        """Forget a worker and return it."""
        worker = self.workers.pop(name, None)
        if worker is not None:
            self._idle.pop(name, None)
            self._not_for_tasks.discard(name)
            self._by_route.pop(worker.route, None)
        return worker

    def start_failed(self, count: int, now_ns: int) -> None:
        """``count`` workers will not come: pause before the next attempt. Those of one attempt fail together, when the
        zygote dies for example."""
        self.starting = max(0, self.starting - count)
        if now_ns < self._start_after_ns:
            return
        pause_ns = min(START_PAUSE_MAX_NS, START_PAUSE_NS << min(self._failures, 10))
        self._failures += 1
        self._start_after_ns = now_ns + pause_ns

    def to_start(self, needed: int, now_ns: int) -> int:
        """Return how many workers to start now, when ``needed`` pieces of work could begin at once; they count as
        starting from here on."""
        if self._spare and now_ns - self._actor_taken_ns > SPARE_QUIET_NS:
            self._spare = 0
        for_tasks = len(self.workers) - len(self._not_for_tasks)
        missing = max(needed + self._spare - len(self._idle), self._prestart - for_tasks) - self.starting
        if missing <= 0 or now_ns < self._start_after_ns:
            return 0
        count = min(missing, config.WORKERS_STARTING_MAX - self.starting)
        self.starting += count
        return count

    def expired(self, now_ns: int) -> list[Worker]:
        """Return the idle workers that should end now."""
        surplus = len(self._idle) - max(self._cpus, self._prestart)
        if surplus <= 0:
            return []
        oldest = list(self._idle.values())[:surplus]
        return [worker for worker in oldest if now_ns - worker.since_ns >= config.WORKER_IDLE_NS]

    def check(self) -> None:
        """Assert that states and indices agree."""
        for worker in self.workers.values():
            assert (worker.state == IDLE) == (worker.name in self._idle), f"{worker.name} is {worker.state}"
            assert worker.state != IDLE or worker.allocation is None, f"idle {worker.name} holds resources"
            assert worker.state != LEASED or worker.lease, f"leased {worker.name} has no lease"
            assert worker.state != ACTOR or worker.actor, f"{worker.name} should be an actor's"
            assert (worker.state in (ACTOR, LEAVING)) == (worker.name in self._not_for_tasks), f"{worker.name} counts"
        assert self._idle.keys() | self._not_for_tasks <= self.workers.keys()
        assert 0 <= self.starting <= config.WORKERS_STARTING_MAX
