"""A replica's nodes, kept so that a placement looks at a few of them, however many there are.

*Pure.* Runs in the global scheduler process, inside ``GlobalScheduler``.

1. Nodes are grouped by kind: what they have in all and the labels they carry. A cluster has few kinds, and whether one
   suits a demand is decided once per kind.
2. Within a kind, the nodes that have room are known. A placement looks at a bounded sample of them, another one each
   time, and at the nodes that hold most of the input bytes.
3. The cost of a heartbeat and of a placement does not depend on the number of nodes.

Source: the power of choices (Mitzenmacher 2001; Sparrow, SOSP'13): a small sample balances nearly as well as a look at
all. Kinds are taken in turns instead of at random, because machines draw nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from meshray.messages.node import Strategy
from meshray.messages.sched import NodeLoad
from meshray.sched import policy
from meshray.sched.policy import Candidate, Resources

SAMPLE = 16
"""Nodes of a kind that a placement looks at, beside two for each lease."""

HOLDERS_MAX = 4
"""Nodes that are looked at because they hold input bytes."""

VERDICTS_MAX = 1000
"""Demands for which the suitable kinds are remembered."""


class Kind(msgspec.Struct, eq=False):
    """Nodes that are alike to the scheduler but for their load. ``free`` are the members that have room."""

    total: Resources
    labels: dict[str, str]
    members: dict[str, Candidate] = {}
    free: dict[str, Candidate] = {}

    def sort(self, node: Candidate) -> None:
        """Note whether a node has room: a CPU that is not in use, or, where there are none, anything."""
        room = node.available.get("CPU", 0) if "CPU" in self.total else max(node.available.values(), default=0)
        if room > 0:
            self.free[node.node] = node
        else:
            self.free.pop(node.node, None)


class Roster:
    """All nodes of which a replica has heard lately."""

    def __init__(self) -> None:
        self.nodes: dict[str, Candidate] = {}
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._kind_of: dict[str, Kind] = {}
        self._names: dict[str, str] = {}
        self._turns = 0
        self._verdicts: dict[tuple[object, ...], list[Kind]] = {}

    def update(self, load: NodeLoad) -> None:
        """Take a node's own words, which replace what was booked there since the last ones."""
        node = self.nodes.get(load.node)
        if node is not None and (node.total != load.total or node.labels != load.labels):
            self.remove(load.node)
            node = None
        if node is None:
            node = self._add(load)
        node.available = dict(load.available)
        node.queued = load.queued
        node.mean_task_ns = load.mean_task_ns
        node.bytes_per_s = load.bytes_per_s
        node.booked = False
        self._kind_of[load.node].sort(node)

    def confirm(self, load: NodeLoad) -> None:
        """Take the same words of a node again: nothing to do unless something was booked there since the last time."""
        if self.nodes[load.node].booked:
            self.update(load)

    def _add(self, load: NodeLoad) -> Candidate:
        key = (*sorted(load.total.items()), *sorted(load.labels.items()))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(load.total, load.labels, {}, {})
            self._verdicts.clear()
        node = Candidate(load.node, load.name, load.endpoint, load.total, {}, labels=load.labels)
        self.nodes[load.node] = kind.members[load.node] = node
        self._kind_of[load.node] = kind
        self._names[load.name] = load.node
        return node

    def remove(self, name: str) -> None:
        """Forget a node."""
        node = self.nodes.pop(name, None)
        if node is None:
            return
        kind = self._kind_of.pop(name)
        del kind.members[name]
        kind.free.pop(name, None)
        if self._names.get(node.name) == name:
            del self._names[node.name]
        if not kind.members:
            self._kinds = {key: each for key, each in self._kinds.items() if each is not kind}
            self._verdicts.clear()

    def named(self, node: str) -> Candidate | None:
        """Return the node with this id or name."""
        return self.nodes.get(node) or self.nodes.get(self._names.get(node, ""))

    def kinds(self) -> list[tuple[Resources, dict[str, str]]]:
        """Return what kinds of nodes there are: (totals, labels)."""
        return [(kind.total, kind.labels) for kind in self._kinds.values()]

    def suitable(self, need: Mapping[str, int], strategy: Strategy) -> list[Kind]:
        """Return the kinds of which every member could run ``need``."""
        key = (*sorted(need.items()), *strategy.labels)
        found = self._verdicts.get(key)
        if found is None:
            if len(self._verdicts) >= VERDICTS_MAX:
                self._verdicts.clear()
            found = self._verdicts[key] = [kind for kind in self._kinds.values()
                                           if policy.suits(kind.total, kind.labels, need, strategy)]
        return found

    def sample(self, need: Mapping[str, int], count: int, kinds: Iterable[Kind], *, exclude: Iterable[str] = (),
               input_bytes: Mapping[str, int] | None = None, spread: bool = False,
               crowd: bool = False) -> list[Candidate]:
        """Return some nodes to choose from: holders of the inputs, and of each kind some that have room, or, if nobody
        has (``crowd``), some to queue at. Nodes in ``exclude`` are taken only if there is nobody else."""
        chosen: dict[str, Candidate] = {}
        shunned = set(exclude)
        kinds = list(kinds)
        for holder in _largest(input_bytes):
            if holder in self.nodes and self._kind_of[holder] in kinds:
                chosen[holder] = self.nodes[holder]
        for kind in kinds:
            # What needs no CPU may find room where no CPU is free, and what is spread goes to busy nodes as well.
            if "CPU" in need and not spread:
                _turn(kind.free, SAMPLE + 2 * count, chosen)
            else:
                _turn(kind.members, SAMPLE + 2 * count, chosen)
        able = [node for node in chosen.values() if node.node not in shunned]
        if crowd and not any(policy.covers(node.available, need) for node in able):
            for kind in kinds:
                _turn(kind.members, SAMPLE, chosen)
            able = [node for node in chosen.values() if node.node not in shunned]
        return able or list(chosen.values())

    def booked(self, places: Iterable[tuple[str, str, int]]) -> None:
        """Something was booked on these nodes: those that are full leave the list of those with room, and others have
        their turn."""
        for name, _, _ in places:
            kind = self._kind_of.get(name)
            if kind is not None:
                self._turns += 1
                node = self.nodes[name]
                node.turn, node.booked = self._turns, True
                kind.sort(node)

    def check(self) -> None:
        """Assert that the indices agree."""
        assert self._kind_of.keys() == self.nodes.keys()
        assert sum(len(kind.members) for kind in self._kinds.values()) == len(self.nodes)
        for kind in self._kinds.values():
            assert kind.members, "a kind without members"
            assert kind.free.keys() <= kind.members.keys()


def _largest(input_bytes: Mapping[str, int] | None) -> list[str]:
    if not input_bytes:
        return []
    return sorted(input_bytes, key=lambda node: (-input_bytes[node], node))[:HOLDERS_MAX]


def _turn(nodes: dict[str, Candidate], size: int, chosen: dict[str, Candidate]) -> None:
    """Add the first ``size`` nodes to ``chosen``; they go to the end of the line."""
    if len(nodes) <= size:
        chosen.update(nodes)
        return
    for _ in range(size):
        name = next(iter(nodes))
        node = nodes.pop(name)
        nodes[name] = node
        chosen[name] = node
