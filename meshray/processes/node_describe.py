"""Answers to ``status`` and ``list``: gathers rows from the node's parts, its sessions and, for tools, its peers.

*Pure.* Runs in the node process.

1. An answer is given by a deadline, with the names of those that had not answered by then.
2. A node that is asked by another node answers for itself and its sessions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered
from meshray.machine import Received, Send
from meshray.messages.chain import AskRegister
from meshray.messages.gcs import DescribeShard, ShardDescribed
from meshray.messages.state import DescribeCluster, DescribeSession, Description
from meshray.resources import UNITS_PER_ONE
from meshray.transport.sockets import name_of

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine

_PATIENCE_NS = 2 * config.SECOND_NS
_PAGE = 1_000
"""Events that are looked through at a time."""
_SESSION_TOPICS = frozenset({"tasks", "objects", "timeline"})


class Gathering(msgspec.Struct):
    """One question on its way."""

    route: bytes
    cookie: int
    deadline_ns: int
    limit: int
    rows: dict[str, list[dict[str, Any]]]
    waiting: set[str]


class Describer:
    """Open questions of one node."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self._open: dict[int, Gathering] = {}
        self._cookie = 0

    def describe(self, event: Received, now_ns: int) -> list[Any]:
        """A tool or another node asks."""
        request: DescribeCluster = event.message
        self._cookie += 1
        mine = self._cookie
        rows: dict[str, list[dict[str, Any]]] = {topic: [] for topic in request.topics}
        gathering = Gathering(event.route, request.cookie, now_ns + _PATIENCE_NS, request.limit, rows, set())
        self._open[mine] = gathering
        effects: list[Any] = []
        self._own_rows(request, rows)
        asked = _SESSION_TOPICS.intersection(request.topics)
        if asked:
            question = DescribeSession(mine, sorted(asked), request.limit)
            for member in self._node.members.values():
                gathering.waiting.add(member.name)
                effects.append(Send(member.route, question))
        if not request.forwarded:
            for peer in self._node.peers:
                gathering.waiting.add(peer)
                effects += self._node.to_peer(peer, DescribeCluster(mine, request.topics, request.limit, True))
            effects += self._shared_rows(mine, request, gathering, now_ns)
        return effects + self._finish_if_done(mine)

    def _own_rows(self, request: DescribeCluster, rows: dict[str, list[dict[str, Any]]]) -> None:
        node = self._node
        described = node.scheduler.describe()
        settings = node.settings
        if "nodes" in rows:
            used_bytes = node.store.statistics().get("sealed_bytes", 0)
            available = {row["name"]: row["available"] for row in described["resources"]}
            if "object_store_memory" in available:
                available["object_store_memory"] -= used_bytes * UNITS_PER_ONE
            rows["nodes"].append({
                "node": node.node, "name": settings.node_name, "state": "alive", "endpoint": node.endpoint,
                "pid": node.pid, "labels": settings.labels, "resources_total": node.total,
                "resources_available": available, "workers": len(described["workers"]),
                "object_store_bytes": settings.object_store_bytes, "object_store_used": used_bytes,
                "object_store_spilled": node.store.statistics().get("spilled_bytes", 0),
                "statistics": node.statistics()})
        if "workers" in rows:
            rows["workers"] += [{**row, "node": settings.node_name,
                                 "state": "blocked" if row["blocked"] else row["state"]}
                                for row in described["workers"]]
            rows["workers"] += [{"node": settings.node_name, "worker": member.name, "pid": member.pid,
                                 "state": "driver", "label": "", "job": member.job}
                                for member in node.members.values() if member.kind == "driver"]
        if "demands" in rows:
            rows["demands"] += [{**row, "session": row["owner"], "count": row["missing"], "reason": row["infeasible"],
                                 "state": "infeasible" if row["infeasible"] else "pending"}
                                for row in described["demands"] if row["missing"] > 0]
        if "keys" in rows and not request.forwarded:
            rows["keys"] += node.keys.describe()
        if "objects" in rows:
            rows["objects"] += [{**row, "node": settings.node_name}
                                for row in node.store.directory.describe(request.limit)]

    def _shared_rows(self, mine: int, request: DescribeCluster, gathering: Gathering, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        if "actors" in gathering.rows:
            gathering.waiting.add("actor table")

            def actors(answer: Answered, later_ns: int) -> list[Any]:
                return self._actor_rows(mine, answer)

            effects += self._node.scan(tables.ACTOR, b"", request.limit, now_ns, actors)
        if "events" in gathering.rows:
            gathering.waiting.add("event table")
            effects += self._event_page(mine, request.limit, b"", now_ns)
        if "shards" in gathering.rows:
            node = self._node
            present = {**node.settings.host_shards, **dict(
                member for shard in (*node.settings.shards, *node.gcs.shards) for member in shard.members)}
            for name, endpoint in (node.placement.servers() or present).items():
                gathering.waiting.add(name)
                effects += node.to_named(name, endpoint, AskRegister())
                effects += node.to_named(name, endpoint, DescribeShard(mine))
        return effects

    def _actor_rows(self, mine: int, answer: Answered) -> list[Any]:
        gathering = self._open.get(mine)
        if gathering is None:
            return []
        for found in answer.results:
            if found.value is None:
                continue
            row = tables.decode(found.value, tables.ActorRow)
            death = row.death
            gathering.rows["actors"].append({
                "actor": row.spec.actor.hex(), "class_name": row.spec.class_name, "name": row.spec.name,
                "namespace": row.spec.namespace, "state": row.state, "node": self._node.name_of_node(row.node),
                "pid": row.pid,
                "incarnation": row.incarnation, "restarts_left":
                    -1 if row.spec.max_restarts < 0 else max(0, row.spec.max_restarts - row.restarts),
                "death": "" if death is None else death.reason or f"exit {death.code} signal {death.signal}"})
        return self._answered(mine, "actor table")

    def _event_page(self, mine: int, limit: int, after: bytes, now_ns: int) -> list[Any]:
        """Go through the event table, oldest first, and keep the newest ``limit``."""
        def found(answer: Answered, later_ns: int) -> list[Any]:
            gathering = self._open.get(mine)
            if gathering is None:
                return []
            rows = gathering.rows["events"]
            for row in answer.results:
                event = tables.decode(row.value or b"", tables.EventRow)
                rows.append({"key": row.key.decode(errors="replace"), **msgspec.structs.asdict(event)})
            del rows[:-limit]
            if answer.error is None and answer.more and answer.results:
                return self._event_page(mine, limit, answer.results[-1].key, later_ns)
            return self._answered(mine, "event table")

        return self._node.scan(tables.EVENT, b"", _PAGE, now_ns, found, after=after)

    def shard_described(self, event: Received, now_ns: int) -> list[Any]:
        """A shard answers."""
        message: ShardDescribed = event.message
        gathering = self._open.get(message.cookie)
        if gathering is None:
            return []
        row = msgspec.to_builtins(msgspec.structs.asdict(message))
        del row["cookie"]
        row["shard"] = message.name
        row["epoch"] = message.shard.epoch
        row["members"] = [name for name, _ in message.shard.members]
        row |= self._node.placement.describe(message.shard)
        gathering.rows["shards"].append(row)
        return self._answered(message.cookie, name_of(event.route))

    def described(self, event: Received, now_ns: int) -> list[Any]:
        """A session or peer answers."""
        message: Description = event.message
        gathering = self._open.get(message.cookie)
        if gathering is None:
            return []
        for topic, rows in msgspec.json.decode(message.rows).items():
            if topic in gathering.rows:
                known = gathering.rows[topic]
                if topic == "objects":
                    seen = {row["object"] for row in known}
                    rows = [row for row in rows if row["object"] not in seen]
                elif topic == "tasks":
                    rows = [{**row, "node": self._node.name_of_node(row["node"])} for row in rows]
                known += rows[:max(0, gathering.limit - len(known))]
        return self._answered(message.cookie, name_of(event.route))

    def _answered(self, mine: int, who: str) -> list[Any]:
        self._open[mine].waiting.discard(who)
        return self._finish_if_done(mine)

    def _finish_if_done(self, mine: int) -> list[Any]:
        gathering = self._open[mine]
        if gathering.waiting:
            return []
        del self._open[mine]
        return [Send(gathering.route, Description(gathering.cookie, msgspec.json.encode(gathering.rows), []))]

    def tick(self, now_ns: int) -> list[Any]:
        """Answer what has waited too long with what there is."""
        effects = []
        for mine, gathering in list(self._open.items()):
            if gathering.deadline_ns <= now_ns:
                del self._open[mine]
                effects.append(Send(gathering.route, Description(
                    gathering.cookie, msgspec.json.encode(gathering.rows), sorted(gathering.waiting))))
        return effects

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return min((gathering.deadline_ns for gathering in self._open.values()), default=None) if self._open else None

    def gone(self, name: str) -> list[Any]:
        """A session or node is gone: nobody waits for it."""
        return [effect for mine in list(self._open) for effect in self._answered(mine, name)]

