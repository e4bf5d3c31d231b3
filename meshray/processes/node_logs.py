"""What workers print, on its way to their driver.

*Pure.* Runs in the node process.

1. Lines go to the driver whose job wrote them: directly, or through the node that it is a driver of.
2. A driver that leaves hears first what its tasks had written until then, on all nodes. Its node asks the others, whose
   lines come before their answers; one that does not answer is waited for no longer than ``LOGS_FLUSH_NS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config
from meshray.machine import Received, Send
from meshray.messages import state
from meshray.processes.node_events import LinesWritten, LogsRead, ReadLogs

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine


class _Leaving(msgspec.Struct, eq=False):
    """A driver that leaves, and the nodes that may have lines for it."""

    nodes: set[str]
    stop_cluster: bool
    deadline_ns: int


class NodeLogs:
    """The lines that pass one node."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self._leaving: dict[str, _Leaving] = {}

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return min(leaving.deadline_ns for leaving in self._leaving.values()) if self._leaving else None

    def tick(self, now_ns: int) -> list[Any]:
        """Let drivers go that have waited long enough."""
        late = [driver for driver, leaving in self._leaving.items() if leaving.deadline_ns <= now_ns]
        return [effect for driver in late for effect in self._let_go(driver, now_ns)]

    # --- lines ---------------------------------------------------------------------------------------------------

    def written(self, event: LinesWritten, now_ns: int) -> list[Any]:
        """A worker of this node has written lines."""
        member = self._node.members.get(event.worker)
        if member is None:
            return []
        return self.deliver(state.LogLines(member.label or "worker", member.pid, self._node.settings.node_name,
                                           event.stream, event.lines, member.serving))

    def deliver(self, lines: state.LogLines) -> list[Any]:
        """Bring lines nearer to their driver."""
        for driver in self._node.members.values():
            if driver.kind == "driver" and driver.job == lines.job:
                return [Send(driver.route, lines)]
        home = "node-" + lines.job.rpartition("-")[0]
        return self._node.to_peer(home, lines) if home != self._node.node else []

    # --- drivers that leave --------------------------------------------------------------------------------------

    def flush_for(self, driver: str, now_ns: int, *, stop_cluster: bool) -> list[Any]:
        """A driver of this node leaves."""
        node = self._node
        if driver in self._leaving:
            return []
        self._leaving[driver] = _Leaving({node.node, *node.peers}, stop_cluster, now_ns + config.LOGS_FLUSH_NS)
        question = state.FlushLines(driver, node.node)
        asked = [effect for peer in node.peers for effect in node.to_peer(peer, question)]
        return [ReadLogs(driver, node.node), *asked]

    def asked(self, event: Received, now_ns: int) -> list[Any]:
        """A driver of another node leaves."""
        return [ReadLogs(event.message.driver, event.message.node)]

    def read(self, event: LogsRead, now_ns: int) -> list[Any]:
        """What was written here has been sent."""
        if event.node == self._node.node:
            return self._heard(event.driver, event.node, now_ns)
        return self._node.to_peer(event.node, state.LinesFlushed(event.driver, self._node.node))

    def flushed(self, event: Received, now_ns: int) -> list[Any]:
        """Another node has sent what was written there."""
        return self._heard(event.message.driver, event.message.node, now_ns)

    def _heard(self, driver: str, node: str, now_ns: int) -> list[Any]:
        leaving = self._leaving.get(driver)
        if leaving is None:
            return []
        leaving.nodes.discard(node)
        return [] if leaving.nodes else self._let_go(driver, now_ns)

    def _let_go(self, driver: str, now_ns: int) -> list[Any]:
        leaving = self._leaving.pop(driver)
        return self._node.sessions.driver_left(driver, now_ns, stop_cluster=leaving.stop_cluster)
