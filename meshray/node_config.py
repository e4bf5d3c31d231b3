"""How a node is told what it is: the one argument of the node's boot process.

*Pure.* Written by ``session.connect`` and ``meshray up``, read by ``processes.boot``.

Layout of a run directory (0700), one per node::

    <root>/<cluster>/<node>/node.sock shard-0-0.sock scheduler-0.sock      one socket per process
                            node.json                                      pid, endpoint, state (NodeFile)
                            logs/<process>.out .err
                            gcs/shard-0-0/                                 LMDB environment
    <root>/<cluster>/cluster.json                                          addresses of the whole cluster (ClusterFile)
    <root>/current                                                         name of the cluster that ``auto`` means

``<root>`` is ``MESHRAY_RUN_ROOT``, else ``$XDG_RUNTIME_DIR/meshray``, else ``/tmp/meshray-<uid>``. The arena is a file
in shared memory named ``meshray-<uid>-<cluster>-<node>``.
"""

from __future__ import annotations

import msgspec

from meshray.messages.node import Shard


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Everything a node's processes need to know at birth. Resources in units (floats), sizes in bytes."""

    cluster: str
    node_name: str
    run_dir: str
    resources: dict[str, float]
    object_store_bytes: int
    arena_path: str
    host_shards: dict[str, str] = {}
    """Shard replicas that run here: name -> endpoint."""
    host_schedulers: dict[str, str] = {}
    """Global scheduler replicas that run here: name -> endpoint."""
    shards: list[Shard] = []
    """All shards of the cluster, chains head first."""
    schedulers: dict[str, str] = {}
    """All global scheduler replicas of the cluster: name -> endpoint."""
    durability: str = "relaxed"
    """``fsync``: each turn is synced before it is answered; ``relaxed``: the operating system writes when it likes."""
    embedded_pid: int = 0
    """The driver whose life this cluster shares; 0 for a cluster of its own."""
    prestart_workers: int = 0
    preload: list[str] = []
    """Modules that the zygote imports so that workers share them (numpy, when the driver uses it)."""
    environment: dict[str, str] = {}
    labels: dict[str, str] = {}


class NodeFile(msgspec.Struct, kw_only=True):
    """``node.json``: how others find a running node."""

    cluster: str
    node_name: str
    node: str
    pid: int
    endpoint: str
    arena_path: str
    pids: dict[str, int]


class ClusterFile(msgspec.Struct, kw_only=True):
    """``cluster.json``: what ``up`` started. ``nodes`` maps node names to run directories."""

    cluster: str
    address: str
    nodes: dict[str, str]
    configuration: str
