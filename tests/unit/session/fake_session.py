"""A session without socket, threads and clock: the parts that decide, and a record of what they asked for.

*Pure.* Runs in tests.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from meshray import config
from meshray.messages.node import LeaseGranted, Strategy
from meshray.messages.tasks import PushTasks, TaskResult, TasksFinished
from meshray.object_ref import ObjectRef
from meshray.session.objects import Objects
from meshray.session.outcomes import Outcomes
from meshray.session.records import SchedulingClass, Task
from meshray.session.references import References
from meshray.session.submit import Submitter

PREFIX = b"0123456789"

SHORT_NS = config.PIPELINE_NS // 100
"""Run time at which a worker may have a hundred tasks."""


class FakeSession:
    """Time passes when a test says so; what was sent lies in ``sent`` and ``told`` (to the node)."""

    name, endpoint, job, kind, node = "me", "ipc://me", "job", "driver", "node-1"

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.closing = False
        self.sent: list[tuple[bytes, Any]] = []
        self.told: list[Any] = []
        self.warned: list[str] = []
        self.forgotten: list[str] = []
        self.escaped: list[bytes] = []
        self.gone: set[str] = set()
        self.fresh: deque[SchedulingClass] = deque()
        self.happens: deque[Callable[[], object]] = deque()
        """What the network brings while ``block_until`` waits, one after the other."""
        session: Any = self
        self.outcomes = Outcomes(session)
        self.submitter = Submitter(session)
        self.references = References(session)
        self.objects = Objects(session)
        self.lineage = SimpleNamespace(escaped=lambda ref: self.escaped.append(ref.binary()))
        self.driving = SimpleNamespace(try_step=self._step, until=self.block_until, stepping_thread=0)
        self.arena = FakeArena()
        self.pins = FakePins()
        self.surroundings = SimpleNamespace(locality=True)
        self.next_seq = itertools.count(1000).__next__
        self._seq = 0

    def send(self, route: bytes, message: Any) -> bool:
        self.sent.append((route, message))
        return route.decode().removeprefix(">") not in self.gone

    def to_node(self, message: Any) -> None:
        self.told.append(message)

    def connect(self, name: str, endpoint: str) -> bytes:
        return b">" + name.encode()

    def out_route(self, name: str) -> bytes:
        return b">" + name.encode()

    def forget_peer(self, name: str) -> None:
        self.forgotten.append(name)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def call(self, function: Callable[[], None]) -> None:
        function()

    later = call

    def block_until(self, done: Callable[[], bool], deadline_ns: int | None, *, keep_cpu: bool = False) -> bool:
        while not done():
            if not self.happens:
                return False
            self.happens.popleft()()
        return True

    def _step(self) -> None:
        if self.happens:
            self.happens.popleft()()

    # --- what tests do with it -----------------------------------------------------------------------------------

    def take_sent(self, kind: type) -> list[Any]:
        """Return the messages of one kind that were sent to peers or told to the node, and forget them."""
        taken = [message for _, message in self.sent if isinstance(message, kind)]
        taken += [message for message in self.told if isinstance(message, kind)]
        self.sent = [each for each in self.sent if not isinstance(each[1], kind)]
        self.told = [message for message in self.told if not isinstance(message, kind)]
        return taken

    def new_class(self, **fields: Any) -> SchedulingClass:
        number = len(self.submitter.classes)
        klass = SchedulingClass(number, b"function", "f", {"CPU": 10_000}, Strategy(), 1, ready=True, leases={},
                                **{"max_retries": 3, **fields})
        self.submitter.classes[number] = klass
        return klass

    def new_tasks(self, klass: SchedulingClass, count: int, **fields: Any) -> list[Task]:
        """Queue tasks; the caller pumps."""
        tasks = []
        for _ in range(count):
            self._seq += 1
            ref = ObjectRef(_prefix=PREFIX, _index=self._seq)
            task = Task(self._seq, klass, PREFIX, self._seq, ref, **{"retries_left": klass.max_retries, **fields})
            ref._task = task
            klass.queue.append(task)
            self.outcomes.pending[task.seq] = task
            tasks.append(task)
        return tasks

    def grant(self, klass: SchedulingClass, number: int) -> None:
        self.submitter.granted(LeaseGranted(klass.number, number, f"worker-{number}", "ipc://w", "node-1", number))

    def pushed(self) -> dict[int, list[list[int]]]:
        """Return the task numbers of each batch pushed since the last call, by lease."""
        batches: dict[int, list[list[int]]] = {}
        for message in self.take_sent(PushTasks):
            batches.setdefault(message.lease, []).append([entry.seq for entry in message.tasks])
        return batches

    def finish(self, lease: int, seqs: list[int], *, mean_ns: int = 0, error: bytes | None = None,
               retryable: bool = False) -> None:
        results = [TaskResult(seq, None, error, retryable) for seq in seqs]
        self.outcomes.finished(f">worker-{lease}".encode(), TasksFinished(results, mean_ns, lease))


class FakePins:
    """Nothing moves unless a test raises ``now``, the generation of every location."""

    def __init__(self) -> None:
        self.now = 0
        self.pinned: list[tuple[int, int]] = []

    def generation(self, offset: int) -> int:
        return self.now

    def view(self, offset: int, size_bytes: int, generation: int, keep: Any) -> memoryview | None:
        if generation != self.now:
            return None
        self.pinned.append((offset, size_bytes))
        return memoryview(bytes(size_bytes))


class FakeArena:
    """Room without end; ``mine`` are the offsets that this session allocated and still has."""

    def __init__(self) -> None:
        self.mine: dict[int, int] = {}
        self._next = 0

    def allocate(self, size_bytes: int) -> int:
        offset, self._next = self._next, self._next + size_bytes
        self.mine[offset] = size_bytes
        return offset

    def write(self, offset: int, pieces: Any) -> None:
        assert offset in self.mine

    def release(self, offset: int) -> bool:
        return self.mine.pop(offset, None) is not None


def check(session: FakeSession, klass: SchedulingClass) -> None:
    """The count of hungry leases agrees with the leases, and no task is at two workers."""
    assert klass.hungry == sum(1 for lease in klass.leases.values() if not lease.outstanding)
    seqs = [seq for lease in klass.leases.values() for seq in lease.outstanding]
    assert len(seqs) == len(set(seqs))
    assert set(klass.leases) <= set(session.submitter.leases)
