"""A node that ends and starts again at its port, with its key, under a new id: nobody takes it for the one before."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.node_config import Network
from meshray.transport.curve import AllowList, KeyPair
from meshray.transport.links import Links
from meshray.transport.sockets import Peers, process_endpoint
from meshray.transport.switch import Switch

from .support import wait_until


class Mesh:
    """Nodes without anything behind their sockets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pairs = {name: KeyPair.make(name) for name in ("a", "b")}
        self.running: list[Switch] = []
        for name, pair in self.pairs.items():
            pair.save(self.key_file(name))

    def key_file(self, name: str) -> str:
        return str(self.directory / f"{name}.key")

    def start(self, node: str, name: str, port: int = 0) -> Switch:
        run_dir = self.directory / node
        run_dir.mkdir()
        allowed = AllowList({other: pair.public for other, pair in self.pairs.items()})
        links = Links(node, Network(key_file=self.key_file(name), control_port=port), allowed)
        switch = Switch(Peers(node, process_endpoint(str(run_dir), "node")), links, node=node, node_name=name,
                        run_dir=str(run_dir))
        self.running.append(switch)
        return switch

    def end(self, switch: Switch) -> None:
        self.running.remove(switch)
        switch.close()

    def take(self, switch: Switch, *, what: str) -> list[bytes]:
        """The next message of a node, while all of them are served."""
        found: list[list[bytes]] = []

        def came() -> bool:
            for each in self.running:
                messages = each.receive(100)
                found.extend(messages if each is switch else [])
            return bool(found)

        wait_until(came, what=what)
        assert len(found) == 1, found
        return found[0]

    def ask(self, one: Switch, node: str, other: Switch) -> None:
        """A question and its answer go through."""
        assert one.send(b">" + node.encode(), b"question")
        assert self.take(other, what="the question") == [one.name.encode(), b"question"]
        assert other.send(one.name.encode(), b"answer")
        assert self.take(one, what="the answer") == [b">" + node.encode(), b"answer"]


@pytest.fixture
def mesh(tmp_path):
    mesh = Mesh(tmp_path)
    yield mesh
    for switch in mesh.running:
        switch.close()


def port_of(switch: Switch) -> int:
    return int(switch.links.endpoint.partition("#")[0].rpartition(":")[2])


def test_what_was_sent_to_a_node_that_is_gone_comes_back_from_its_successor(mesh):
    a, first = mesh.start("node-a", "a"), mesh.start("node-b1", "b")
    a.connect("node-b1", first.links.endpoint)
    mesh.ask(a, "node-b1", first)
    port = port_of(first)
    mesh.end(first)
    second = mesh.start("node-b2", "b", port)
    a.send(b">node-b1", b"late")

    def bounced() -> bool:
        assert not second.receive(100)
        assert not a.receive(100)
        if not a.bounced:
            a.send(b">node-b1", b"late")  # a message may be lost with the connection that ends
        return bool(a.bounced)

    wait_until(bounced, what="the message to come back")
    assert a.bounced.popleft() == (b">node-b1", b"late")
    while a.bounced:
        a.bounced.popleft()

    a.connect("node-b2", second.links.endpoint)
    mesh.ask(a, "node-b2", second)
    a.disconnect("node-b1")
    mesh.ask(a, "node-b2", second)


def test_a_node_that_calls_first_and_its_predecessor_share_a_link(mesh):
    a, first = mesh.start("node-a", "a"), mesh.start("node-b1", "b")
    a.connect("node-b1", first.links.endpoint)
    mesh.ask(a, "node-b1", first)
    port = port_of(first)
    mesh.end(first)
    second = mesh.start("node-b2", "b", port)
    second.connect("node-a", a.links.endpoint)
    mesh.ask(second, "node-a", a)
    a.connect("node-b2", second.links.endpoint)
    assert a.links._names["node-b1"] is a.links._names["node-b2"]
    a.disconnect("node-b1")
    mesh.ask(a, "node-b2", second)
    mesh.ask(second, "node-a", a)


def test_a_node_does_not_call_its_predecessor_which_would_be_itself(mesh):
    """Others tell it of the node that was at its port before, and later that this one is gone."""
    a, first = mesh.start("node-a", "a"), mesh.start("node-b1", "b")
    endpoint, port = first.links.endpoint, port_of(first)
    mesh.end(first)
    second = mesh.start("node-b2", "b", port)
    second.connect("node-b1", endpoint)
    assert not second.send(b">node-b1", b"anybody there?")
    second.disconnect("node-b1")
    a.connect("node-b2", second.links.endpoint)
    mesh.ask(a, "node-b2", second)
