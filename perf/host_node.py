"""One node of a measured cluster, in a process that lives as long as its standard input.

*Shell (processes, files).* ``python -m perf.host_node`` in the network of a host (``perf.host_cluster`` starts it).
Reads a HostNode in JSON, one line; writes the node's ``node.json`` facts, one line, once it is healthy; ends the node
and removes its directories when its standard input ends.
"""

from __future__ import annotations

import sys

import msgspec

from meshray.messages.node import Shard
from meshray.node_config import Network, NodeConfig
from meshray.processes import run_dirs
from meshray.processes.launch import start_node, stop_node


class HostNode(msgspec.Struct, kw_only=True):
    """What a node of a measured cluster is. Resources in units, sizes in bytes."""

    cluster: str
    name: str
    resources: dict[str, float]
    store_bytes: int
    network: Network
    shards: dict[str, str]
    """All shard members: name -> endpoint as others see it."""
    schedulers: dict[str, str]
    is_head: bool
    locality: bool = True


def configuration(plan: HostNode, run_dir: str) -> NodeConfig:
    """Return the configuration of the node whose run directory has been made."""
    here = {name: run_dirs.endpoint(run_dir, name) for name in (*plan.shards, *plan.schedulers)} if plan.is_head else {}
    return NodeConfig(
        cluster=plan.cluster, node_name=plan.name, run_dir=run_dir,
        resources={**plan.resources, "object_store_memory": float(plan.store_bytes)},
        object_store_bytes=plan.store_bytes, arena_path=run_dirs.arena_path(plan.cluster, plan.name),
        host_shards={name: here[name] for name in plan.shards if name in here},
        host_schedulers={name: here[name] for name in plan.schedulers if name in here},
        shards=[Shard(epoch=1, members=list(plan.shards.items()))], schedulers=plan.schedulers,
        prestart_workers=int(plan.resources["CPU"]), preload=["numpy"], locality=plan.locality,
        network=plan.network)


def main() -> None:
    """Start the node, tell of it, wait for the end of the input, stop it."""
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=HostNode)
    run_dir = run_dirs.create(plan.cluster, [plan.name])[plan.name]
    try:
        node = start_node(configuration(plan, run_dir))
        try:
            print(msgspec.json.encode(node).decode(), flush=True)
            sys.stdin.buffer.read()
        finally:
            stop_node(node, reason="the measurement is over")
    finally:
        run_dirs.remove(plan.cluster)


if __name__ == "__main__":
    main()
