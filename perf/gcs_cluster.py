"""A cluster on this machine whose control store is replicated, and what one may do to its servers.

*Shell (processes, signals, zmq).* Runs in ``perf.gcs``, ``perf.failover`` and the tests of failover.

1. The servers are found where everybody finds them: their pids in the nodes' own files, their order in the chain as
   clients are told it.
2. A server that was killed is started again by its node; nobody here starts one.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meshray.cluster_config import parse_cluster_config
from meshray.ids import process_name
from meshray.messages.node import Register, Registered
from meshray.processes import run_dirs
from meshray.processes.local_cluster import start_cluster, stop_cluster
from meshray.transport.codec import decode, encode
from meshray.transport.sockets import Peers, ipc_endpoint
from perf.gcs_caller import Caller, Unanswered

ROOT = "MESHRAY_RUN_ROOT"
FILE = """\
cluster_name: {name}
provider:
  type: local
nodes:
{nodes}
replicas: {replicas}
durability: {durability}
"""
NODE = """\
  - name: n{index}
    num_cpus: {cpus}
    object_store_memory: 64MiB
"""


class GcsCluster:
    """A running cluster of as many nodes as its one shard has replicas."""

    def __init__(self, replicas: int, durability: str = "relaxed", *, nodes: int = 0, cpus: int = 1) -> None:
        self.name = f"gcs{os.getpid() % 100_000}"
        text = FILE.format(name=self.name, replicas=replicas, durability=durability,
                           nodes="".join(NODE.format(index=index, cpus=cpus) for index in range(nodes or replicas)))
        self.replicas = replicas
        self.file = start_cluster(parse_cluster_config(text), lambda line: None)

    def caller(self) -> Caller:
        """Return a client that is registered with the first node."""
        name = process_name("driver", os.urandom(8))
        run_dir = next(iter(self.file.nodes.values()))
        peers = Peers(name, ipc_endpoint(run_dir, name))
        route = peers.connect("node", self.file.address)
        peers.send(route, encode(Register(name, "driver", os.getpid(), peers.endpoint, "", "perf", "perf", "", ())))
        while True:
            if not peers.wait(30_000):
                raise Unanswered(f"the node at {self.file.address} does not answer")
            for parts in peers.receive(1, ready=True):
                message = decode(parts[1])
                if isinstance(message, Registered):
                    return Caller(name, run_dir, message.shards, peers=peers)

    def pids(self, prefix: str = "shard-") -> dict[str, int]:
        """Return the shard servers that run, by name; another ``prefix`` gives other services."""
        records = [run_dirs.read_node_file(run_dir) for run_dir in self.file.nodes.values()]
        return {name: pid for record in records if record for name, pid in record.pids.items()
                if name.startswith(prefix)}

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a server; return its pid."""
        pid = self.pids()[name]
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def stop(self) -> None:
        """End the cluster; what is stopped is let go first."""
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        stop_cluster(self.name)


@contextmanager
def gcs_cluster(replicas: int, durability: str = "relaxed", *, nodes: int = 0, cpus: int = 1) -> Iterator[GcsCluster]:
    """Yield a cluster in a run root of its own."""
    before = os.environ.get(ROOT)
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp") as root:
        os.environ[ROOT] = root
        Path(root).chmod(0o700)
        try:
            cluster = GcsCluster(replicas, durability, nodes=nodes, cpus=cpus)
            try:
                yield cluster
            finally:
                cluster.stop()
        finally:
            os.environ.pop(ROOT, None)
            if before is not None:
                os.environ[ROOT] = before
