"""Dialogs of ``Peers`` over Unix sockets: what is opened again under a name that was used before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator

import pytest

from meshray.transport.sockets import Peers, process_endpoint

DEADLINE_MS = 5000


@pytest.fixture
def peers() -> Iterator[Callable[[str], Peers]]:
    directory = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    made: list[Peers] = []

    def open_peers(name: str) -> Peers:
        made.append(Peers(name, process_endpoint(directory, name)))
        return made[-1]

    yield open_peers
    for each in made:
        each.close()
    os.rmdir(directory)


def take(peer):
    assert peer.wait(DEADLINE_MS), "nothing came"
    (message,) = peer.receive(1)
    return message


@pytest.mark.parametrize("closes", [True, False], ids=["closed between", "moved"])
def test_a_name_leads_elsewhere_at_once(peers, closes):
    caller, first, second = peers("a"), peers("b"), peers("c")
    for _ in range(20):
        for target in (first, second):
            route = caller.connect("x", target.endpoint)
            assert route == b">x"
            assert caller.send(route, b"question")
            assert take(target) == [b"a", b"question"]
            assert target.send(b"a", b"answer")
            assert take(caller) == [b">x", b"answer"]
            if closes:
                caller.disconnect("x")
                assert not caller.send(route, b"nobody is there")
