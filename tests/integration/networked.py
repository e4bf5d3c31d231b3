"""Nodes that meet over TCP on loopback, as if each were a machine: a run root and a state directory of its own.

*Shell (processes, files).* Runs in the pytest process.

1. No two nodes are told of the same directory. They share a file system all the same: that nothing but the network
   connects nodes is tested on hosts with files of their own (``ssh_hosts``).
2. The first node is the head: it hosts the shard and the global schedulers, and its port is known to all.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import meshray
from meshray.messages.node import Shard
from meshray.node_config import Network, NodeConfig, NodeFile
from meshray.processes import launch, run_dirs
from meshray.processes.tool import NodeClient
from meshray.transport.curve import KeyPair
from meshray.transport.endpoints import Tcp

from .support import ROOT_VARIABLE, wait_until

STATE_VARIABLE = "MESHRAY_STATE_DIR"
STORE_BYTES = 128 * 2**20


def state_of(directory: str) -> str:
    """Return the state directory of the emulated machine whose run root is ``directory``."""
    return directory + ".state"


@contextmanager
def on_host(directory: str) -> Iterator[None]:
    """Be on the emulated machine whose files lie in ``directory``."""
    places = {ROOT_VARIABLE: directory, STATE_VARIABLE: state_of(directory)}
    before = {name: os.environ.get(name) for name in places}
    os.environ.update(places)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Host:
    """One node, on an emulated machine."""

    def __init__(self, root: str, name: str, cpus: float) -> None:
        self.name = name
        self.cpus = cpus
        self.directory = os.path.join(root, name[0])
        os.makedirs(self.directory, mode=0o700)
        self.key_file = os.path.join(state_of(self.directory), "node.key")
        self.pair = KeyPair.make(name)
        self.pair.save(self.key_file)
        self.file: NodeFile

    def join(self, namespace: str = "tests") -> None:
        """Make this process a driver on this host."""
        meshray.init(address=self.file.endpoint, namespace=namespace)


class Hosts:
    """A cluster with a network: ``left`` (the head) and ``right``, each with a resource of its name."""

    def __init__(self, root: str, names: tuple[str, ...] = ("left", "right"), *, cpus: float = 2) -> None:
        self.hosts = {name: Host(root, name, cpus) for name in names}
        self.head = next(iter(self.hosts.values()))
        self.port = free_port()
        self.allowed = {name: host.pair.public for name, host in self.hosts.items()}
        self.seeds = {self.head.name: str(Tcp("127.0.0.1", self.port, self.head.pair.public))}

    def config(self, host: Host, **more: Any) -> NodeConfig:
        """Return the configuration of a host's node, after making its run directory. Call it on that host."""
        run_dir = run_dirs.create("pair", [host.name])[host.name]
        is_head = host is self.head
        shards = {"shard-0-0": f"via://{self.head.name}/shard-0-0"}
        schedulers = {name: f"via://{self.head.name}/{name}" for name in ("scheduler-0", "scheduler-1")}
        network = Network(control_port=self.port if is_head else 0, key_file=host.key_file, allowed=self.allowed,
                          seeds=self.seeds)
        return NodeConfig(**{
            "cluster": "pair", "node_name": host.name, "run_dir": run_dir,
            "resources": {"CPU": host.cpus, host.name: 4.0, "object_store_memory": float(STORE_BYTES)},
            "object_store_bytes": STORE_BYTES, "arena_path": run_dirs.arena_path("pair", host.name),
            "host_shards": {name: run_dirs.endpoint(run_dir, name) for name in shards} if is_head else {},
            "host_schedulers": {name: run_dirs.endpoint(run_dir, name) for name in schedulers} if is_head else {},
            "shards": [Shard(epoch=1, members=list(shards.items()))], "schedulers": schedulers,
            "network": network, **more})

    def start(self, *names: str, **more: Any) -> None:
        """Start the nodes of these hosts (none named: of all) and wait until each knows all others."""
        for name in names or tuple(self.hosts):
            host = self.hosts[name]
            with on_host(host.directory):
                host.file = launch.start_node(self.config(host, **more))
        started = [host for host in self.hosts.values() if hasattr(host, "file")]
        for host in started:
            self.wait_for_nodes(host, len(started))

    def wait_for_nodes(self, host: Host, count: int) -> None:
        """Wait until the node of ``host`` knows so many nodes, itself among them."""
        with on_host(host.directory), NodeClient(host.file.endpoint) as client:
            wait_until(lambda: len(client.describe(["nodes"])["nodes"]) == count, what=f"{host.name} knows {count}")

    def stop(self) -> None:
        """End all nodes, the head last."""
        for host in reversed(self.hosts.values()):
            if hasattr(host, "file"):
                with on_host(host.directory):
                    launch.stop_node(host.file)
                    run_dirs.remove("pair")
