"""What ``up`` has to do with which node: the record of what runs against the cluster file.

*Pure.* Used by ``ssh_cluster``, whose record ``ssh_record`` keeps on the launching machine, and by ``local_cluster``,
whose record is ``cluster.json``.

1. Only what differs changes: a node whose own part of the file is the same is not restarted.
2. What all nodes share (shards, schedulers, durability, the head, meshray itself) cannot change under a running
   cluster: it is named, and nothing is done.
"""

from __future__ import annotations

import platform
from typing import Any, Literal

import msgspec

from meshray import config
from meshray.cluster_schema import ClusterConfig, NodeSpec
from meshray.errors import ClusterStartError
from meshray.processes import control_store
from meshray.processes.host_plan import Probe
from meshray.processes.scheduler_places import scheduler_places

Action = Literal["keep", "update", "start", "restart", "stop", "away", "forget"]
"""``away``: it stays as it is, because its host cannot be reached; ``forget``: likewise, and it is not in the file."""

SECONDS = {"connect": 15.0, "probe": 30.0, "sync": 600.0, "install": 900.0, "start": 60.0, "join": 30.0,
           "healthy": 30.0, "stop": 30.0}
"""How long each phase may take on a host, where the cluster file says nothing else."""

_SHARED = ("shards", "replicas", "schedulers", "durability", "retention", "locality", "keep_state",
           "replace_after")
_FILES = ("file_mounts", "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
_LOGIN = ("ssh_user", "ssh_private_key")
_STATE_BYTES, _RUN_BYTES = 16 * config.MIB, 64 * config.MIB
_FILES_MIN = 4096


class ClusterDiffersError(ClusterStartError):
    """The cluster runs with another configuration, in something that cannot change while it runs."""


class HostRecord(msgspec.Struct, kw_only=True):
    """A node that was started on a host, or is about to be."""

    spec: NodeSpec
    python: str
    """The Python that runs meshray there."""
    run_root: str
    state_dir: str
    address: str = ""
    """Where the node listens."""
    public: str = ""
    control: str = ""
    endpoint: str = ""
    started: bool = False
    """Whether it was healthy once."""


class ClusterRecord(msgspec.Struct, kw_only=True):
    """A cluster that this machine has started over SSH, its head first."""

    cluster: str
    config: ClusterConfig
    digest: str
    """Of the meshray that runs there."""
    mounts: str
    """Digest of the files that were copied there."""
    founders: list[str] = []
    """The nodes that it began with, which tell where the control store lies."""
    life: str = ""
    """Which start of the cluster it is."""
    hosts: list[HostRecord] = []
    complete: bool = False
    """Whether ``up`` came to its end."""


class Change(msgspec.Struct, frozen=True):
    """What is done with one node, and why."""

    name: str
    action: Action
    reasons: list[str]

    def __str__(self) -> str:
        return f"{self.name}: {self.action}" + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


def shared_differences(record: ClusterRecord, cluster: ClusterConfig, digest: str) -> list[str]:
    """Say what differs that all nodes share, a line each."""
    before, head = record.config, cluster.nodes[0].name
    lines = [f"{key}: {getattr(before, key)} runs, {getattr(cluster, key)} is in the file"
             for key in _SHARED if getattr(before, key) != getattr(cluster, key)]
    if before.provider.bulk_encryption != cluster.provider.bulk_encryption:
        lines.append("provider.bulk_encryption differs")
    if before.nodes[0].name != head:
        lines.append(f"head: {before.nodes[0].name} runs, {head} is in the file")
    else:
        lines += [f"head {head}: {reason}" for reason in spec_differences(before.nodes[0], cluster.nodes[0])]
    left = {node.name for node in cluster.nodes}
    lines += [f"{name}: has a part of the control store, which cannot move" for name in bearers(record)
              if name not in left and name != before.nodes[0].name]
    if record.digest != digest:
        lines.append(f"meshray: sources {record.digest} run, {digest} are here")
    return lines


def take_logins(record: ClusterRecord, cluster: ClusterConfig) -> bool:
    """Let the record say of each host how to log in to it now, which is no reason to start its node again; whether that
    differs from before."""
    files = {node.name: node for node in cluster.nodes}
    changed = False
    for host in record.hosts:
        login = {key: getattr(files.get(host.spec.name, host.spec), key) for key in _LOGIN}
        spec = msgspec.structs.replace(host.spec, **login)
        changed, host.spec = changed or spec != host.spec, spec
    record.config.nodes = [
        msgspec.structs.replace(node, **{key: getattr(files.get(node.name, node), key) for key in _LOGIN})
        for node in record.config.nodes]
    return changed


def bearers(record: ClusterRecord) -> list[str]:
    """Return the nodes that have a part of the control store, the head first."""
    plan = control_store.plan(record.founders, record.config.shards, record.config.replicas, lambda node, process: "")
    names = {node for node, _ in (*plan.servers.values(), *plan.hosts.values())}
    return [name for name in record.founders if name in names]


def landmarks(record: ClusterRecord) -> set[str]:
    """Return the nodes that others must find at once: bearers, and those with a global scheduler."""
    return {*bearers(record), *scheduler_places(record.founders, record.config.schedulers).values()}


def changes(record: ClusterRecord | None, cluster: ClusterConfig, mounts: str, alive: dict[str, bool]) -> list[Change]:
    """Return what to do with each node, in the order of the file, those to be stopped last.

    ``alive``: of the recorded nodes whose hosts can be reached, whether they run. ``mounts``: digest of the files now.
    """
    if record is None:
        return [Change(node.name, "start", []) for node in cluster.nodes]
    known = {host.spec.name: host for host in record.hosts}
    files = [key for key in _FILES if getattr(record.config, key) != getattr(cluster, key)]
    if record.mounts != mounts:
        files.append("files to copy")
    found = []
    for node in cluster.nodes:
        if node.name not in known:
            found.append(Change(node.name, "start", ["new"]))
            continue
        if node.name not in alive:
            found.append(Change(node.name, "away", ["its host cannot be reached"]))
            continue
        differences = spec_differences(known[node.name].spec, node)
        if not alive[node.name]:
            found.append(Change(node.name, "restart", ["it does not run", *differences]))
        elif differences:
            found.append(Change(node.name, "restart", differences))
        elif files:
            found.append(Change(node.name, "update", [f"{key} changed" for key in files]))
        else:
            found.append(Change(node.name, "keep", []))
    wanted = {node.name for node in cluster.nodes}
    gone = [name for name in known if name not in wanted]
    return [*found, *(Change(name, "stop", ["not in the file"]) if name in alive else
                      Change(name, "forget", ["not in the file", "its host cannot be reached"]) for name in gone)]


def spec_differences(before: NodeSpec, after: NodeSpec) -> list[str]:
    """Say what differs between two nodes, a phrase for each key."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    return [f"{key}: {_shown(old[key])} -> {_shown(new[key])}" for key in new if old[key] != new[key]]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and value:
        return f"{{{', '.join(f'{key}: {_shown(child)}' for key, child in value.items())}}}"
    if value in (None, "", {}, []):
        return "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def seconds_for(cluster: ClusterConfig, phase: str) -> float:
    """Return how long a phase may take on one host."""
    return cluster.provider.timeouts.get(phase, SECONDS[phase])


def probe_of(node: NodeSpec, *, version: str, digest: str) -> Probe:
    """Return what to ask of a host before a node is started there."""
    return Probe(
        attached=True, python_version=".".join(platform.python_version_tuple()[:2]), version=version, digest=digest,
        state_dir=node.state_dir, run_dir=node.run_dir, state_bytes=_STATE_BYTES, run_bytes=_RUN_BYTES,
        files_min=_FILES_MIN, memory_bytes=node.object_store_memory or config.ARENA_BYTES_MIN)


def commands_for(cluster: ClusterConfig, index: int) -> list[str]:
    """Return the setup commands of the node at ``index``."""
    return [*cluster.setup_commands, *(cluster.worker_setup_commands if index else cluster.head_setup_commands)]
