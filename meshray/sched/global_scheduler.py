"""A global scheduler replica: hears every node's load, says where spilled work should run.

*Pure.* Runs in the global scheduler process; any number of replicas, which do not know of each other.

1. Nothing here is needed to go on: a replica that starts anew knows the cluster after one heartbeat of each node.
2. Between two heartbeats of a node, what was placed there counts as used.
3. A node unheard of for ``SUSPICION_NS`` is given up, and everybody told, also the node itself should it come back.
4. An older heartbeat never replaces a newer one of the same incarnation.

Source: OSDI'18 s4.2.2 (global schedulers: lowest estimated waiting time; replicas share nothing but the GCS).
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.node import Ping, Pong
from meshray.messages.sched import ClusterView, DemandPlaced, Heartbeat, NodeGone, NodeLoad, PlaceDemand
from meshray.sched import policy
from meshray.sched.policy import Candidate

VIEW_NS = 2 * config.HEARTBEAT_NS
VIEW_NODES = 10
"""The view goes out every ``VIEW_NS`` up to ``VIEW_NODES`` nodes, in larger clusters proportionally less often, so that
the traffic grows with the number of nodes and not with its square."""

GONE_NS = 10 * config.SUSPICION_NS
"""How long a node that was given up stays in the views as gone."""


class _Node(msgspec.Struct, eq=False):
    """One node as last heard: its own words, and the candidate that carries what was placed since."""

    load: NodeLoad
    route: bytes
    sequence: int
    heard_ns: int
    candidate: Candidate


class GlobalScheduler:
    """The machine of one replica."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: dict[str, _Node] = {}
        self._gone: dict[str, int] = {}
        self._now_ns = 0
        self._view_ns = 0
        self._changed = False
        self._counters = {"heartbeats": 0, "placements": 0, "leases_placed": 0, "infeasible": 0, "nodes_given_up": 0}

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects."""
        self._now_ns = now_ns
        effects: list[Any] = []
        match event:
            case Received(message=Heartbeat() as message):
                effects += self._heard(event.route, message)
            case Received(message=PlaceDemand() as message):
                effects.append(Send(event.route, self._place(message)))
            case Received(message=Ping(cookie=cookie)):
                effects.append(Send(event.route, Pong(cookie)))
            case Tick():
                effects += self._give_up()
            case _:
                pass
        if self._nodes and (self._changed or now_ns >= self._view_due_ns()):
            self._changed = False
            self._view_ns = now_ns
            view = ClusterView([node.load for node in self._nodes.values()], list(self._gone))
            effects += [Send(node.route, view) for node in self._nodes.values()]
        return effects

    def _view_due_ns(self) -> int:
        return self._view_ns + VIEW_NS * max(1, len(self._nodes) // VIEW_NODES)

    def deadline_ns(self) -> int | None:
        """When the next view or suspicion is due; None while nobody is known."""
        if not self._nodes:
            return None
        oldest_ns = min(node.heard_ns for node in self._nodes.values())
        return min(self._view_due_ns(), oldest_ns + config.SUSPICION_NS)

    def _heard(self, route: bytes, message: Heartbeat) -> list[Any]:
        self._counters["heartbeats"] += 1
        load = message.load
        known = self._nodes.get(load.node)
        if known is not None and (load.incarnation, message.sequence) <= (known.load.incarnation, known.sequence):
            return []
        if known is None or known.load.total != load.total:
            self._changed = True
        candidate = Candidate(load.node, load.name, load.endpoint, load.total, dict(load.available), load.queued,
                              load.mean_task_ns, load.bytes_per_s)
        self._nodes[load.node] = _Node(load, route, message.sequence, self._now_ns, candidate)
        if self._gone.pop(load.node, None) is not None:
            return [Send(route, NodeGone(load.node))]
        return []

    def _place(self, message: PlaceDemand) -> DemandPlaced:
        placement = policy.place(
            message.resources, message.count, [node.candidate for node in self._nodes.values()], asker=message.node,
            strategy=message.strategy, mean_ns=message.mean_ns, input_bytes=message.input_bytes,
            exclude=message.exclude or ())
        self._counters["placements"] += 1
        self._counters["leases_placed"] += sum(count for _, _, count in placement.places)
        self._counters["infeasible"] += not placement.feasible
        return DemandPlaced(message.request, placement.places, placement.feasible, placement.reason)

    def _give_up(self) -> list[Any]:
        late = [name for name, node in self._nodes.items() if self._now_ns - node.heard_ns >= config.SUSPICION_NS]
        for name in late:
            del self._nodes[name]
            self._gone[name] = self._now_ns
            self._changed = True
            self._counters["nodes_given_up"] += 1
        self._gone = {name: since for name, since in self._gone.items() if self._now_ns - since < GONE_NS}
        return [Send(node.route, NodeGone(name)) for name in late for node in self._nodes.values()]

    def check(self) -> None:
        """Assert that no node is both known and gone."""
        assert not self._nodes.keys() & self._gone.keys()

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        return {**self._counters, "nodes": len(self._nodes), "nodes_gone": len(self._gone)}
