"""The schema of cluster files: every key, its type, and what it means.

*Pure.* Read by ``cluster_config``, which checks files against it, and exported as JSON schema for editors.

A file names its machines in one of four ways: ``nodes`` (a list, the first is the head), ``head`` and ``workers``,
``hosts`` (only their names), or Ray's ``provider.head_ip`` and ``provider.worker_ips``. ``cluster_meaning`` brings all
of them into the first form, with every default of the provider written into its nodes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PHASES = ("connect", "probe", "sync", "install", "start", "join", "healthy", "stop")
"""What ``up`` (and, for the last, ``down``) does on each host, in this order."""

Amount = Annotated[float, Meta(ge=0, description="units, zero or more")]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
HostName = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_\[:][A-Za-z0-9._:%\]-]*)?$",
                               description="a name from your OpenSSH configuration, or an address")]
Port = Annotated[int, Meta(ge=0, le=65535, description="0: any free one")]
Seconds = Annotated[float, Meta(ge=1, le=86400)]
Size = Annotated[int, Meta(ge=1, description='bytes, or a string with a unit such as "512MiB"',
                           extra_json_schema={"type": ["integer", "string"]})]
SizeOrNothing = Annotated[int, Meta(ge=0, description='bytes, or a string with a unit such as "512MiB"; 0: never',
                                    extra_json_schema={"type": ["integer", "string"]})]


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where nodes come from. ``local``: each node is a set of processes of its own on this machine. ``ssh``: each node
    is a machine that OpenSSH reaches. With ``head_ip``, as in Ray's files, ``local`` means ``ssh`` too."""

    type: Literal["local", "ssh"] = "local"
    head_ip: HostName = ""
    worker_ips: list[HostName] = []
    ssh_user: str = ""
    ssh_private_key: str = ""
    """Key file of OpenSSH; empty: what your configuration and agent offer."""
    python: str = "python3"
    """Python of the hosts, 3.11 or later, of the same minor version as here."""
    state_dir: str = "~/.local/state/meshray"
    """Where a host keeps its key pair and meshray's virtual environment; not on a network file system."""
    run_dir: str = ""
    """Where a host keeps sockets, logs and tables; empty: as meshray chooses there."""
    control_port: Port = 0
    bulk_port: Port = 0
    bulk_encryption: bool = True
    timeouts: dict[str, Seconds] = {}
    """Seconds for a phase, by its name, instead of the default."""


class Auth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ray's place for what OpenSSH needs; ``provider`` has the same keys."""

    ssh_user: str = ""
    ssh_private_key: str = ""


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many rows of what has ended the control store keeps as history: the newest of each kind."""

    jobs: Annotated[int, Meta(ge=0)] = 1_000
    """Jobs that ended. A job's functions go with its end, whether or not its row stays."""
    actors: Annotated[int, Meta(ge=0)] = 10_000
    """Dead actors. Who still has a handle to one that is not kept is told no cause of its death."""
    nodes: Annotated[int, Meta(ge=0)] = 1_000
    """Nodes that are gone."""
    events: Annotated[int, Meta(ge=0)] = 5_000
    """What happened to the cluster (``meshray events``): the newest, about 200 bytes each."""


class NodeSpec(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One node. What is not given is this node's even part of the machine, or all of it where it is alone. Objects that
    have no room in memory go to ``spill_directory`` (a path on a disk of that machine), at most ``spill_max`` bytes of
    them."""

    name: Name = ""
    num_cpus: Amount | None = None
    num_gpus: Amount | None = None
    resources: dict[str, Amount] = {}
    memory: Size | None = None
    object_store_memory: Size | None = None
    spill_directory: str | None = None
    spill_max: SizeOrNothing | None = None
    labels: dict[str, str] = {}
    environment: dict[str, str] = {}
    host: HostName = ""
    ssh_user: str = ""
    ssh_private_key: str = ""
    python: str = ""
    state_dir: str = ""
    run_dir: str = ""
    bind: HostName = ""
    """Address to listen on; empty: the one that the SSH connection reached."""
    advertise: HostName = ""
    """Address that the other nodes are told; empty: the same."""
    control_port: Port | None = None
    bulk_port: Port | None = None


class ClusterConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A cluster file. The first node is the head: it also runs the control store and the global schedulers."""

    cluster_name: Name
    provider: Provider = Provider()
    nodes: Annotated[list[NodeSpec], Meta(min_length=1)] = []
    head: NodeSpec | None = None
    workers: list[NodeSpec] = []
    hosts: list[HostName] = []
    auth: Auth = Auth()
    environment: dict[str, str] = {}
    file_mounts: dict[str, str] = {}
    """Path on every host -> file or folder here, relative to the cluster file."""
    initialization_commands: list[str] = []
    """Shell commands on every host, before anything is copied there."""
    setup_commands: list[str] = []
    """Shell commands on every host, after files are there and before meshray starts."""
    head_setup_commands: list[str] = []
    worker_setup_commands: list[str] = []
    durability: Literal["relaxed", "fsync"] = "relaxed"
    """``fsync``: what was answered survives a power failure, at one sync for each turn of each replica; ``relaxed``: it
    survives the end of every process, and of a machine as long as another replica lives."""
    shards: Annotated[int, Meta(ge=1, le=64)] = 1
    """Parts of the control store, by the hash of a row's key; each is a chain of its own."""
    replicas: Annotated[int, Meta(ge=1, le=7)] = 1
    """Copies of each shard, on different nodes where there are enough: 2 or more survive the loss of one at once, and
    each costs about a third of the writes per second."""
    replace_after: Annotated[float, Meta(ge=0.1, le=86400)] = 30.0
    """Seconds for which a lost node is waited for. Then other nodes get what it carried of the control store, and its
    global schedulers."""
    keep_state: bool = False
    """Whether the control store outlives ``down`` and a restart of its machines, in their state directories; the next
    ``up`` continues with it."""
    retention: Retention = Retention()
    """How much history the control store keeps."""
    schedulers: Annotated[int, Meta(ge=1, le=16)] = 2
    locality: bool = True


FOREIGN_KEYS = {
    "min_workers": "all hosts of the file are started: remove it",
    "max_workers": "all hosts of the file are started: remove it",
    "upscaling_speed": "the cluster has the hosts of the file: remove it",
    "idle_timeout_minutes": "hosts stay until meshray down: remove it",
    "head_start_ray_commands": "meshray starts its nodes itself: remove it, and put what must run before into "
                               "head_setup_commands",
    "worker_start_ray_commands": "meshray starts its nodes itself: remove it, and put what must run before into "
                                 "worker_setup_commands",
    "docker": "nodes run on the hosts themselves: remove it, or start the containers yourself with an SSH server each",
    "cluster_synced_files": "use file_mounts",
    "file_mounts_sync_continuously": "files are copied by each meshray up: remove it",
    "rsync_exclude": "file_mounts copy whole folders: name the parts that you need",
    "rsync_filter": "file_mounts copy whole folders: name the parts that you need",
    "available_node_types": "name the machines in nodes, with their resources",
    "head_node_type": "the first of nodes is the head: remove it",
}
"""Keys of Ray's cluster files that have no place here, and what to do."""
