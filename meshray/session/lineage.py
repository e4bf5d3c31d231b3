"""Lineage: task and object rows, written behind the work.

*Pure* but for the control store writes of its session. Runs in drivers and workers.

1. A row is written ``LINEAGE_FLUSH_NS`` after its task was submitted, and only if its first result is still referred
   to: the fast path never waits, and results that come and go leave no trace.
2. A row that was written is removed when its last reference dies (retention by reference).
3. One write is on the way at a time, and removals go first: a control store that is slower than the tasks makes rows
   late, of which most then need not be written any more. It is never handed more than it takes, nor holds more rows
   than there are references, and one flush of those that died.
4. Memory is bounded: what is waited for is a queue of weak references, of which those that died are thrown out, and a
   written task is forgotten here.

Source: OSDI'18 s4.2.1 (task table); written behind, as in the lineage stash (SOSP'19).
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered
from meshray.ids import task_id
from meshray.messages.gcs import DELETE, PUT, Op
from meshray.messages.tasks import TaskEntry
from meshray.object_ref import STORED, ObjectRef
from meshray.session.records import SchedulingClass, Task

if TYPE_CHECKING:
    from meshray.session.session import Session

_ROWS_MAX = 2000
"""Rows per write: bounds the size of one message and the length of one turn."""

_QUEUE_MIN = 10_000
"""Queued references below which it is not worth looking for those that died."""


class Written:
    """Takes the place of a task's record in its references once its row is written; removes the row when it dies."""

    __slots__ = ("dead", "keys")

    def __init__(self, keys: list[tuple[str, bytes]], dead: deque[tuple[str, bytes]]) -> None:
        self.keys = keys
        self.dead = dead

    def __del__(self) -> None:
        self.dead.extend(self.keys)


class Lineage:
    """The rows that one session owes to the control store."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._queue: deque[tuple[int, weakref.ref[ObjectRef]]] = deque()
        self._dead: deque[tuple[str, bytes]] = deque()
        self._on_the_way: list[Op] = []
        self._clean_at = _QUEUE_MIN
        """Length of the queue at which it is looked through next."""

    @property
    def waiting(self) -> bool:
        """Whether ``flush`` will have something to do."""
        return bool(self._queue or self._dead)

    def note(self, ref: ObjectRef, submitted_ns: int) -> None:
        """A task was submitted; ``ref`` is its first return. Called by any thread."""
        self._queue.append((submitted_ns, weakref.ref(ref)))

    def escaped(self, ref: ObjectRef) -> None:
        """``ref`` leaves its owner for the first time: its rows are due as soon as the others."""
        if ref._owner is None and type(ref._task) not in (Task, Written):
            self._queue.append((self._session.now_ns, weakref.ref(ref)))

    def flush(self, now_ns: int) -> None:
        """Remove the rows whose references died, write those that are due. (leader)"""
        queue = self._queue
        if len(queue) >= self._clean_at:
            self._throw_out()
        if self._on_the_way:
            return
        ops = self._on_the_way
        while self._dead and len(ops) < _ROWS_MAX:
            table, key = self._dead.popleft()
            ops.append(Op(table, key, b"", DELETE))
        due_ns = now_ns - config.LINEAGE_FLUSH_NS
        while queue and queue[0][0] <= due_ns and len(ops) < _ROWS_MAX:
            ref = queue.popleft()[1]()
            if ref is not None:
                ops += self._rows(ref)
        if ops:
            self._session.tables.write(ops, self._written)

    def _written(self, answer: Answered) -> None:
        """The write has ended. Rows that could not be written are given up, as if their task had been too short; those
        that could not be removed are tried again."""
        ops, self._on_the_way = self._on_the_way, []
        if answer.error is not None:
            self._dead.extend((op.table, op.key) for op in ops if op.kind == DELETE)

    def _throw_out(self) -> None:
        """Forget what died while it waited. Other threads append meanwhile, so the queue is turned once, not made
        anew."""
        for _ in range(len(self._queue)):
            entry = self._queue.popleft()
            if entry[1]() is not None:
                self._queue.append(entry)
        self._clean_at = max(_QUEUE_MIN, 2 * len(self._queue))

    def _rows(self, ref: ObjectRef) -> list[Op]:
        ops = []
        keys: list[tuple[str, bytes]] = []
        task = ref._task
        if type(task) is Task and isinstance(task.klass, SchedulingClass):
            key = task_id(task.prefix, task.index)
            ops.append(Op(tables.TASK, key, tables.encode(self._task_row(task)), PUT))
            keys.append((tables.TASK, key))
        if ref._state == STORED and ref._owner is None:
            ops.append(Op(tables.OBJECT, ref.binary(), tables.encode(self._object_row(ref)), PUT))
            keys.append((tables.OBJECT, ref.binary()))
        if keys and (ref._task is None or type(ref._task) is Task):
            written: Any = Written(keys, self._dead)
            ref._task = written
        return ops

    def _task_row(self, task: Task) -> tables.TaskRow:
        klass: SchedulingClass = task.klass
        return tables.TaskRow(
            klass.function, klass.name, task.prefix, klass.num_returns,
            TaskEntry(task.seq, task.index, task.args, None, task.refs),
            klass.resources, self._session.name, self._session.job, task.attempt, task.retries_left)

    def _object_row(self, ref: ObjectRef) -> tables.ObjectRow:
        location = ref._value.location
        return tables.ObjectRow(self._session.name, location.size_bytes, [location], job=self._session.job)
