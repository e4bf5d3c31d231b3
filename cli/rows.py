"""What a node tells about the cluster: the rows of each topic of ``DescribeCluster``.

*Pure.* Used by ``status`` and ``list``.

1. The fields are the keys of the JSON rows. Ids are hexadecimal, amounts of resources in units, sizes in bytes.
2. A key that is missing has its default, so that an older node can still be shown.

Topic ``timeline`` has no struct: its rows are events of the Chrome trace format, written to a file as they are.
"""

from __future__ import annotations

from typing import Any

import msgspec


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A node. ``state``: alive or dead. ``node`` is its process name, ``name`` the one in the cluster file."""

    node: str = ""
    name: str = ""
    state: str = ""
    pid: int = 0
    workers: int = 0
    resources_total: dict[str, float] = {}
    resources_available: dict[str, float] = {}
    object_store_bytes: int = 0
    object_store_used: int = 0
    endpoint: str = ""


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process. ``state``: idle, starting, leased, actor, blocked; ``label``: what it runs."""

    worker: str = ""
    node: str = ""
    pid: int = 0
    state: str = ""
    label: str = ""
    job: str = ""


class ActorRow(msgspec.Struct, frozen=True, kw_only=True):
    """An actor. ``state``: pending, alive, restarting, dead; ``death``: why, when it is dead."""

    actor: str = ""
    class_name: str = ""
    name: str = ""
    namespace: str = ""
    state: str = ""
    node: str = ""
    pid: int = 0
    incarnation: int = 0
    restarts_left: int = 0
    death: str = ""


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A task in flight or of late. ``state``: pending, running, finished, failed."""

    task: str = ""
    name: str = ""
    state: str = ""
    job: str = ""
    worker: str = ""
    node: str = ""
    duration_ms: float | None = None


class ObjectRow(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of an object in a node's store."""

    object: str = ""
    node: str = ""
    size_bytes: int = 0
    owner: str = ""


class ShardRow(msgspec.Struct, frozen=True, kw_only=True):
    """A shard of the control store; ``members`` are its chain, head first."""

    shard: str = ""
    epoch: int = 0
    members: list[str] = []
    rows: int = 0
    bytes: int = 0
    durability: str = ""


class DemandRow(msgspec.Struct, frozen=True, kw_only=True):
    """Work that waits for resources. ``state``: pending, or infeasible, when no node can ever run it (``reason``)."""

    session: str = ""
    label: str = ""
    resources: dict[str, float] = {}
    count: int = 0
    state: str = ""
    reason: str = ""


TOPICS: dict[str, type[msgspec.Struct]] = {
    "nodes": NodeRow,
    "workers": WorkerRow,
    "actors": ActorRow,
    "tasks": TaskRow,
    "objects": ObjectRow,
    "shards": ShardRow,
    "demands": DemandRow,
}


def typed(topic: str, rows: list[dict[str, Any]]) -> list[Any]:
    """Return JSON rows as the structs of their topic; a null counts as missing."""
    kind = TOPICS[topic]
    present = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return msgspec.convert(present, list[kind])  # type: ignore[valid-type]
