"""A driver on a machine without a node: the configuration of a node of its own, which joins the cluster over TCP.

*Shell (zmq, files).* Runs in drivers.

1. The node has no CPU, so no task is placed there; it holds what the driver puts and fetches, and relays for it.
2. It opens all connections itself: a driver behind a firewall needs no open port for the control plane.
3. It goes with its driver, and is to the cluster a node like any other meanwhile.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys

from meshray import config
from meshray.errors import ClusterNotFoundError, NodeDiedError
from meshray.messages.keys import AskWay, Way
from meshray.node_config import Network, NodeConfig
from meshray.processes import run_dirs, state_dirs
from meshray.processes.launch import node_resources
from meshray.processes.tool import NodeClient
from meshray.transport.endpoints import Tcp, parse


def visiting_config(address: str, *, object_store_memory: int | None = None) -> NodeConfig:
    """Ask the node at ``address`` (tcp://HOST:PORT#KEY) the way, and return the configuration of a node that belongs to
    its cluster and lives as long as this process. ``object_store_memory`` in bytes; detected if not given.

    Raise KeyFileError when this machine has no key, KeyRefusedError when the cluster does not let it in,
    ClusterNotFoundError when nobody answers, ClusterStartError when there is no room for the node.
    """
    try:
        target = parse(address)
    except ValueError as error:
        raise ClusterNotFoundError(str(error)) from None
    assert isinstance(target, Tcp), "the caller has looked"
    way = _ask_way(address)
    run_dirs.sweep()
    cluster, name = f"embedded-{os.getpid()}-{secrets.token_hex(2)}", f"driver-{secrets.token_hex(4)}"
    amounts = node_resources(num_cpus=0, num_gpus=0, resources=None, memory=0,
                             object_store_memory=object_store_memory, directory=run_dirs.arena_directory())
    run_dir = run_dirs.create(cluster, [name])[name]
    return NodeConfig(
        cluster=cluster,
        node_name=name,
        run_dir=run_dir,
        resources=amounts,
        object_store_bytes=int(amounts["object_store_memory"]),
        arena_path=run_dirs.arena_path(cluster, name),
        shards=way.shards,
        schedulers=way.schedulers,
        embedded_pid=os.getpid(),
        preload=[module for module in ("numpy",) if module in sys.modules],
        network=Network(bind=_own_address(target), key_file=state_dirs.find_key_file(), allowed=way.allowed,
                        seeds=way.seeds, bulk_encryption=way.bulk_encryption, connect_only=True),
    )


def _ask_way(address: str) -> Way:
    try:
        with NodeClient(address) as client:
            return client.ask(AskWay(1), Way)
    except NodeDiedError as error:
        raise ClusterNotFoundError(
            f"no node answered at {address}: see on the cluster, with meshray keys list, whether this is its address "
            "and key, and whether a firewall lets you reach the port") from error


def _own_address(target: Tcp) -> str:
    """Return the address by which this machine reaches the target; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        target.host.strip("[]"), target.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.settimeout(config.HANDSHAKE_TIMEOUT_NS / config.SECOND_NS)
        probe.connect(address)
        return str(probe.getsockname()[0])
