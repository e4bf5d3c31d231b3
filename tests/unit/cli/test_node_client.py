"""A tool's dialog with a node: answers, silence, death, and nothing left."""

from __future__ import annotations

import os
import threading

import pytest

from meshray.errors import ClusterNotFoundError, NodeDiedError
from meshray.messages.state import DescribeCluster, StopCluster
from meshray.processes.tool import NodeClient, is_listening


def test_describe_and_stop(fake_node):
    node = fake_node()
    node.rows = {"nodes": [{"node": "node-left"}]}
    node.missing = ["node-right"]
    with NodeClient(node.endpoint) as client:
        assert client.describe(["nodes", "actors"], limit=7) == {"nodes": [{"node": "node-left"}], "actors": []}
        assert client.missing == ["node-right"]
        assert client.stop("enough") == [node.process.pid]
    asked, stop = node.asked
    assert (asked.topics, asked.limit) == (["nodes", "actors"], 7)
    assert isinstance(asked, DescribeCluster) and isinstance(stop, StopCluster) and stop.reason == "enough"


def test_own_socket_is_private_and_goes(fake_node):
    node = fake_node()
    before = set(os.listdir(node.run_dir))
    client = NodeClient(node.endpoint)
    (own,) = set(os.listdir(node.run_dir)) - before
    assert own.startswith("tool-") and os.stat(os.path.join(node.run_dir, own)).st_mode & 0o077 == 0
    client.close()
    client.close()
    assert set(os.listdir(node.run_dir)) == before


def test_no_node(root):
    with pytest.raises(ClusterNotFoundError, match=r"no node answers at ipc://.*meshray up"):
        NodeClient(f"ipc://{root}/node.sock")


def test_silent_node(fake_node):
    node = fake_node()
    node.silent = True
    with NodeClient(node.endpoint, timeout_s=0.05) as client, pytest.raises(NodeDiedError, match=r"within 0.05 s"):
        client.describe(["nodes"])


def test_node_that_dies_meanwhile(fake_node):
    node = fake_node()
    node.silent = True
    with NodeClient(node.endpoint, timeout_s=60) as client:
        killer = threading.Thread(target=node.close)
        killer.start()
        with pytest.raises(NodeDiedError, match="died before it answered DescribeCluster"):
            client.describe(["nodes"])
        killer.join()


def test_listening(fake_node, root):
    node = fake_node()
    assert is_listening(node.endpoint)
    node.close()
    assert not is_listening(node.endpoint)
    assert is_listening("tcp://elsewhere:1")
