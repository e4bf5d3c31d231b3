"""Clusters of provider ``local``: every node a set of processes of its own on this machine.

*Shell (processes, files).* Runs in the command line and in tests.

1. A cluster that did not start as a whole is taken down as a whole, also after Ctrl-C.
2. ``cluster.json`` is written last: a cluster that has it was healthy, and each of its nodes knew all others.
3. The first node is the head: it hosts the first replica of the first shard. Replicas of one shard, masters and global
   schedulers lie on different nodes, as far as there are enough (``control_store``).
4. A change of a running cluster that fails takes down the nodes that it has started, and nothing else; ``cluster.json``
   names the nodes that go on.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from meshray import config
from meshray.cluster_schema import ClusterConfig, NodeSpec
from meshray.errors import ClusterStartError
from meshray.node_config import ClusterFile, NodeConfig, NodeFile
from meshray.processes import control_store, places_file, run_dirs, state_dirs
from meshray.processes.launch import Launch, node_resources, stop_nodes
from meshray.processes.replacement import newest, placed
from meshray.processes.scheduler_places import scheduler_places
from meshray.processes.spill_place import spill_settings
from meshray.processes.ssh_plan import (
    Change,
    ClusterDiffersError,
    ClusterRecord,
    HostRecord,
    changes,
    shared_differences,
)

Report = Callable[[str], None]

_ACQUAINTED_NS = 10 * config.SECOND_NS
_LOOK_S = 0.02


def start_cluster(cluster: ClusterConfig, report: Report) -> ClusterFile:
    """Start all nodes of a cluster that is absent. Raise ClusterStartError; nothing runs then."""
    name = cluster.cluster_name
    run_dirs.sweep()
    founders = [node.name for node in cluster.nodes]
    run_directories = run_dirs.create(name, founders)
    file = ClusterFile(cluster=name, address=run_dirs.endpoint(run_directories[founders[0]], "node"), nodes={},
                       configuration="", founders=founders, life=secrets.token_hex(8))
    has_past = cluster.keep_state and any(
        os.path.isdir(state_dirs.control_store_dir(name, node.name)) for node in cluster.nodes)
    try:
        _launch(cluster, file, cluster.nodes, report, founding=not has_past, revives=has_past)
        file.nodes, file.configuration = run_directories, _canonical(cluster)
        run_dirs.write_cluster_file(file)
    except BaseException:
        stop_cluster(name, reason="the cluster did not start")
        raise
    return file


def _launch(cluster: ClusterConfig, file: ClusterFile, nodes: list[NodeSpec], report: Report, *, founding: bool = False,
            revives: bool = False) -> None:
    """Start these nodes, whose run directories are made, and wait until each knows all nodes of the cluster. Raise
    ClusterStartError; none of them runs then."""
    launches: list[Launch] = []
    try:
        plans = [_plan(cluster, file, node, founding=founding, revives=revives) for node in nodes]
        for plan in plans:
            launches.append(Launch(plan))
        started = [launch.wait() for launch in launches]
        others = [record for run_dir in file.nodes.values() if (record := run_dirs.read_node_file(run_dir))]
        _wait_acquainted([*started, *others], {node.name for node in cluster.nodes})
        for plan, node in zip(plans, started, strict=True):
            report(f"node {node.node_name}: {_amounts(plan)}, pid {node.pid}")
    except BaseException:
        for launch in launches:
            launch.abandon()
        raise


def plan_changes(cluster: ClusterConfig) -> tuple[ClusterFile, list[Change]]:
    """Return what runs of a cluster, and what to do with each node so that it is as the file says.

    Raise ClusterDiffersError when the file asks for what cannot change, ClusterStartError when there is no head to ask.
    """
    name = cluster.cluster_name
    file = run_dirs.read_cluster_file(name)
    if file is None:
        raise ClusterStartError(f"cluster {name} is being started, or its start was interrupted: end it with meshray "
                                f"down {name}")
    before = msgspec.json.decode(file.configuration, type=ClusterConfig)
    if before.provider.type != cluster.provider.type:
        raise ClusterDiffersError(f"provider.type: {before.provider.type} runs, {cluster.provider.type} is in the file")
    record = ClusterRecord(
        cluster=name, config=before, digest="", mounts="", founders=file.founders, life=file.life, complete=True,
        hosts=[HostRecord(spec=node, python="", run_root="", state_dir="") for node in before.nodes])
    differences = shared_differences(record, cluster, "")
    if differences:
        raise ClusterDiffersError("\n".join(differences))
    alive = {node: run_dirs.is_node_alive(run_dir) for node, run_dir in file.nodes.items()}
    if not alive[file.founders[0]]:
        raise ClusterStartError(f"node {file.founders[0]}, the head of cluster {name}, is dead: meshray down {name}, "
                                "then up again")
    return file, changes(record, cluster, "", alive)


def change_cluster(cluster: ClusterConfig, file: ClusterFile, plan: list[Change], report: Report) -> ClusterFile:
    """Do with each node of a running cluster what the plan says. Raise ClusterStartError; nothing that was started runs
    then."""
    name, action = cluster.cluster_name, {change.name: change.action for change in plan}
    leaving = [each for each in file.nodes if action[each] in ("stop", "restart")]
    stop_nodes([record for each in leaving if (record := run_dirs.read_node_file(file.nodes[each]))],
               reason="meshray up of a changed file")
    for gone in leaving:
        run_dirs.remove_node(name, file.nodes.pop(gone))
        report(f"node {gone}: stopped")
    _note(file, msgspec.structs.replace(cluster, nodes=[node for node in cluster.nodes if node.name in file.nodes]))
    fresh = [node for node in cluster.nodes if node.name not in file.nodes]
    made: list[str] = []
    try:
        for node in fresh:
            made.append(run_dirs.add_node(name, node.name))
        _launch(cluster, file, fresh, report)
    except BaseException:
        for run_dir in made:
            run_dirs.remove_node(name, run_dir)
        raise
    file.nodes = {node.name: run_dirs.node_dir(name, node.name) for node in cluster.nodes}
    _note(file, cluster)
    return file


def _note(file: ClusterFile, cluster: ClusterConfig) -> None:
    file.configuration = _canonical(cluster)
    run_dirs.write_cluster_file(file)


def _wait_acquainted(nodes: Sequence[NodeFile], names: set[str]) -> None:
    """Wait until each of these nodes knows all by their names, so that the first program finds the whole cluster."""
    if len(names) == 1:
        return
    from meshray.processes.tool import NodeClient  # brings ZeroMQ, which the start of the nodes must not wait for

    deadline_ns = time.monotonic_ns() + _ACQUAINTED_NS
    for node in nodes:
        with NodeClient(node.endpoint) as client:
            while missing := names - {row["name"] for row in client.describe(["nodes"])["nodes"]
                                      if row["state"] == "alive"}:
                if time.monotonic_ns() > deadline_ns:
                    raise ClusterStartError(f"node {node.node_name} does not know {', '.join(sorted(missing))} after "
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


def _plan(cluster: ClusterConfig, file: ClusterFile, node: NodeSpec, *, founding: bool, revives: bool) -> NodeConfig:
    name, founders = cluster.cluster_name, file.founders
    run_dir = run_dirs.node_dir(name, node.name)
    store = control_store.plan(founders, cluster.shards, cluster.replicas,
                               lambda host, process: run_dirs.endpoint(run_dirs.node_dir(name, host), process))
    places = scheduler_places(founders, cluster.schedulers)
    schedulers = {process: run_dirs.endpoint(run_dirs.node_dir(name, host), process)
                  for process, host in places.items()}
    amounts = node_resources(
        num_cpus=node.num_cpus, num_gpus=node.num_gpus, resources=node.resources, memory=node.memory,
        object_store_memory=node.object_store_memory, directory=run_dirs.arena_directory(), nodes=len(cluster.nodes))
    kept = [state_dirs.control_store_dir(name, each.name) for each in cluster.nodes] if cluster.keep_state else []
    return placed(NodeConfig(
        cluster=name,
        node_name=node.name,
        run_dir=run_dir,
        resources=amounts,
        object_store_bytes=int(amounts["object_store_memory"]),
        arena_path=run_dirs.arena_path(name, node.name),
        host_shards=store.servers_on(node.name),
        host_masters=store.masters_on(node.name),
        host_schedulers={process: schedulers[process] for process, host in places.items() if host == node.name},
        shards=store.shards,
        masters=store.masters,
        replicas=cluster.replicas,
        acceptors=store.acceptors,
        places={**store.places, **{process: (host, schedulers[process]) for process, host in places.items()}},
        replace_after_s=cluster.replace_after,
        failover=store.failover,
        founding=founding,
        state_dir=state_dirs.control_store_dir(name, node.name) if cluster.keep_state else "",
        life=file.life,
        revives=revives and node.name == founders[0],
        schedulers=schedulers,
        durability=cluster.durability,
        retention=cluster.retention,
        prestart_workers=min(int(amounts["CPU"]), config.WORKERS_STARTING_MAX),
        environment=node.environment,
        labels=node.labels,
        locality=cluster.locality,
        **spill_settings(node.spill_directory, node.spill_max, cluster=name, node=node.name, run_dir=run_dir),
    ), newest(map(places_file.read, [*file.nodes.values(), *kept])))


def _canonical(cluster: ClusterConfig) -> str:
    return msgspec.json.encode(cluster, order="sorted").decode()


def _amounts(plan: NodeConfig) -> str:
    sizes = ("memory", "object_store_memory")
    return ", ".join(f"{amount:g} {name}" for name, amount in plan.resources.items() if name not in sizes)
