"""What strangers get from a cluster with a network: nothing, on any port of any process, and nobody is hurt.

Each test ends with a task across both nodes: whatever was tried, the cluster still answers.
"""

from __future__ import annotations

import ast
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

import meshray
from meshray import config
from meshray.messages.node import Ping
from meshray.node_config import Network
from meshray.transport import connections, relay
from meshray.transport.codec import encode
from meshray.transport.curve import AllowList, KeyPair, be_client
from meshray.transport.endpoints import Tcp, parse
from meshray.transport.links import Links

from .networked import Hosts
from .support import processes_of, run_root, wait_until

pytestmark = pytest.mark.limit_s(120)
SILENCE_MS = 400
PIECE = bytes(2**15)
"""Small enough that it is copied: pyzmq's collector of larger ones is a context that stays for the process's life."""
FLOOD_BYTES = 64 * 2**20
ELSEWHERE = {"meshray.processes.worker"}
"""What the service module imports for the zygote's process only."""
PICKLES = ("pickle", "cloudpickle", "marshal", "dill", "shelve")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Hosts, str]]:
    with run_root() as root:
        made = Hosts(root)
        try:
            made.start()
            made.head.join()
            yield made, root
        finally:
            meshray.shutdown()
            made.stop()


@pytest.fixture(autouse=True)
def unhurt(cluster):
    yield
    assert across() == {"left", "right"}


def across():
    """Run a task on each side."""

    @meshray.remote
    def side(name):
        return name

    return set(meshray.get([side.options(resources={name: 1}).remote(name) for name in ("left", "right")], timeout=30))


def listening(root):
    """Every TCP port that a process of the cluster listens on: (pid, title, port)."""
    found = []
    for pid, title in processes_of(root).items():
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.append((pid, title, connection.laddr.port))
    return found


def memory_bytes(hosts):
    """What the nodes hold for themselves: they are who strangers talk to."""
    status = [Path(f"/proc/{host.file.pid}/status").read_text() for host in hosts.hosts.values()]
    return sum(int(text.partition("RssAnon:")[2].split()[0]) * 1024 for text in status)


def dealer(context, address, pair=None, server_key=""):
    visitor = context.socket(zmq.DEALER)
    visitor.setsockopt(zmq.LINGER, 0)
    if pair is not None:
        be_client(visitor, pair, server_key)
    visitor.connect(address)
    return visitor


def hello(name="node-stranger"):
    return relay.encode_news(relay.LinkNews(name))


def question(node, source="node-stranger"):
    return [relay.encode(relay.Envelope(relay.OPENING, node, "node", source, "node")), encode(Ping(7))]


def test_only_nodes_listen_and_on_their_ports_only(cluster):
    hosts, root = cluster
    ports = listening(root)
    assert {port for _, _, port in ports} >= {parse(host.file.control).port for host in hosts.hosts.values()}
    nodes = {host.file.pid for host in hosts.hosts.values()}
    assert {pid for pid, _, _ in ports} == nodes, f"somebody else listens: {ports}"
    assert all(sum(1 for each, _, _ in ports if each == pid) <= 2 for pid in nodes), f"more than two ports: {ports}"


@pytest.mark.parametrize("kind", ["plain", "unknown key", "stolen public half"])
def test_strangers_with_zeromq_get_nothing(cluster, kind):
    hosts, root = cluster
    stranger = KeyPair.make("stranger")
    context = zmq.Context()
    visitors = []
    try:
        for pid, _, port in listening(root):
            host = next(host for host in hosts.hosts.values() if host.file.pid == pid)
            friend = hosts.hosts["right" if host.name == "left" else "left"].pair
            pair = {"plain": None, "unknown key": stranger,
                    "stolen public half": KeyPair("x", friend.public, stranger.secret)}[kind]
            visitor = dealer(context, f"tcp://127.0.0.1:{port}", pair, host.pair.public)
            visitors.append(visitor)
            visitor.send(hello())
            visitor.send_multipart(question(host.file.node))
        for visitor in visitors:
            assert not visitor.poll(SILENCE_MS), f"an answer: {visitor.recv_multipart()}"
    finally:
        for visitor in visitors:
            visitor.close(linger=0)
        context.destroy(linger=0)


def greeting(mechanism):
    """The greeting of ZMTP 3.1."""
    return (b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x01" + mechanism.ljust(20, b"\0") + b"\0" + b"\0" * 31)


@pytest.mark.parametrize("kind", ["noise", "oversized command", "oversized message", "endless greeting", "nothing"])
def test_raw_bytes_hurt_nobody(cluster, kind):
    hosts, root = cluster
    before = memory_bytes(hosts)
    ports = [port for _, _, port in listening(root)]
    opened = []
    for port in ports * 4:
        raw = socket.create_connection(("127.0.0.1", port), timeout=5)
        opened.append(raw)
        try:
            if kind == "noise":
                raw.sendall(os.urandom(2**16))
            elif kind == "endless greeting":
                raw.sendall(b"\xff" * 2**20)
            elif kind != "nothing":
                flag = b"\x06" if kind == "oversized command" else b"\x02"
                raw.sendall(greeting(b"CURVE") + flag + struct.pack(">Q", 2**40))
                for _ in range(FLOOD_BYTES // 2**20 // len(ports)):
                    raw.sendall(b"\0" * 2**20)
        except OSError:
            continue  # it hung up, as it should
    assert across() == {"left", "right"}
    for raw in opened:
        raw.close()
    wait_until(lambda: memory_bytes(hosts) - before < FLOOD_BYTES // 2, what="the flood has left no memory behind")


class Insider:
    """Somebody with an allowed key who does not play by the rules."""

    def __init__(self, hosts: Hosts) -> None:
        self.right = hosts.hosts["right"]
        self.target = hosts.head.file
        self.context = zmq.Context()
        self.socket = dealer(self.context, Tcp("127.0.0.1", hosts.port, "").address, self.right.pair,
                             hosts.head.pair.public)

    def answers(self):
        return self.socket.recv_multipart() if self.socket.poll(SILENCE_MS) else None

    def close(self):
        self.socket.close(linger=0)
        self.context.destroy(linger=0)


@pytest.fixture
def insider(cluster):
    made = Insider(cluster[0])
    yield made
    made.close()


def test_an_insider_is_answered(insider):
    insider.socket.send(hello("node-insider"))
    insider.socket.send_multipart(question(insider.target.node, "node-insider"))
    wait_until(lambda: (parts := insider.answers()) and parts[0][:4] == relay.SIGNATURE, what="an answer")


def test_an_insider_cannot_take_another_nodes_name(insider, cluster):
    hosts, _ = cluster
    insider.socket.send(hello(hosts.head.file.node))
    insider.socket.send_multipart(question(insider.target.node, hosts.head.file.node))
    assert insider.answers() is None


def test_an_insider_cannot_speak_for_another_node(insider, cluster):
    hosts, _ = cluster
    insider.socket.send(hello("node-insider"))
    assert insider.answers() is not None
    insider.socket.send_multipart(question(insider.target.node, hosts.head.file.node))
    insider.socket.send_multipart([relay.encode(relay.Envelope(
        relay.OPENING, insider.target.node, "node", "node-insider", "driver-1")), encode(Ping(7))])
    assert insider.answers() is None


def test_an_insiders_oversized_frame_ends_its_connection_only(insider, cluster):
    hosts, _ = cluster
    before = memory_bytes(hosts)
    insider.socket.send(hello("node-insider"))
    assert insider.answers() is not None
    insider.socket.send_multipart([question(insider.target.node)[0], b"\0" * (config.NETWORK_FRAME_BYTES_MAX + 1)])
    assert across() == {"left", "right"}
    wait_until(lambda: memory_bytes(hosts) - before < FLOOD_BYTES // 2, what="the frame has left no memory behind")


def test_malformed_messages_of_an_insider_are_dropped(insider):
    insider.socket.send(hello("node-insider"))
    assert insider.answers() is not None
    for parts in ([b"MRE\x01"], [b"MRE\x01\xff", b"x"], [b"junk", b"junk"], [b"MRL\x01\xff"], [b"", b""],
                  [question(insider.target.node, "node-insider")[0], b"junk"]):
        insider.socket.send_multipart(parts)
    assert insider.answers() is None


def network(tmp_path, name, allowed):
    pair = KeyPair.make(name)
    pair.save(str(tmp_path / f"{name}.key"))
    return pair, Network(key_file=str(tmp_path / f"{name}.key"), allowed=allowed)


@pytest.fixture
def two_links(tmp_path):
    """The TCP sides of two nodes that let each other in."""
    pairs = {name: KeyPair.make(name) for name in ("a", "b")}
    made = {}
    for name, pair in pairs.items():
        path = str(tmp_path / f"{name}.key")
        pair.save(path)
        made[name] = Links(f"node-{name}", Network(key_file=path), AllowList(
            {other: each.public for other, each in pairs.items()}))
    made["a"].learn("node-b", made["b"].endpoint)
    yield made["a"], made["b"]
    for links in made.values():
        links.close()


def take(links, wait_ms=5000):
    """What the links bring within the time, if anything."""
    while links.socket.poll(wait_ms):
        taken = links.receive()
        if taken is not None:
            return taken
    return None


def parts(text=b"x"):
    return [relay.encode(relay.Envelope(relay.OPENING, "node-b", "node", "node-a", "node")), text]


def test_with_the_gate_gone_nobody_is_let_in(two_links):
    a, b = two_links
    b._gate.close()
    assert a.send("node-b", parts())
    assert take(b, SILENCE_MS) is None


def test_a_revoked_peer_is_cut_off_while_connected(two_links):
    a, b = two_links
    assert a.send("node-b", parts())
    assert take(b) is not None
    b.allowed.when_revoked(b.revoke)
    port = parse(b.endpoint).port
    assert connections.accepted(port)
    b.allowed.revoke(a._pair.public)
    assert a.send("node-b", parts())
    assert take(b, SILENCE_MS) is None
    assert not b.send("node-a", parts())


def test_a_peer_that_stops_reading_costs_only_itself(two_links, monkeypatch):
    a, _ = two_links
    monkeypatch.setattr(config, "LINK_BYTES_MAX", 2**20)
    monkeypatch.setattr(config, "LINK_STALL_NS", 0)
    assert a.send("node-b", parts())
    sent = 0
    while a.send("node-b", parts(PIECE)):
        sent += 1
        assert sent < 100, "there is no end to what may be on the way"
    assert sent >= 15
    assert not a._names["node-b"].route, "the connection is dropped"
    assert a.send("node-b", parts()), "and may be opened again"


def test_a_peer_that_reads_may_be_sent_more(two_links, monkeypatch):
    a, b = two_links
    monkeypatch.setattr(config, "LINK_BYTES_MAX", 4 * 2**20)
    for _ in range(200):
        assert a.send("node-b", parts(PIECE))
        assert take(b) is not None
        while a.socket.poll(0):
            a.receive()


def imports_of(module, seen):
    """The modules of the package that this one imports, at load or in functions, with all below them."""
    if module in seen or module in ELSEWHERE:
        return seen
    path = Path(meshray.__file__).parent.joinpath(*module.split(".")[1:])
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    if not file.exists():
        return seen
    seen[module] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            seen[module].add(name)
            if name.startswith("meshray."):
                imports_of(name, seen)
    return seen


@pytest.mark.parametrize("module", ["meshray.processes.node_process", "meshray.processes.shard",
                                    "meshray.processes.global_scheduler", "meshray.transport.switch"])
def test_control_processes_never_unpickle(module):
    found = {name: used & set(PICKLES) for name, used in imports_of(module, {}).items() if used & set(PICKLES)}
    assert not found, f"{module} reaches a pickle: {found}"
