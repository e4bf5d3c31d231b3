"""A global scheduler replica: hears every node's load, says where spilled work should run.

*Pure.* Runs in the global scheduler process; any number of replicas, which do not know of each other.

1. Nothing here is needed to go on: a replica that starts anew knows the cluster after one heartbeat of each node.
2. Between two heartbeats of a node, what was placed there counts as used.
3. A node unheard of for ``SUSPICION_NS`` is given up, and everybody told, also the node itself should it come back. A
   replica that did not run for a while (frozen, or starved of CPU) suspects nobody for what it did not hear meanwhile.
4. An older heartbeat never replaces a newer one of the same incarnation.
5. Nodes learn from a replica who else is there, not how loaded: each heartbeat says by a digest whom its node knows,
   and only a node that knows other members than the replica is told, a page at a time. What a node costs does not
   grow with the cluster, but for one line per member.

Source: OSDI'18 s4.2.2 (global schedulers: lowest estimated waiting time; replicas share nothing but the GCS).
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.node import Ping, Pong
from meshray.messages.sched import ClusterView, DemandPlaced, Heartbeat, NodeGone, NodeLoad, PlaceDemand
from meshray.sched import members, policy, reasons
from meshray.sched.policy import Placement
from meshray.sched.roster import Roster

VIEW_PAGE_MAX = 64
"""Members told to a node in one message: what a node takes in at one heartbeat delays its tasks by less than 1 ms."""

VIEW_AGAIN_NS = 1 * config.SECOND_NS
"""A node that was told everything and still knows others than the replica is told again after this."""

CHECK_NS = config.HEARTBEAT_NS
"""The replica looks at its clock at least this often."""

STALL_NS = 5 * CHECK_NS
"""A replica that did not look at its clock for this long was not running: silence meanwhile is its own fault."""

YOUNG_NS = config.HEARTBEAT_REST_NS + config.HEARTBEAT_NS
"""A replica that runs for less than this may not have heard of every node: it calls nothing impossible."""

GONE_NS = 10 * config.SUSPICION_NS
"""How long a node that was given up stays known as gone."""


class _Node(msgspec.Struct, eq=False):
    """One node as last heard. ``line`` is its part of the digest; ``told`` says how much of the history of members it
    was sent, ``told_ns`` when last."""

    load: NodeLoad
    line: int
    route: bytes
    sequence: int
    heard_ns: int
    told: int = 0
    told_ns: int = 0


class GlobalScheduler:
    """The machine of one replica."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: dict[str, _Node] = {}
        """Known nodes, the one heard least lately first."""
        self._roster = Roster()
        self._gone: dict[str, int] = {}
        self._history: list[str] = []
        """Who joined, changed or went, in order; ``_history_base`` entries before these were dropped."""
        self._history_base = 0
        self._digest = 0
        self._now_ns = 0
        self._checked_ns = 0
        self._born_ns = 0
        self._counters = {"heartbeats": 0, "placements": 0, "leases_placed": 0, "infeasible": 0, "nodes_given_up": 0,
                          "views": 0, "stalls": 0}

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects."""
        self._now_ns = now_ns
        self._born_ns = self._born_ns or now_ns
        if now_ns - self._checked_ns >= STALL_NS:
            self._excuse()
        match event:
            case Received(message=Heartbeat() as message):
                effects = self._heard(event.route, message)
            case Received(message=PlaceDemand() as message):
                effects = [Send(event.route, self._place(message))]
            case Received(message=Ping(cookie=cookie)):
                effects = [Send(event.route, Pong(cookie))]
            case _:
                effects = []
        if type(event) is Tick or now_ns - self._checked_ns >= CHECK_NS:
            self._checked_ns = now_ns
            effects += self._give_up()
        return effects

    def deadline_ns(self) -> int | None:
        """When the replica looks at its clock next; None while nobody is known."""
        return self._checked_ns + CHECK_NS if self._nodes else None

    def _excuse(self) -> None:
        """This process did not run: nobody is late by that."""
        self._checked_ns = self._now_ns
        self._counters["stalls"] += bool(self._nodes)
        for node in self._nodes.values():
            node.heard_ns = self._now_ns

    # --- heartbeats ----------------------------------------------------------------------------------------------

    def _heard(self, route: bytes, message: Heartbeat) -> list[Any]:
        self._counters["heartbeats"] += 1
        load = message.load
        node = self._nodes.pop(load.node, None)
        if node is not None and (load.incarnation, message.sequence) <= (node.load.incarnation, node.sequence):
            self._nodes[load.node] = node
            return []
        if node is not None and load == node.load:
            node.route, node.sequence, node.heard_ns = route, message.sequence, self._now_ns
            self._nodes[load.node] = node
            self._roster.confirm(load)
            return self._inform(node, message)
        if node is None or not members.same(node.load, load):
            line, told = members.line(load), self._history_base
            if node is not None:
                self._digest ^= node.line
                told = node.told
            self._digest ^= line
            self._log(load.node)
            node = _Node(load, line, route, message.sequence, self._now_ns, told)
        else:
            node.load, node.route, node.sequence, node.heard_ns = load, route, message.sequence, self._now_ns
        self._nodes[load.node] = node
        self._roster.update(load)
        if self._gone and self._gone.pop(load.node, None) is not None:
            return [Send(route, NodeGone(load.node))]
        return self._inform(node, message)

    def _inform(self, node: _Node, message: Heartbeat) -> list[Any]:
        if message.members != self._digest:
            return self._tell(node)
        node.told = self._history_base + len(self._history)
        return []

    def _log(self, name: str) -> None:
        self._history.append(name)
        if len(self._history) > 2 * (len(self._nodes) + len(self._gone)) + VIEW_PAGE_MAX:
            self._history_base += len(self._history)
            self._history = list(dict.fromkeys([*self._nodes, *self._gone, name]))

    def _tell(self, node: _Node) -> list[Any]:
        """Send a node the next page of what it has not been told, once it had time to take in the last one."""
        newest = self._history_base + len(self._history)
        if node.told >= newest:
            if self._now_ns - node.told_ns < VIEW_AGAIN_NS:
                return []
            node.told = self._history_base
        start = max(0, node.told - self._history_base)
        names = dict.fromkeys(self._history[start:start + VIEW_PAGE_MAX])
        node.told = self._history_base + min(len(self._history), start + VIEW_PAGE_MAX)
        node.told_ns = self._now_ns
        self._counters["views"] += 1
        loads = [self._nodes[name].load for name in names if name in self._nodes]
        return [Send(node.route, ClusterView(loads, [name for name in names if name in self._gone]))]

    def _give_up(self) -> list[Any]:
        late = []
        for name, node in self._nodes.items():
            if self._now_ns - node.heard_ns < config.SUSPICION_NS:
                break
            late.append(name)
        for name in late:
            self._digest ^= self._nodes.pop(name).line
            self._roster.remove(name)
            self._gone[name] = self._now_ns
            self._log(name)
            self._counters["nodes_given_up"] += 1
        while self._gone and self._now_ns - next(iter(self._gone.values())) >= GONE_NS:
            del self._gone[next(iter(self._gone))]
        return [Send(node.route, NodeGone(name)) for name in late for node in self._nodes.values()]

    # --- placement -----------------------------------------------------------------------------------------------

    def _place(self, message: PlaceDemand) -> DemandPlaced:
        placement = self._choose(message)
        if not placement.feasible and self._now_ns - self._born_ns < YOUNG_NS:
            placement = Placement([])
        self._roster.booked(placement.places)
        self._counters["placements"] += 1
        self._counters["leases_placed"] += sum(count for _, _, count in placement.places)
        self._counters["infeasible"] += not placement.feasible
        return DemandPlaced(message.request, placement.places, placement.feasible, placement.reason)

    def _choose(self, message: PlaceDemand) -> Placement:
        need, strategy, roster = message.resources, message.strategy, self._roster
        if strategy.kind == "node":
            named = roster.named(strategy.node)
            reason = reasons.unsuitable_node(need, strategy, named)
            if named is not None and not reason:
                return policy.put(need, message.count, named)
            if not strategy.soft:
                return Placement([], False, reason)
        kinds = roster.suitable(need, strategy)
        if not kinds:
            return Placement([], False, reasons.unsuitable(need, strategy, roster.kinds()))
        asker, spread = roster.nodes.get(message.node), strategy.kind == "spread"
        asker_able = asker is not None and policy.suits(asker.total, asker.labels, need, strategy)
        able = roster.sample(need, message.count, kinds, exclude=message.exclude or (), crowd=not asker_able,
                             input_bytes=message.input_bytes, spread=spread)
        return policy.place(need, message.count, able, asker=message.node, spread=spread, mean_ns=message.mean_ns,
                            backlog=message.backlog, input_bytes=message.input_bytes, asker_able=asker_able)

    def check(self) -> None:
        """Assert that no node is both known and gone, and that the digest is that of the known nodes."""
        assert not self._nodes.keys() & self._gone.keys()
        assert self._nodes.keys() == self._roster.nodes.keys()
        assert self._digest == members.digest(node.load for node in self._nodes.values())
        self._roster.check()

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        return {**self._counters, "nodes": len(self._nodes), "nodes_gone": len(self._gone)}
