"""When the host asks its machine for a deadline, and what it makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from meshray.machine import Received, Send, Tick
from meshray.messages.node import Ping, Pong
from meshray.transport.codec import encode
from meshray.transport.host import Host

MS = 1_000_000
PEER = b"peer"


class Wire:
    """A socket with nobody behind it."""

    name = "host"
    endpoint = ""

    def __init__(self) -> None:
        self.bounced: deque[tuple[bytes, bytes]] = deque()
        self.readable: Sequence[int] = ()
        self.waiting: list[list[bytes]] = []
        self.slept_ms: list[int] = []
        self.there = True

    def connect(self, name: str, endpoint: str) -> bytes:
        return b""

    def disconnect(self, name: str) -> None:
        return

    def send(self, route: bytes, frame: bytes, *buffers: Any) -> bool:
        return self.there

    def receive(self, count_max: int, *, ready: bool = False) -> list[list[bytes]]:
        taken, self.waiting = self.waiting, []
        return taken

    def wait(self, timeout_ms: int) -> bool:
        self.slept_ms.append(timeout_ms)
        return bool(self.waiting)

    def watch_fd(self, fd: int) -> None:
        return

    def unwatch_fd(self, fd: int) -> None:
        return

    def close(self, linger_ms: int = 0) -> None:
        return


class Machine:
    """Answers everything, and is due so many milliseconds after the last event as that event says."""

    def __init__(self) -> None:
        self.due_ns: int | None = None
        self.asked = 0
        self.events: list[Any] = []

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        self.events.append(event)
        if type(event) is Tick:
            self.due_ns = None
            return []
        if type(event) is not Received:
            self.due_ns = now_ns + 3 * MS
            return []
        self.due_ns = now_ns + event.message.cookie * MS
        return [Send(PEER, Pong(1))]

    def deadline_ns(self) -> int | None:
        self.asked += 1
        return self.due_ns

    def check(self) -> None:
        return

    def statistics(self) -> dict[str, int]:
        return {}


def made() -> tuple[Host, Machine, Wire]:
    machine, wire = Machine(), Wire()
    return Host(machine, wire, clock_ns=lambda: 0), machine, wire


def ping(after_ms: int) -> list[bytes]:
    return [PEER, encode(Ping(after_ms))]


def test_a_machine_is_asked_once_for_each_turn_in_which_it_handled_something() -> None:
    host, machine, wire = made()
    host.turn(1000)
    assert machine.asked == 1
    for turn in range(5):
        wire.waiting = [ping(40), ping(50)]
        host.turn(1000)
        assert machine.asked == 2 + turn
    for _ in range(5):
        host.turn(1000)
    assert machine.asked == 6, "nothing was handled since"
    assert wire.slept_ms == [1000, 1000, *[50] * 9]


def test_a_deadline_that_has_come_is_a_tick_in_the_same_turn_and_is_asked_for_anew() -> None:
    host, machine, wire = made()
    wire.waiting = [ping(0)]
    host.turn(1000)
    assert [type(event) for event in machine.events] == [Received, Tick]
    host.turn(1000)
    assert wire.slept_ms == [1000, 1000]


def test_events_that_come_from_what_was_done_move_the_deadline() -> None:
    host, _, wire = made()
    wire.waiting, wire.there = [ping(70)], False
    host.turn(1000)
    host.turn(1000)
    assert wire.slept_ms == [1000, 3], "the answer could not be delivered, and the machine waits for something else"


def test_who_lets_the_machine_handle_something_by_itself_is_heard() -> None:
    host, machine, wire = made()
    host.turn(1000)
    effects = machine.handle(Received(PEER, Ping(20)), 0)
    host.apply(effects, 0)
    host.turn(1000)
    assert wire.slept_ms == [1000, 20]
