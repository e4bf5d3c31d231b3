"""The bulk sockets of a network: who gets in, with and without encryption, and who not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from meshray.messages.objects import ChunksRefused, RequestChunks
from meshray.node_config import Network
from meshray.transport.bulk_sockets import BulkSockets
from meshray.transport.codec import decode, encode
from meshray.transport.curve import AllowList, KeyPair

REQUEST = encode(RequestChunks(b"x", [0], b"guess"))
REFUSED = encode(ChunksRefused(b"x", [0]))


class Place:
    """A node's bulk sockets on loopback."""

    def __init__(self, directory: Path, name: str, *, encrypted: bool = True) -> None:
        self.pair = KeyPair.make(name)
        self.pair.save(str(directory / f"{name}.key"))
        self.allowed = AllowList()
        network = Network(key_file=str(directory / f"{name}.key"), bulk_encryption=encrypted)
        self.sockets = BulkSockets("ipc://unused", network, self.allowed)

    def answer_all(self) -> int:
        """Refuse what waits; return how many requests there were."""
        requests = self.sockets.requests(10)
        for route, _ in requests:
            self.sockets.answer(route, REFUSED)
        return len(requests)


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Place]:
    made: list[Place] = []

    def make(name: str, *, encrypted: bool = True) -> Place:
        made.append(Place(tmp_path, name, encrypted=encrypted))
        return made[-1]

    yield make  # type: ignore[misc]
    for each in made:
        each.sockets.close()


def is_answered(holder: Place, asker: Place, *, tries: int = 300) -> bool:
    asker.sockets.ask("holder", holder.sockets.endpoint, REQUEST)
    for _ in range(tries):
        holder.sockets.wait(10)
        holder.answer_all()
        if asker.sockets.answers(1):
            return True
    return False


@pytest.mark.parametrize("encrypted", [True, False])
def test_nodes_reach_each_other(place: Callable[..., Place], encrypted: bool) -> None:
    holder, asker = place("holder", encrypted=encrypted), place("asker")
    holder.allowed.allow("asker", asker.pair.public)
    assert ("#" + holder.pair.public in holder.sockets.endpoint) == encrypted
    assert is_answered(holder, asker)


def test_a_key_that_is_not_allowed_gets_nothing_and_one_that_is_revoked_gets_nothing_more(
        place: Callable[..., Place]) -> None:
    holder, asker, stranger = place("holder"), place("asker"), place("stranger")
    holder.allowed.allow("asker", asker.pair.public)
    assert not is_answered(holder, stranger, tries=20)
    assert is_answered(holder, asker)
    holder.allowed.revoke(asker.pair.public)
    assert not is_answered(holder, asker, tries=20), "also not over the connection that it has"


def test_an_asker_talks_to_the_owner_of_the_key_only(place: Callable[..., Place]) -> None:
    holder, asker, impostor = place("holder"), place("asker"), place("impostor")
    for each in (holder, impostor):
        each.allowed.allow("asker", asker.pair.public)
    address = impostor.sockets.endpoint.partition("#")[0]
    asker.sockets.ask("holder", f"{address}#{holder.pair.public}", REQUEST)
    for _ in range(20):
        impostor.sockets.wait(10)
        assert impostor.answer_all() == 0


def test_without_a_key_a_guarded_socket_says_nothing(place: Callable[..., Place]) -> None:
    holder = place("holder")
    context = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(holder.sockets.endpoint.partition("#")[0])
    plain.send(REQUEST)
    for _ in range(20):
        holder.sockets.wait(10)
        assert holder.answer_all() == 0
    assert not plain.poll(0)
    plain.close()
    context.term()


def test_a_port_that_is_taken_is_named(place: Callable[..., Place], tmp_path: Path) -> None:
    holder = place("holder")
    port = int(holder.sockets.endpoint.partition("#")[0].rpartition(":")[2])
    network = Network(key_file=str(tmp_path / "holder.key"), bulk_port=port)
    with pytest.raises(OSError, match=f"cannot listen at tcp://127.0.0.1:{port}"):
        BulkSockets("ipc://unused", network, AllowList())
    assert decode(REFUSED) == ChunksRefused(b"x", [0])
