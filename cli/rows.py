"""What a node tells about the cluster: the rows of each topic of ``DescribeCluster``.

*Pure.* Used by ``status`` and ``list``.

1. The fields are the keys of the JSON rows. Ids are hexadecimal, sizes are bytes. Amounts of resources travel in
   1/10 000 units; ``counted`` turns them into what users count in, before anything is shown.
2. A key that is missing has its default, and keys that are not known here are kept for ``--json``.

Topic ``timeline`` has no struct: its rows are events of the Chrome trace format, written to a file as they are.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray.errors import MeshraySystemError
from meshray.resources import from_units

_AMOUNTS = frozenset({"resources", "resources_total", "resources_available"})


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
    object_store_spilled: int = 0
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
    """A copy of an object in a node's store. ``state``: in memory, spilled (on disk only), or replica."""

    object: str = ""
    node: str = ""
    size_bytes: int = 0
    state: str = ""
    owner: str = ""


class ShardRow(msgspec.Struct, frozen=True, kw_only=True):
    """One member of a shard of the control store. ``members`` are the names of its chain in ``epoch``, head first;
    ``rows`` counts them by table; ``failover`` says what the loss of a server or of a node does. ``replicas``: how many
    members the chain should have; ``lost``: servers whose node is missing; ``acceptors`` hold the register."""

    shard: str = ""
    role: str = ""
    epoch: int = 0
    members: list[str] = []
    rows: dict[str, int] = {}
    used_bytes: int = 0
    file_bytes: int = 0
    durability: str = ""
    failover: str = ""
    replicas: int = 1
    lost: list[str] = []
    acceptors: list[str] = []


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to the cluster. ``wall_ns``: nanoseconds since 1970; ``severity``: info, warning,
    error; ``source``: the node or process that it happened to."""

    wall_ns: int = 0
    severity: str = ""
    kind: str = ""
    source: str = ""
    message: str = ""


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
    "events": EventRow,
}


def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with amounts of resources as users count them."""
    return [{key: from_units(value) if value and key in _AMOUNTS else value for key, value in row.items()}
            for row in rows]


def typed(topic: str, rows: list[dict[str, Any]]) -> list[Any]:
    """Return JSON rows as the structs of their topic; a null counts as missing."""
    kind = TOPICS[topic]
    present = [{key: value for key, value in row.items() if value is not None} for row in rows]
    try:
        return msgspec.convert(present, list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise MeshraySystemError(f"the node describes its {topic} in another way ({error}): it runs another version of "
                                 "meshray. --json shows them as they are") from error
