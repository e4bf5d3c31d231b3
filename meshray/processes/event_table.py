"""The event table, as one node writes it: what happened to the cluster, kept as a ring.

*Pure.* Runs in every node process.

1. Whoever sees something happen notes it; once in ``EVENT_FLUSH_NS`` what was noted is written, in one write. Nothing
   waits for it, and nothing is noted per task.
2. Keys begin with the time and name the node, so that no row takes another's place, whatever crashes, and rows are in
   the order of time. What the control store did not take is written again under the same key: it is there once.
3. The table is a ring: ``retention`` removes the oldest rows beyond its setting, once in RETENTION_SWEEP_NS, by
   conditional writes like any client's. In between a node writes at most EVENT_BURST_MAX rows of each urgency and one
   for each EVENT_REFILL_NS, and then says how many it left out: a crash loop floods neither the control store nor the
   ring, and the table exceeds its bound by so many rows for each node at most.
4. What happens to a chain is told by the node beside its head, what happens to a node by whoever first writes into its
   row that it is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered
from meshray.messages.gcs import COMPARE_AND_SET, Op

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine

INFO, WARNING, ERROR = "info", "warning", "error"


def excess_max(nodes: int) -> int:
    """Return by how many rows ``nodes`` nodes may exceed the table's bound between two sweeps: each has two budgets."""
    return nodes * 2 * (config.EVENT_BURST_MAX + config.RETENTION_SWEEP_NS // config.EVENT_REFILL_NS)


class _Budget(msgspec.Struct):
    """How many more rows of one urgency may be written now, and how many were left out since the last one was."""

    left: int = config.EVENT_BURST_MAX
    filled_ns: int = 0
    omitted: int = 0

    def take(self, now_ns: int) -> bool:
        """Whether one more row may be written."""
        fresh = (now_ns - self.filled_ns) // config.EVENT_REFILL_NS
        if fresh > 0:
            self.left = min(config.EVENT_BURST_MAX, self.left + fresh)
            self.filled_ns += fresh * config.EVENT_REFILL_NS
        if not self.left:
            self.omitted += 1
            return False
        self.left -= 1
        return True


class EventTable:
    """What one node has seen happen and not written yet."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self.wall_offset_ns = 0
        """What the shell adds to its own clock to have the time of day."""
        self._number = 0
        self._noted: list[Op] = []
        self._writing = False
        self._due_ns: int | None = None
        self._budgets = {True: _Budget(), False: _Budget()}
        self._epochs: list[int] = []
        self._seen = {"refusals": 0, "spill_failures": 0}
        self._loss = ""
        self.counts = {"events_written": 0, "events_omitted": 0}

    # --- noting --------------------------------------------------------------------------------------------------

    def note(self, severity: str, kind: str, message: str, now_ns: int, *, source: str = "") -> None:
        """Something happened; ``kind`` is its name in two or three words, ``source`` the process that it happened to,
        if it is not this node."""
        budget = self._budgets[severity == INFO]
        if not budget.take(now_ns):
            self.counts["events_omitted"] += 1
            return
        if budget.omitted and budget.left:
            omitted, budget.omitted, budget.left = budget.omitted, 0, budget.left - 1
            self._row(severity, "events left out", f"{omitted} events of this node were too many", now_ns, "")
        self._row(severity, kind, message, now_ns, source)

    def _row(self, severity: str, kind: str, message: str, now_ns: int, source: str) -> None:
        node = self._node
        wall_ns = now_ns + self.wall_offset_ns
        self._number += 1
        row = tables.EventRow(wall_ns, severity, kind, source or node.settings.node_name,
                              message[:config.EVENT_MESSAGE_CHARS_MAX])
        self._noted.append(Op(tables.EVENT, b"%020d/%s/%08d" % (wall_ns, node.node.encode(), self._number),
                              tables.encode(row)))
        del self._noted[:-config.EVENT_WAITING_MAX]

    # --- writing -------------------------------------------------------------------------------------------------

    def begin(self, now_ns: int) -> None:
        """The node starts now."""
        node = self._node
        self._epochs = [shard.epoch for shard in node.gcs.shards]
        for budget in self._budgets.values():
            budget.filled_ns = now_ns
        self._due_ns = now_ns + config.EVENT_FLUSH_NS
        self.note(INFO, "node joined", f"{node.node} at {node.endpoint}, pid {node.pid}", now_ns)

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return self._due_ns

    def tick(self, now_ns: int) -> list[Any]:
        """Look for what nobody tells, and write what was noted."""
        if self._due_ns is None or now_ns < self._due_ns:
            return []
        self._due_ns = now_ns + config.EVENT_FLUSH_NS
        self._look_at_chains(now_ns)
        self._look_at_store(now_ns)
        if self._writing or not self._noted:
            return []
        ops = list(self._noted)
        self._writing = True

        def written(answer: Answered, later_ns: int) -> list[Any]:
            self._writing = False
            if answer.error is None:
                self.counts["events_written"] += len(ops)
                done = {op.key for op in ops}
                self._noted = [op for op in self._noted if op.key not in done]
            return []

        return self._node.write(ops, now_ns, written)

    def last_words(self, reason: str, now_ns: int) -> list[Any]:
        """The node ends of its own will: say so, and what else was noted, while there is still somebody to write it."""
        node = self._node
        if self._due_ns is None or not node.peers:
            return []
        self.note(INFO, "node left", reason, now_ns)
        row = msgspec.structs.replace(node.row, state="left", reason=reason)
        return node.write([Op(tables.NODE, node.node.encode(), tables.encode(row)), *self._noted], now_ns)

    def _look_at_chains(self, now_ns: int) -> None:
        for index, shard in enumerate(self._node.gcs.shards):
            before, self._epochs[index] = self._epochs[index], shard.epoch
            if shard.epoch > before and shard.members[0][0] in self._node.settings.host_shards:
                members = [name for name, _ in shard.members]
                short = len(members) < self._node.settings.replicas
                self.note(WARNING if short else INFO, "chain changed",
                          f"shard {index} is {' -> '.join(members)} in epoch {shard.epoch} (before: {before}); "
                          f"{len(members)} of {self._node.settings.replicas} replicas", now_ns, source=f"shard-{index}")

    def _look_at_store(self, now_ns: int) -> None:
        store = self._node.store
        counts = store.statistics()
        for name, (kind, text) in {
            "refusals": ("object store full", f"of {store.directory.capacity_bytes} bytes, "
                                              f"{counts.get('used_bytes', 0)} are in use and none can go"),
            "spill_failures": ("spilling fails", store.directory.disk_error),
        }.items():
            count, before = counts.get(name, 0), self._seen[name]
            if count > before:
                self._seen[name] = count
                self.note(ERROR, kind, f"{count - before} times within a second: {text}", now_ns)
        if store.puller.loss != self._loss:
            self._loss = store.puller.loss
            self.note(ERROR, "object lost", self._loss, now_ns)

    # --- nodes that are gone -------------------------------------------------------------------------------------

    def node_gone(self, node: str, now_ns: int) -> list[Any]:
        """Another node was given up: write it into its row; the first who does tells of it."""
        def found(answer: Answered, later_ns: int) -> list[Any]:
            if answer.error is not None or answer.results[0].value is None or node in self._node.peers:
                return []
            row = tables.decode(answer.results[0].value, tables.NodeRow)
            if row.state != "alive":
                return []
            dead = msgspec.structs.replace(row, state="dead", reason=REASON_GONE,
                                           ended_wall_ns=later_ns + self.wall_offset_ns)

            def written(outcome: Answered, at_ns: int) -> list[Any]:
                if outcome.error is None and outcome.results[0].ok:
                    self.node_died(dead, at_ns)
                return []

            return self._node.write([Op(tables.NODE, node.encode(), tables.encode(dead), COMPARE_AND_SET,
                                        answer.results[0].version)], later_ns, written)

        return self._node.read(tables.NODE, node.encode(), now_ns, found)

    def node_died(self, row: tables.NodeRow, now_ns: int) -> None:
        """It stands in its row now that a node is gone."""
        self.note(ERROR, "node died", f"{row.node} at {row.endpoint}: {row.reason}", now_ns, source=row.name)


REASON_GONE = f"no heartbeat for {config.SUSPICION_NS // config.SECOND_NS} s"
