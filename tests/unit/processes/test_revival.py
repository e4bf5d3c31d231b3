"""A cluster that was started again: what its tables say is put right before anybody joins."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from meshray.gcs import tables
from meshray.gcs.requests import Answered, Outcome, Unanswered
from meshray.messages.gcs import DELETE, Op, Row
from meshray.messages.node import ActorSpec, CreateActor
from meshray.messages.tasks import TaskEntry
from meshray.processes.revival import Revival


class Head:
    """A node, and a control store that answers when it is told to."""

    def __init__(self) -> None:
        self.settings: Any = SimpleNamespace(life="now")
        self.events: Any = SimpleNamespace(note=lambda *what, **more: None)
        self.rows: dict[tuple[str, bytes], tuple[int, bytes]] = {}
        self.created: list[CreateActor] = []
        self.waiting: deque[Any] = deque()
        self.revival = Revival(self)  # type: ignore[arg-type]

    def put(self, table: str, key: bytes, row: Any) -> None:
        self.rows[table, key] = (1, tables.encode(row))

    def scan(self, table: str, prefix: bytes, limit: int, now_ns: int, done: Any, *, after: bytes = b"") -> list[Any]:
        def answer(error: Any) -> list[Any]:
            rows = [Row(key, *found) for (named, key), found in self.rows.items() if named == table and key > after]
            return list(done(Answered(1, [] if error else rows, error), now_ns))

        self.waiting.append(answer)
        return []

    def write(self, ops: list[Op], now_ns: int, done: Any) -> list[Any]:
        def answer(error: Any) -> list[Any]:
            for op in () if error else ops:
                if op.kind == DELETE:
                    self.rows.pop((op.table, op.key), None)
                else:
                    self.rows[op.table, op.key] = (op.version + 1, op.value)
            return list(done(Answered(1, [Outcome(True, 2)] * len(ops), error), now_ns))

        self.waiting.append(answer)
        return []

    def schedule(self, event: Any, now_ns: int) -> list[Any]:
        self.created.append(event.message)
        return []

    def answer_all(self, *errors: Any) -> None:
        """Answer what waits, and what comes of it; the first ones with errors."""
        failing = deque(errors)
        while self.waiting:
            assert not self.revival.is_done
            self.waiting.popleft()(failing.popleft() if failing else None)

    def actor(self, key: bytes) -> tables.ActorRow:
        return tables.decode(self.rows[tables.ACTOR, key][1], tables.ActorRow)


def actor(key: bytes, *, name: str, detached: bool) -> tables.ActorRow:
    spec = ActorSpec(key, "driver-1", "ipc://d", "job", b"class", "Counter", TaskEntry(0, 0, b""), {}, {}, name=name,
                     namespace="n", detached=detached)
    return tables.ActorRow(spec, "alive", 3, "node-old", "worker-old", "ipc://w", 77, restarts=1)


def test_a_detached_actor_is_alive_nowhere_until_it_was_built_again() -> None:
    head = Head()
    head.put(tables.ACTOR, b"stays", actor(b"stays", name="a", detached=True))
    head.revival.begin(0)
    head.answer_all()
    assert head.revival.is_done
    row = head.actor(b"stays")
    assert (row.state, row.incarnation, row.restarts, row.worker) == ("restarting", 4, 1, "")
    assert [(each.incarnation, each.restarts) for each in head.created] == [(4, 1)]


def test_actors_nodes_and_jobs_of_the_past_are_over() -> None:
    head = Head()
    head.put(tables.ACTOR, b"goes", actor(b"goes", name="b", detached=False))
    head.put(tables.NAME, tables.name_key("n", "b"), actor(b"goes", name="b", detached=False))
    head.put(tables.NODE, b"node-old", tables.NodeRow("node-old", "left", "ipc://n", {}, life="before"))
    head.put(tables.NODE, b"node-new", tables.NodeRow("node-new", "left", "ipc://n", {}, life="now"))
    head.put(tables.JOB, b"job", tables.JobRow("job", "driver-1", "n", life="before"))
    head.revival.begin(0)
    head.answer_all(Unanswered("silent", False), *[None] * 4, Unanswered("silent", True))
    assert head.revival.is_done
    assert head.actor(b"goes").state == "dead"
    assert (tables.NAME, tables.name_key("n", "b")) not in head.rows
    states = {key: tables.decode(row, tables.NodeRow).state for (table, key), (_, row) in head.rows.items()
              if table == tables.NODE}
    assert states == {b"node-old": "dead", b"node-new": "alive"}
    assert tables.decode(head.rows[tables.JOB, b"job"][1], tables.JobRow).state == "failed"
    assert head.created == []
