"""Retention: what the tables keep of jobs, actors and nodes that have ended, and that it stays bounded.

*Pure.* Runs in every node process; the one beside the head of the first shard does the work, so that it moves when the
head does. Two that believe it is theirs do no harm.

1. Deletions are ordinary writes, under the condition that the row is still what was seen: they go down the chain like
   all others, and a row that came to life again stays.
2. A job counts as ended when its row said so in two sweeps, and no actor that it made lives. Its functions and what is
   left of its lineage go then: sessions remove lineage themselves, unless they are killed. What its driver left goes
   also if actors live on.
3. Rows of ended jobs, dead actors, dead nodes and events stay as history; of each kind the newest, as many as the
   settings say. A job's row goes last, after everything that names it.
4. An actor whose node and home two sweeps did not find is taken over (``detached_actors``), or is dead.
5. A node that two sweeps did not find is dead, and the jobs of its drivers have failed: it cannot say so itself. One
   that is there is not dead, whatever somebody wrote who had given it up.

Source: OSDI'18 s5 figure 10b (flushing of the control store).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, Op, Row

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine

_PAGE = 1_000
"""Rows that are looked through at a time."""
_OF_JOBS: dict[str, type[tables.TaskRow] | type[tables.ObjectRow] | type[tables.FunctionRow]] = {
    tables.TASK: tables.TaskRow, tables.OBJECT: tables.ObjectRow, tables.FUNCTION: tables.FunctionRow}
"""Tables whose rows go with their job."""
_HISTORY = (tables.JOB, tables.ACTOR, tables.NODE, tables.EVENT)
"""Tables of which the newest rows of what has ended stay."""
_LOST = "its node is gone"


class _Sweep(msgspec.Struct, eq=False):
    """What one sweep has found: history as (version, key), and what there is to do with jobs."""

    history: dict[str, list[tuple[int, bytes]]]
    orphans: list[Row] = []
    """Actors that live nowhere and have no home."""
    living: set[str] = set()
    """Jobs with actors that live."""
    ended: set[str] = set()
    """Jobs, and the drivers of jobs: what names them goes."""
    missing: set[str] = set()
    """Nodes that have a row and are not there."""
    cleaning: frozenset[str] = frozenset()


class Retention:
    """What one node removes for the whole cluster."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self._due_ns: int | None = None
        self._sweep: _Sweep | None = None
        self._ended: set[str] = set()
        """Jobs and drivers that had ended at the last sweep."""
        self._cleaned: set[str] = set()
        """Of those, the ones of which nothing is left but their row."""
        self._missing: set[str] = set()
        self.counts = dict.fromkeys(("sweeps", *(f"removed_{table}s" for table in (
            *_HISTORY, *_OF_JOBS))), 0)

    def begin(self, now_ns: int) -> None:
        """The node starts now."""
        self._due_ns = now_ns + config.RETENTION_SWEEP_NS

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return self._due_ns

    def tick(self, now_ns: int) -> list[Any]:
        """Sweep, if it is time and this node's to do."""
        if self._due_ns is None or now_ns < self._due_ns:
            return []
        self._due_ns = now_ns + config.RETENTION_SWEEP_NS
        if self._sweep is not None or not self._node.is_beside_head():
            return []
        self._sweep = _Sweep({table: [] for table in _HISTORY})
        return self._table(tables.ACTOR, self._actor, now_ns, self._jobs)

    def statistics(self) -> dict[str, int]:
        """Return what was done so far."""
        return {f"retention_{name}": count for name, count in self.counts.items()}

    # --- one table after the other -------------------------------------------------------------------------------

    def _table(self, table: str, judge: Callable[[_Sweep, Row], list[Op]], now_ns: int,
               then: Callable[[_Sweep, int], list[Any]], after: bytes = b"") -> list[Any]:
        """Let ``judge`` see every row and say what to write, page by page; then go on. An error ends the sweep."""
        def found(answer: Answered, later_ns: int) -> list[Any]:
            sweep = self._sweep
            assert sweep is not None, "one sweep at a time"
            if answer.error is not None:
                self._sweep = None
                return []
            ops: list[Op] = []
            for row in answer.results:
                with suppress(tables.BadRow):  # a row that nobody can read says of nothing that it has ended
                    ops += judge(sweep, row)

            def go_on(at_ns: int) -> list[Any]:
                if answer.more and answer.results:
                    return self._table(table, judge, at_ns, then, answer.results[-1].key)
                return then(sweep, at_ns)

            return self._write(table, ops, later_ns, go_on)

        return self._node.scan(table, b"", _PAGE, now_ns, found, after=after)

    def _write(self, table: str, ops: list[Op], now_ns: int, then: Callable[[int], list[Any]]) -> list[Any]:
        if not ops:
            return then(now_ns)

        def written(answer: Answered, later_ns: int) -> list[Any]:
            if answer.error is not None:
                self._sweep = None
                return []
            done = [op for op, outcome in zip(ops, answer.results, strict=True) if outcome.ok]
            self.counts[f"removed_{table}s"] += sum(op.kind == DELETE for op in done)
            for op in done if table == tables.NODE else ():
                if op.kind == COMPARE_AND_SET and (dead := tables.decode(op.value, tables.NodeRow)).state == "dead":
                    self._node.events.node_died(dead, later_ns)
            return then(later_ns)

        return self._node.write(ops, now_ns, written)

    def _jobs(self, sweep: _Sweep, now_ns: int) -> list[Any]:
        effects = [effect for row in sweep.orphans for effect in self._node.detached.inherit(
            row, lambda node: node in self._missing and node not in self._node.peers, now_ns)]
        return effects + self._table(tables.JOB, self._job, now_ns, self._nodes)

    def _nodes(self, sweep: _Sweep, now_ns: int) -> list[Any]:
        return self._table(tables.NODE, self._node_row, now_ns, self._events)

    def _events(self, sweep: _Sweep, now_ns: int) -> list[Any]:
        return self._table(tables.EVENT, self._event, now_ns, self._clean)

    def _clean(self, sweep: _Sweep, now_ns: int) -> list[Any]:
        """Remove what jobs left that have ended, if any has since the last time."""
        sweep.cleaning = frozenset((sweep.ended & self._ended) - self._cleaned)
        steps: Callable[[_Sweep, int], list[Any]] = self._trim
        for table in _OF_JOBS if sweep.cleaning else ():
            steps = self._cleaning_of(table, steps)
        return steps(sweep, now_ns)

    def _cleaning_of(self, table: str, then: Callable[[_Sweep, int], list[Any]]) -> Callable[[_Sweep, int], list[Any]]:
        def judge(sweep: _Sweep, row: Row) -> list[Op]:
            found = tables.decode(row.value or b"", _OF_JOBS[table])
            owner = "" if isinstance(found, tables.FunctionRow) else found.owner
            goes = found.job in sweep.cleaning or owner in sweep.cleaning
            return [_delete(table, row.key, row.version)] if goes else []

        return lambda sweep, now_ns: self._table(table, judge, now_ns, then)

    def _trim(self, sweep: _Sweep, now_ns: int) -> list[Any]:
        """Everything was seen, and what was to be cleaned is: remove the history that is too much."""
        self._ended, self._missing = sweep.ended, sweep.missing
        self._cleaned = (self._cleaned | sweep.cleaning) & sweep.ended
        keep = self._node.settings.retention
        limits = {tables.JOB: keep.jobs, tables.ACTOR: keep.actors, tables.NODE: keep.nodes, tables.EVENT: keep.events}
        return self._trim_next(sweep, list(limits.items()), now_ns)

    def _trim_next(self, sweep: _Sweep, left: list[tuple[str, int]], now_ns: int) -> list[Any]:
        if not left:
            self._sweep = None
            self.counts["sweeps"] += 1
            return []
        table, keep = left.pop()
        shards = len(self._node.gcs.shards)
        ops = [_delete(table, key, version)
               for version, key in too_many(table, sweep.history[table], keep, shards)
               if table != tables.JOB or key.decode() in self._cleaned]
        return self._write(table, ops, now_ns, lambda later_ns: self._trim_next(sweep, left, later_ns))

    # --- rows ----------------------------------------------------------------------------------------------------

    def _actor(self, sweep: _Sweep, row: Row) -> list[Op]:
        found = tables.decode(row.value or b"", tables.ActorRow)
        if found.state == "dead":
            sweep.history[tables.ACTOR].append((row.version, row.key))
        else:
            sweep.living.add(found.spec.job)
            homeless = self._is_missing(sweep, found.home or found.node)
            if self._is_missing(sweep, found.node) and homeless:
                sweep.orphans.append(row)
        return []

    def _job(self, sweep: _Sweep, row: Row) -> list[Op]:
        found = tables.decode(row.value or b"", tables.JobRow)
        if found.state == "running":
            if self._is_missing(sweep, found.node):
                return [_put(tables.JOB, row, msgspec.structs.replace(found, state="failed", reason=_LOST))]
            return []
        sweep.ended.add(found.driver)
        if found.job not in sweep.living:
            sweep.ended.add(found.job)
            sweep.history[tables.JOB].append((row.version, row.key))
        return []

    def _node_row(self, sweep: _Sweep, row: Row) -> list[Op]:
        found = tables.decode(row.value or b"", tables.NodeRow)
        if found.state == "dead" and found.node in (self._node.node, *self._node.peers):
            return [_put(tables.NODE, row, msgspec.structs.replace(found, state="alive", reason=""))]
        if found.state != "alive":
            sweep.history[tables.NODE].append((row.version, row.key))
        elif self._is_missing(sweep, found.node):
            return [_put(tables.NODE, row, msgspec.structs.replace(found, state="dead", reason="it is gone"))]
        return []

    def _event(self, sweep: _Sweep, row: Row) -> list[Op]:
        sweep.history[tables.EVENT].append((row.version, row.key))
        return []

    def _is_missing(self, sweep: _Sweep, node: str) -> bool:
        """Whether a node is not there, and was not there at the last sweep."""
        if node == self._node.node or node in self._node.peers:
            return False
        sweep.missing.add(node)
        return node in self._missing


def too_many(table: str, history: list[tuple[int, bytes]], keep: int, shards: int) -> list[tuple[int, bytes]]:
    """Return the rows, as (version, key), that are more than ``keep``, oldest first. Versions of two shards say nothing
    about each other, so each shard keeps its part."""
    parts: dict[int, list[tuple[int, bytes]]] = {}
    for version, key in history:
        parts.setdefault(tables.shard_of(table, key, shards), []).append((version, key))
    share = -(-keep // shards)
    return [row for part in parts.values() for row in sorted(part)[:max(0, len(part) - share)]]


def _delete(table: str, key: bytes, version: int) -> Op:
    return Op(table, key, b"", DELETE, version)


def _put(table: str, row: Row, value: Any) -> Op:
    return Op(table, row.key, tables.encode(value), COMPARE_AND_SET, row.version)
