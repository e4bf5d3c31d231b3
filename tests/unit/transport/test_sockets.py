"""``Peers`` over Unix sockets: names that are used again, and what waiting tells."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from meshray import config
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


def test_another_name_at_an_endpoint_takes_the_place_of_the_one_before(peers):
    caller, first = peers("a"), peers("b")
    caller.connect("old", first.endpoint)
    first.close()
    second = Peers("c", first.endpoint)
    try:
        route = caller.connect("new", second.endpoint)
        for text in (b"one", b"two"):
            assert caller.send(route, text)
            assert take(second) == [b"a", text]
            caller.disconnect("old")
    finally:
        second.close()


def test_who_was_at_our_endpoint_before_us_is_gone(peers):
    caller, later = peers("a"), peers("b")
    route = later.connect("before", later.endpoint)
    assert not later.send(route, b"nobody is there")
    later.disconnect("before")
    assert caller.send(caller.connect("b", later.endpoint), b"do you listen?")
    assert take(later) == [b"a", b"do you listen?"]


def test_a_process_may_talk_to_itself(peers):
    alone = peers("a")
    route = alone.connect("a", alone.endpoint)
    assert alone.send(route, b"an actor calls itself")
    assert take(alone) == [b"a", b"an actor calls itself"]


def test_waiting_says_which_descriptors_are_readable(peers):
    sender, receiver = peers("a"), peers("b")
    pipes = [os.pipe() for _ in range(2)]
    for read_end, _ in pipes:
        receiver.watch_fd(read_end)
    try:
        assert not receiver.wait(0)
        assert not receiver.readable
        os.write(pipes[1][1], b"x")
        assert not receiver.wait(DEADLINE_MS)
        assert list(receiver.readable) == [pipes[1][0]]
        sender.send(sender.connect("b", receiver.endpoint), b"both")
        while not receiver.wait(DEADLINE_MS):
            assert list(receiver.readable) == [pipes[1][0]]
        assert list(receiver.readable) == [pipes[1][0]]
        os.read(pipes[1][0], 1)
        assert take(receiver) == [b"a", b"both"]
        assert not receiver.readable
    finally:
        for read_end, write_end in pipes:
            receiver.unwatch_fd(read_end)
            os.close(read_end)
            os.close(write_end)


@pytest.mark.parametrize("name, patient", [("shard-0-0", False), ("node", False), ("worker-3f2a9c1d0b7e", True)])
def test_who_comes_back_under_its_name_is_looked_for_often(peers, name, patient):
    """The pauses between attempts double; what ZeroMQ tells as the value of each event is the next one, in ms."""
    caller = peers("a")
    monitor = caller.socket.get_monitor_socket(zmq.EVENT_CONNECT_RETRIED)
    caller.connect(name, caller.endpoint + "-of-nobody")
    pauses_ms = []
    for _ in range(8):
        assert monitor.poll(DEADLINE_MS), "no further attempt"
        pauses_ms.append(recv_monitor_message(monitor)["value"])
    caller.socket.disable_monitor()
    monitor.close(linger=0)
    longest_ms = config.RECONNECT_SERVICE_MAX_NS // config.MILLISECOND_NS
    assert (max(pauses_ms) > 2 * longest_ms) == patient, pauses_ms
