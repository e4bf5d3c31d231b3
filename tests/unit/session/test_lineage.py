"""Lineage rows are written late, or never, and go with their references, whatever the control store does."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered, Refused
from meshray.ids import task_id
from meshray.messages.gcs import DELETE, PUT, Op
from meshray.messages.node import Strategy
from meshray.object_ref import ObjectRef
from meshray.session import lineage
from meshray.session.lineage import Lineage
from meshray.session.records import SchedulingClass, Task
from tests.unit.session.fake_session import PREFIX

CLASS = SchedulingClass(1, b"function", "f", {}, Strategy(), 1)


class Bench:
    """A session's lineage, and a control store that answers when a test says so."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.writes: list[tuple[list[Op], Callable[[Answered], None]]] = []
        store = SimpleNamespace(write=lambda ops, done: self.writes.append((ops, done)))
        session: Any = SimpleNamespace(name="me", job="job", now_ns=0, tables=store)
        self.lineage = Lineage(session)

    def task(self, index: int) -> ObjectRef:
        """Submit a task."""
        ref = ObjectRef(_prefix=PREFIX, _index=index)
        ref._task = Task(index, CLASS, PREFIX, index, ref)
        ref._task.returns = []
        self.lineage.note(ref, self.now_ns)
        return ref

    def flush(self) -> list[tuple[int, bytes]]:
        """Flush when all is due; return what is newly written: kind and key."""
        before = len(self.writes)
        self.now_ns += config.LINEAGE_FLUSH_NS
        self.lineage.flush(self.now_ns)
        return [(op.kind, op.key) for ops, _ in self.writes[before:] for op in ops]

    def answer(self, error: Refused | None = None) -> None:
        """Answer the write that is on the way."""
        self.writes[-1][1](Answered(1, [], error))


def key(index: int) -> bytes:
    return task_id(PREFIX, index)


def test_a_row_is_written_if_its_reference_lives_and_removed_when_that_dies() -> None:
    bench = Bench()
    kept = bench.task(1)
    bench.task(2)
    assert bench.flush() == [(PUT, key(1))]
    assert bench.writes[0][0][0].table == tables.TASK
    bench.answer()
    assert bench.flush() == []
    del kept
    assert bench.flush() == [(DELETE, key(1))]
    bench.answer()
    assert bench.flush() == [] and not bench.lineage.waiting


def test_one_write_is_on_the_way_and_removals_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_ROWS_MAX", 2)
    bench = Bench()
    refs = [bench.task(index) for index in range(5)]
    assert bench.flush() == [(PUT, key(0)), (PUT, key(1))]
    assert bench.flush() == []
    for _ in range(3):
        del refs[0]
    bench.answer()
    assert bench.flush() == [(DELETE, key(0)), (DELETE, key(1))]
    bench.answer()
    assert bench.flush() == [(PUT, key(3)), (PUT, key(4))], "number 2 died before its turn"


def test_what_could_not_be_removed_is_tried_again() -> None:
    bench = Bench()
    refs = [bench.task(1)]
    bench.flush()
    bench.answer()
    refs.append(bench.task(2))
    del refs[0]
    assert bench.flush() == [(DELETE, key(1)), (PUT, key(2))]
    bench.answer(Refused("too much"))
    assert bench.flush() == [(DELETE, key(1))]
    refs.clear()
    bench.answer()
    assert bench.flush() == [(DELETE, key(2))], "it may have been written"


def test_references_that_died_are_thrown_out_while_the_store_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_QUEUE_MIN", 10)
    bench = Bench()
    first = bench.task(0)
    bench.flush()
    kept = [bench.task(1)]
    for index in range(2, 100):
        bench.task(index)
        bench.flush()
        assert len(bench.lineage._queue) <= lineage._QUEUE_MIN + 1
    bench.answer()
    assert bench.flush() == [(PUT, key(1))]
    del first, kept
