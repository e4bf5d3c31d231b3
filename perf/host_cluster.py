"""A cluster with a network over hosts that are namespaces, or over loopback, for the programs that measure it.

*Shell (processes).* Runs in perf programs.

1. Every node has a run root, a state directory and a key of its own, so nothing but the network connects two nodes.
2. The first node is the head: it hosts the shard and the global schedulers.
3. Programs on a host are separate processes (``Cluster.program``), which print one JSON value as their last line.
4. What was started ends with the context, whatever happens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import msgspec

from meshray.node_config import Network, NodeFile
from meshray.transport.curve import KeyPair
from meshray.transport.endpoints import Tcp
from perf.host_node import HostNode
from perf.hosts import Host, Hosts

CLUSTER = "perf"
HEAD_PORT = 7701
START_S, PROGRAM_S = 60.0, 300.0


def on_loopback(hosts: Hosts, count: int) -> list[Host]:
    """Return ``count`` hosts that share the network of the first one, and its loopback address."""
    return [replace(hosts[0], name=f"l{index}", address="127.0.0.1", root=hosts[0].root / f"l{index}")
            for index in range(count)]


class Cluster:
    """A node on each of ``places``. Use it in ``with``."""

    def __init__(self, hosts: Hosts, places: Sequence[Host], *, cpus: float = 1, store_bytes: int = 1 << 30,
                 bulk_encryption: bool = True, locality: bool = True) -> None:
        """Start the nodes; each has a resource of its own name. Raise RuntimeError with a node's last words."""
        self.places = list(places)
        self._hosts = hosts
        self._keepers: list[subprocess.Popen[str]] = []
        self.nodes: dict[str, NodeFile] = {}
        pairs = {place.name: KeyPair.make(place.name) for place in self.places}
        head = self.places[0]
        try:
            for place in self.places:
                for directory in (place.run_root, place.state, place.home):
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                key_file = place.state / "node.key"
                pairs[place.name].save(str(key_file), replace=True)
                network = Network(
                    bind=place.address, key_file=str(key_file), control_port=HEAD_PORT if place is head else 0,
                    allowed={name: pair.public for name, pair in pairs.items()}, bulk_encryption=bulk_encryption,
                    seeds={head.name: str(Tcp(head.address, HEAD_PORT, pairs[head.name].public))})
                self._start(place, HostNode(
                    cluster=CLUSTER, name=place.name, store_bytes=store_bytes, network=network, is_head=place is head,
                    resources={"CPU": cpus, place.name: 100.0}, locality=locality,
                    shards={"shard-0-0": f"via://{head.name}/shard-0-0"},
                    schedulers={name: f"via://{head.name}/{name}" for name in ("scheduler-0", "scheduler-1")}))
            self._wait_acquainted()
        except BaseException:
            self.close()
            raise

    def _start(self, place: Host, plan: HostNode) -> None:
        keeper = self._hosts.run(place, [sys.executable, "-m", "perf.host_node"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True, environment=self._places_of(place))
        self._keepers.append(keeper)
        assert keeper.stdin is not None and keeper.stdout is not None
        keeper.stdin.write(msgspec.json.encode(plan).decode() + "\n")
        keeper.stdin.flush()
        line = keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"the node on {place.name} did not start: see above")
        self.nodes[place.name] = msgspec.json.decode(line, type=NodeFile)

    @staticmethod
    def _places_of(place: Host) -> dict[str, str]:
        return {"MESHRAY_STATE_DIR": str(place.state), "MESHRAY_RUN_ROOT": str(place.run_root)}

    def _wait_acquainted(self) -> None:
        deadline = time.monotonic() + START_S
        while any(len(self.describe(place)) < len(self.places) for place in self.places):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes did not all meet within {START_S:g} s")

    def describe(self, place: Host) -> list[dict[str, Any]]:
        """Return the ``nodes`` rows as the node of ``place`` knows them."""
        from meshray.processes.tool import NodeClient  # the folder of a host is seen from outside

        with NodeClient(self.nodes[place.name].endpoint) as client:
            return client.describe(["nodes"])["nodes"]

    def statistics(self, place: Host) -> dict[str, int]:
        """Return the counters of the node of ``place``."""
        return next(row["statistics"] for row in self.describe(place) if row["name"] == place.name)

    def start_program(self, place: Host, module: str, *arguments: str, stdin: int | None = None
                      ) -> subprocess.Popen[str]:
        """Start ``python -m module`` on ``place``, as a driver of its node."""
        return self._hosts.run(place, [sys.executable, "-m", module, *arguments], stdin=stdin, stdout=subprocess.PIPE,
                               text=True, environment={**self._places_of(place),
                                                        "MESHRAY_ADDRESS": self.nodes[place.name].endpoint})

    def program(self, place: Host, module: str, *arguments: str) -> Any:
        """Run ``python -m module`` on ``place``; return the JSON value in its last line. Raise RuntimeError."""
        return result_of(self.start_program(place, module, *arguments))

    def close(self) -> None:
        """End all nodes, the head last."""
        for keeper in reversed(self._keepers):
            assert keeper.stdin is not None
            keeper.stdin.close()
            try:
                keeper.wait(20)
            except subprocess.TimeoutExpired:
                keeper.kill()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


def result_of(program: subprocess.Popen[str]) -> Any:
    """Wait for a program and return the JSON value in the last line of its output. Raise RuntimeError."""
    output, _ = program.communicate(timeout=PROGRAM_S)
    if program.returncode != 0 or not output.strip():
        raise RuntimeError(f"{program.args} ended with {program.returncode}: {output}")
    return json.loads(output.splitlines()[-1])
