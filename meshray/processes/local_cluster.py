"""Clusters of provider ``local``: every node a set of processes of its own on this machine.

*Shell (processes, files).* Runs in the command line and in tests.

1. A cluster that did not start as a whole is taken down as a whole, also after Ctrl-C.
2. ``cluster.json`` is written last: a cluster that has it was healthy, and each of its nodes knew all others.
3. The first node is the head: it hosts the first replica of the first shard. Replicas of one shard, masters and global
   schedulers lie on different nodes, as far as there are enough (``control_store``).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from meshray import config
from meshray.cluster_schema import ClusterConfig
from meshray.errors import ClusterStartError
from meshray.node_config import ClusterFile, NodeConfig, NodeFile
from meshray.processes import control_store, run_dirs, state_dirs
from meshray.processes.launch import Launch, node_resources, stop_nodes
from meshray.processes.scheduler_places import scheduler_places
from meshray.processes.spill_place import spill_settings

State = Literal["absent", "running", "differs", "broken"]
Report = Callable[[str], None]

_ACQUAINTED_NS = 10 * config.SECOND_NS
_LOOK_S = 0.02


def state_of(cluster: ClusterConfig) -> tuple[State, list[str]]:
    """Say whether a cluster of that name runs, and what is different or broken about it, a line each."""
    name = cluster.cluster_name
    if not run_dirs.is_cluster_alive(name):
        return "absent", []
    file = run_dirs.read_cluster_file(name)
    if file is None:
        return "broken", ["it is being started, or its start was interrupted"]
    dead = [node for node, run_dir in file.nodes.items() if not run_dirs.is_node_alive(run_dir)]
    if dead:
        return "broken", [f"node {node} is dead" for node in dead]
    changes = differences(file.configuration, _canonical(cluster))
    return ("differs", changes) if changes else ("running", [])


def start_cluster(cluster: ClusterConfig, report: Report) -> ClusterFile:
    """Start all nodes of a cluster that is absent. Raise ClusterStartError; nothing runs then."""
    name = cluster.cluster_name
    run_dirs.sweep()
    run_directories = run_dirs.create(name, [node.name for node in cluster.nodes])
    launches: list[Launch] = []
    try:
        plans = _plan(cluster, run_directories)
        for plan in plans:
            launches.append(Launch(plan))
        started = [launch.wait() for launch in launches]
        _wait_acquainted(started)
        for plan, node in zip(plans, started, strict=True):
            report(f"node {node.node_name}: {_amounts(plan)}, pid {node.pid}")
        file = ClusterFile(cluster=name, address=started[0].endpoint, configuration=_canonical(cluster),
                           nodes={plan.node_name: plan.run_dir for plan in plans})
        run_dirs.write_cluster_file(file)
    except BaseException:
        for launch in launches:
            launch.abandon()
        stop_cluster(name, reason="the cluster did not start")
        raise
    return file


def _wait_acquainted(nodes: list[NodeFile]) -> None:
    """Wait until each node knows all others, so that the first program finds the whole cluster."""
    if len(nodes) == 1:
        return
    from meshray.processes.tool import NodeClient  # brings ZeroMQ, which the start of the nodes must not wait for

    deadline_ns = time.monotonic_ns() + _ACQUAINTED_NS
    for node in nodes:
        with NodeClient(node.endpoint) as client:
            while (count := len(client.describe(["nodes"])["nodes"])) < len(nodes):
                if time.monotonic_ns() > deadline_ns:
                    raise ClusterStartError(f"node {node.node_name} knows only {count} of {len(nodes)} nodes after "
                                            f"{_ACQUAINTED_NS // config.SECOND_NS} s: see meshray logs scheduler-0")
                time.sleep(_LOOK_S)


def stop_cluster(name: str, *, reason: str = "meshray down") -> bool:
    """End a cluster and remove all that it leaves; False if there was none."""
    if name not in run_dirs.clusters():
        return False
    # The head goes last, so that the other nodes can still say goodbye to the control store.
    file = run_dirs.read_cluster_file(name)
    run_directories = list((file.nodes if file is not None else run_dirs.nodes_of(name)).values())
    records = [record for run_dir in reversed(run_directories) if (record := run_dirs.read_node_file(run_dir))]
    stop_nodes(records, reason=reason)
    run_dirs.remove(name)
    return True


def differences(before: str, after: str) -> list[str]:
    """Say what differs between two configurations in JSON, a line for each key."""
    old, new = _flat(json.loads(before), ""), _flat(json.loads(after), "")
    lines = []
    for path in sorted(old.keys() | new.keys()):
        if path not in old:
            lines.append(f"{path}: {new[path]} is new")
        elif path not in new:
            lines.append(f"{path}: {old[path]} is gone")
        elif old[path] != new[path]:
            lines.append(f"{path}: {old[path]} runs, {new[path]} is in the file")
    return lines


def _plan(cluster: ClusterConfig, run_directories: dict[str, str]) -> list[NodeConfig]:
    store = control_store.plan([node.name for node in cluster.nodes], cluster.shards, cluster.replicas,
                               lambda node, process: run_dirs.endpoint(run_directories[node], process))
    places = scheduler_places([node.name for node in cluster.nodes], cluster.schedulers)
    schedulers = {name: run_dirs.endpoint(run_directories[host], name) for name, host in places.items()}
    plans = []
    life = secrets.token_hex(8)
    has_past = cluster.keep_state and any(
        os.path.isdir(state_dirs.control_store_dir(cluster.cluster_name, node.name)) for node in cluster.nodes)
    for node in cluster.nodes:
        amounts = node_resources(
            num_cpus=node.num_cpus, num_gpus=node.num_gpus, resources=node.resources, memory=node.memory,
            object_store_memory=node.object_store_memory, directory=run_dirs.arena_directory(),
            nodes=len(cluster.nodes))
        plans.append(NodeConfig(
            cluster=cluster.cluster_name,
            node_name=node.name,
            run_dir=run_directories[node.name],
            resources=amounts,
            object_store_bytes=int(amounts["object_store_memory"]),
            arena_path=run_dirs.arena_path(cluster.cluster_name, node.name),
            host_shards=store.servers_on(node.name),
            host_masters=store.masters_on(node.name),
            host_schedulers={name: schedulers[name] for name, host in places.items() if host == node.name},
            shards=store.shards,
            masters=store.masters,
            replicas=cluster.replicas,
            acceptors=store.acceptors,
            failover=store.failover,
            founding=not has_past,
            state_dir=state_dirs.control_store_dir(cluster.cluster_name, node.name) if cluster.keep_state else "",
            life=life,
            revives=has_past and node is cluster.nodes[0],
            schedulers=schedulers,
            durability=cluster.durability,
            retention=cluster.retention,
            prestart_workers=min(int(amounts["CPU"]), config.WORKERS_STARTING_MAX),
            environment=node.environment,
            labels=node.labels,
            locality=cluster.locality,
            **spill_settings(node.spill_directory, node.spill_max, cluster=cluster.cluster_name, node=node.name,
                             run_dir=run_directories[node.name]),
        ))
    return plans


def _canonical(cluster: ClusterConfig) -> str:
    return msgspec.json.encode(cluster, order="sorted").decode()


def _flat(value: Any, path: str) -> dict[str, Any]:
    """Return the leaves of nested lists and objects by their paths."""
    if isinstance(value, dict):
        pairs = [(f"{path}.{key}" if path else key, child) for key, child in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{path}[{index}]", child) for index, child in enumerate(value)]
    else:
        return {path: "nothing" if value is None else value}
    return {leaf: found for name, child in pairs for leaf, found in _flat(child, name).items()}


def _amounts(plan: NodeConfig) -> str:
    sizes = ("memory", "object_store_memory")
    return ", ".join(f"{amount:g} {name}" for name, amount in plan.resources.items() if name not in sizes)
