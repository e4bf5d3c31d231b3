"""A cluster that was started again from its disks: what comes back, and what is said of what cannot.

*Pure.* Runs in the node process of one node, the head, once, when it finds a control store that has a past.

1. Nothing runs of the past: every process of the cluster had ended. What rows say of processes is therefore put right,
   all of it before the head counts as ready: nobody joins a cluster whose rows name dead processes.
2. Key-value pairs, names and functions stay as they are. Nodes of the past are ``dead``, jobs that ran are ``failed``;
   both stay as history.
3. Detached actors are built anew from their rows, as after a crash of their worker, but at no cost of a restart. All
   other actors lived as long as their job: they are ``dead``, and their names are free.
4. Objects lay in memory that is gone, and lineage is for those who hold references: both tables are emptied. Who asks
   for such an object is told that it is lost, with the object's owner as the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshray.gcs import tables
from meshray.gcs.requests import Answered, Unanswered
from meshray.gcs.tables import ActorRow
from meshray.machine import Received
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, Op, Row
from meshray.messages.node import CreateActor, Death

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine

REASON = "every process of its cluster had ended, and the cluster was started again"
_PAGE = 1_000
"""Rows that are put right at a time."""


class Revival:
    """What one node does for the whole cluster."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self.counts = dict.fromkeys(("nodes", "jobs", "actors", "actors_dead", "objects", "tasks"), 0)
        self._unanswered = 0

    @property
    def is_done(self) -> bool:
        """Whether everything is put right."""
        return self._unanswered == 0

    def begin(self, now_ns: int) -> list[Any]:
        """Go through the tables of the past."""
        self._node.events.note("warning", "cluster started again", REASON, now_ns)
        effects: list[Any] = []
        for table, put_right in ((tables.NODE, self._node_row), (tables.JOB, self._job_row),
                                 (tables.ACTOR, self._actor_row), (tables.OBJECT, self._drop("objects")),
                                 (tables.TASK, self._drop("tasks"))):
            effects += self._page(table, b"", put_right, now_ns)
        return effects

    def _page(self, table: str, after: bytes, put_right: Any, now_ns: int) -> list[Any]:
        def found(answer: Answered, later_ns: int) -> list[Any]:
            self._unanswered -= 1
            if answer.error is not None:
                return self._page(table, after, put_right, later_ns)
            effects: list[Any] = []
            ops: list[Op] = []
            for row in answer.results:
                changed, started = put_right(table, row, later_ns)
                ops += changed
                effects += started
            effects += self._write(ops, later_ns) if ops else []
            if answer.more and answer.results:
                effects += self._page(table, answer.results[-1].key, put_right, later_ns)
            return effects

        self._unanswered += 1
        return self._node.scan(table, b"", _PAGE, now_ns, found, after=after)

    def _write(self, ops: list[Op], now_ns: int) -> list[Any]:
        def written(answer: Answered, later_ns: int) -> list[Any]:
            self._unanswered -= 1
            return self._write(ops, later_ns) if isinstance(answer.error, Unanswered) else []

        self._unanswered += 1
        return self._node.write(ops, now_ns, written)

    def _node_row(self, table: str, row: Row, now_ns: int) -> tuple[list[Op], list[Any]]:
        found = tables.decode(row.value or b"", tables.NodeRow)
        if found.state != "alive" or found.life == self._node.settings.life:
            return [], []
        self.counts["nodes"] += 1
        return [_put(table, row, msgspec.structs.replace(found, state="dead", reason=REASON))], []

    def _job_row(self, table: str, row: Row, now_ns: int) -> tuple[list[Op], list[Any]]:
        found = tables.decode(row.value or b"", tables.JobRow)
        if found.state != "running" or found.life == self._node.settings.life:
            return [], []
        self.counts["jobs"] += 1
        return [_put(table, row, msgspec.structs.replace(found, state="failed", reason=REASON))], []

    def _actor_row(self, table: str, row: Row, now_ns: int) -> tuple[list[Op], list[Any]]:
        found = tables.decode(row.value or b"", tables.ActorRow)
        spec = found.spec
        if found.state == "dead":
            return [], []
        death = Death(found.worker, found.pid, found.node, reason=REASON)
        if spec.detached:
            self.counts["actors"] += 1
            again = ActorRow(spec, "restarting", found.incarnation + 1, restarts=found.restarts, death=death)
            create = CreateActor(spec, incarnation=again.incarnation, restarts=again.restarts)
            return [_put(table, row, again)], self._node.schedule(Received(b">nobody", create), now_ns)
        self.counts["actors_dead"] += 1
        ops = [_put(table, row, msgspec.structs.replace(found, state="dead", death=death))]
        if spec.name:
            ops.append(Op(tables.NAME, tables.name_key(spec.namespace, spec.name), b"", DELETE))
        return ops, []

    def _drop(self, counted: str) -> Any:
        def drop(table: str, row: Row, now_ns: int) -> tuple[list[Op], list[Any]]:
            self.counts[counted] += 1
            return [Op(table, row.key, b"", DELETE, row.version)], []

        return drop


def _put(table: str, row: Row, value: Any) -> Op:
    return Op(table, row.key, tables.encode(value), COMPARE_AND_SET, row.version)
