"""A node that only answers tools: a real socket in a thread, so that the command line can be tested by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from meshray.cli.main import main
from meshray.messages.state import ClusterStopping, DescribeCluster, Description, StopCluster
from meshray.node_config import ClusterFile, NodeFile
from meshray.processes import run_dirs
from meshray.transport.codec import decode, encode
from meshray.transport.sockets import Peers


class FakeNode:
    """Answers DescribeCluster with ``rows`` and StopCluster by ending the process that stands for the node."""

    def __init__(self, cluster: str, name: str) -> None:
        self.run_dir = run_dirs.create(cluster, [name])[name]
        self.endpoint = run_dirs.endpoint(self.run_dir, "node")
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.missing: list[str] = []
        self.silent = False
        self.asked: list[Any] = []
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
        run_dirs.write_node_file(self.run_dir, NodeFile(
            cluster=cluster, node_name=name, node=f"node-{name}", pid=self.process.pid, endpoint=self.endpoint,
            arena_path=run_dirs.arena_path(cluster, name), pids={}))
        os.unlink(os.path.join(run_dirs.cluster_dir(cluster), "launcher.json"))
        self._wake, self._waker = os.pipe()
        self._peers = Peers("node", self.endpoint)
        self._peers.watch_fd(self._wake)
        self._thread: threading.Thread | None = threading.Thread(target=self._serve)
        self._ending = False
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending:
            self._peers.wait(-1)
            for route, frame in self._peers.receive(10):
                message = decode(frame)
                self.asked.append(message)
                if self.silent:
                    continue
                if isinstance(message, DescribeCluster):
                    rows = {topic: self.rows.get(topic, [])[: message.limit] for topic in message.topics}
                    # An answer to somebody else's question comes first: it must not be taken for this one.
                    self._peers.send(route, encode(Description(message.cookie + 99, b'{"nodes": [{"node": "x"}]}', [])))
                    answer = Description(message.cookie, msgspec.json.encode(rows), self.missing)
                    self._peers.send(route, encode(answer))
                elif isinstance(message, StopCluster):
                    self._peers.send(route, encode(ClusterStopping(message.cookie, [self.process.pid])))
                    self.process.stdin.close()

    def up(self, configuration: str = "{}") -> None:
        """Let the cluster look as ``meshray up`` leaves it."""
        cluster, name = self.run_dir.split("/")[-2:]
        run_dirs.write_cluster_file(ClusterFile(cluster=cluster, address=self.endpoint, nodes={name: self.run_dir},
                                                configuration=configuration, founders=[name]))

    def close(self) -> None:
        if self._thread is not None:
            self._ending = True
            os.write(self._waker, b"x")
            self._thread.join()
            self._thread = None
            self._peers.close()
            os.close(self._wake)
            os.close(self._waker)
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    monkeypatch.setenv("MESHRAY_RUN_ROOT", path)
    monkeypatch.delenv("MESHRAY_ADDRESS", raising=False)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fake_node(root: str) -> Iterator[Callable[..., FakeNode]]:
    nodes = []

    def start(cluster: str = "pair", name: str = "left") -> FakeNode:
        nodes.append(FakeNode(cluster, name))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


@pytest.fixture
def meshray_command(root: str) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, prog_name="meshray")

    return run
