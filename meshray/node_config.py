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

from meshray.cluster_schema import Retention
from meshray.messages.node import Shard


class Network(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How a node is reached from other machines, and whom it lets in. Two ports: one for control, one for bulk data."""

    bind: str = "127.0.0.1"
    """Host to listen on: an address of this machine, ``0.0.0.0`` or ``::`` for all."""
    advertise: str = ""
    """Host that others are told to connect to; empty: the same as ``bind``."""
    control_port: int = 0
    """Port of the control plane; 0 is any free one (``node.json`` has it then)."""
    bulk_port: int = 0
    """Port of the bulk plane; 0 is any free one."""
    key_file: str
    """This node's key pair (``transport.curve.KeyPair``), mode 0600."""
    allowed: dict[str, str] = {}
    """Whom the node lets in from the start: name -> public key in hexadecimal. Later changes come by the table of
    keys."""
    seeds: dict[str, str] = {}
    """Nodes that host shards and global schedulers: node name -> ``tcp://host:port#key``. Their ports must be set."""
    bulk_encryption: bool = True
    """False only on a network whose every machine is trusted: chunks then travel readable, but still verified."""
    connect_only: bool = False
    """Whether others cannot connect to this node (a driver behind a firewall): it opens all connections itself."""


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Everything a node's processes need to know at birth. Resources in units (floats), sizes in bytes."""

    cluster: str
    node_name: str
    run_dir: str
    resources: dict[str, float]
    object_store_bytes: int
    arena_path: str
    host_shards: dict[str, str] = {}
    """Servers of the control store that run here: name (``shard-<shard>-<number>``) -> endpoint."""
    host_masters: dict[str, str] = {}
    """Masters of the control store that run here: name -> endpoint."""
    host_schedulers: dict[str, str] = {}
    """Global scheduler replicas that run here: name -> endpoint."""
    shards: list[Shard] = []
    """All shards of the cluster, with their first chains, head first."""
    masters: dict[str, str] = {}
    """All masters of the control store: name -> endpoint, in their order. None: each shard has one replica for good."""
    replicas: int = 1
    """How long the chain of a shard should be."""
    acceptors: list[str] = []
    """The servers that hold the configuration register of a new cluster."""
    places: dict[str, tuple[str, str]] = {}
    """Who ran what when the cluster began: service -> (name of the node, endpoint). What became of it says the table
    of places; a node changes its own ``host_*``, ``masters`` and ``schedulers`` accordingly (``processes.placement``).
    Empty: services never move."""
    replace_after_s: float = 30.0
    """How long a node is waited for before others get what it carried."""
    failover: str = ""
    """What ``status`` says of it (``processes.control_store``)."""
    founding: bool = True
    """Whether the control store is new, so that a server with an empty disk has forgotten nothing."""
    state_dir: str = ""
    """Where the control store's disks lie; empty: in the run directory."""
    life: str = ""
    """Which start of the cluster this is: rows of another belong to the past."""
    revives: bool = False
    """Whether this node puts right what the tables say of an earlier start (``processes.revival``)."""
    schedulers: dict[str, str] = {}
    """All global scheduler replicas of the cluster: name -> endpoint."""
    durability: str = "relaxed"
    """``fsync``: each turn is synced before it is answered; ``relaxed``: the operating system writes when it likes."""
    retention: Retention = Retention()
    """How much history the control store keeps (``processes.retention``)."""
    embedded_pid: int = 0
    """The driver whose life this cluster shares; 0 for a cluster of its own."""
    prestart_workers: int = 0
    preload: list[str] = []
    """Modules that the zygote imports so that workers share them (numpy, when the driver uses it)."""
    environment: dict[str, str] = {}
    labels: dict[str, str] = {}
    spill_directory: str = ""
    """Where objects go that have no room in memory; empty: ``spill`` in the run directory."""
    spill_max_bytes: int | None = None
    """Most bytes that may lie there: 0 spills nothing, None as much as the disk takes."""
    network: Network | None = None
    """None: a cluster of one machine, which listens on Unix sockets only."""
    locality: bool = True
    """Whether tasks go where their inputs are; off only to compare."""

    @property
    def replicated(self) -> list[str]:
        """Services of this node that have replicas, so that the cluster goes on without them."""
        store = [*self.host_shards, *self.host_masters] if self.masters else []
        return store + (list(self.host_schedulers) if len(self.schedulers) > 1 else [])


class NodeFile(msgspec.Struct, kw_only=True):
    """``node.json``: how others find a running node."""

    cluster: str
    node_name: str
    node: str
    pid: int
    endpoint: str
    arena_path: str
    pids: dict[str, int]
    control: str = ""
    """``tcp://host:port#key`` of a node with a network."""


class ClusterFile(msgspec.Struct, kw_only=True):
    """``cluster.json``: what ``up`` started. ``nodes`` maps node names to run directories."""

    cluster: str
    address: str
    nodes: dict[str, str]
    configuration: str
    founders: list[str] = []
    """The nodes that the cluster began with, the head first: they tell where the control store lies."""
    life: str = ""
    """Which start of the cluster this is."""
