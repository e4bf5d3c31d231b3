"""Several sessions and one directory: notices travel late, objects are freed by anybody, sessions die.

One seed decides everything. Checked throughout: no byte of a live object is ever overwritten, every machine's
invariants hold, and when everything is freed and returned the arena is empty.
"""

from __future__ import annotations

import os
import random
from collections import deque
from typing import Any

import pytest

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.objects import (
    ExtentGranted,
    ExtentRefused,
    ObjectsFreed,
    ObjectsSealed,
    RangesFreed,
    RequestExtent,
    ReturnExtents,
    Sealed,
    SurplusWanted,
)
from meshray.store.client import ArenaClient
from meshray.store.directory import ArenaDirectory
from meshray.store.events import SessionGone

CAPACITY_BYTES = 8 * config.MIB
SEEDS = [int(os.environ["MESHRAY_SEED"])] if "MESHRAY_SEED" in os.environ else range(20)


class Full(Exception):
    """Stands for ObjectStoreFullError."""


class Memory:
    """Stands for the arena file."""

    def __init__(self) -> None:
        self.bytes = bytearray(CAPACITY_BYTES)

    def populate(self, offset: int, size_bytes: int) -> int:
        assert offset >= 0 and offset + size_bytes <= CAPACITY_BYTES
        return 0

    def write(self, offset: int, data: bytes) -> int:
        self.bytes[offset : offset + len(data)] = data
        return len(data)


class Session:
    """A client, and its notices on the way to the node."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.route = name.encode()
        self.client = ArenaClient(world.memory, self.request)  # type: ignore[arg-type]
        self.outbox: deque[Any] = deque()
        self.answer: ExtentGranted | ExtentRefused | None = None

    def request(self, size_bytes: int) -> tuple[int, int, int]:
        self.answer = None
        self.outbox.append(RequestExtent(size_bytes, 1))
        while self.answer is None:
            self.world.step()
        if isinstance(self.answer, ExtentRefused):
            raise Full(self.answer)
        return self.answer.offset, self.answer.size_bytes, self.answer.populated_bytes

    def receive(self, message: Any) -> None:
        match message:
            case ExtentGranted():
                self.answer = message
            case ExtentRefused(pending=pending):
                self.answer = None if pending else message
            case RangesFreed(ranges):
                self.client.ranges_freed(ranges)
            case SurplusWanted():
                offsets = self.client.surplus(everything=True)
                if offsets:
                    self.outbox.append(ReturnExtents(offsets))
        self.client.check()


class World:
    """One node, its sessions, and the objects that somebody still refers to."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = 0
        self.memory = Memory()
        self.directory = ArenaDirectory(CAPACITY_BYTES, "n")
        self.sessions = {f"s{index}".encode(): Session(self, f"s{index}") for index in range(3)}
        self.live: dict[bytes, tuple[int, bytes, bytes]] = {}
        """Object -> offset, content, maker's route."""
        self.made = 0

    def step(self) -> None:
        """Let one notice arrive, or time pass."""
        busy = [session for session in self.sessions.values() if session.outbox]
        self.now_ns += config.MILLISECOND_NS
        if busy:
            session = self.random.choice(busy)
            self.tell(Received(session.route, session.outbox.popleft()))
            return
        deadline_ns = self.directory.deadline_ns()
        if deadline_ns is not None:
            self.now_ns = max(self.now_ns, deadline_ns)
            self.tell(Tick())

    def tell(self, event: Any) -> None:
        effects = self.directory.handle(event, self.now_ns)
        self.directory.check()
        for effect in effects:
            assert isinstance(effect, Send)
            if effect.to in self.sessions:
                self.sessions[effect.to].receive(effect.message)

    def put(self, session: Session) -> None:
        self.made += 1
        name = b"o%d" % self.made
        content = self.random.randbytes(self.random.choice((100, 5_000, 300_000, 1_500_000)))
        try:
            offset = session.client.allocate(len(content))
        except Full:
            return
        session.client.write(offset, [(0, content)])
        self.live[name] = offset, content, session.route
        session.outbox.append(ObjectsSealed([Sealed(name, offset, len(content))]))

    def free(self, session: Session, name: bytes) -> None:
        offset, content, _ = self.live.pop(name)
        assert self.memory.bytes[offset : offset + len(content)] == content, f"{name!r} was overwritten"
        session.outbox.append(ObjectsFreed([name]))

    def die(self, route: bytes) -> None:
        """The session's last notices still arrive, in part after the news of its death."""
        session = self.sessions.pop(route)
        late = self.random.randrange(len(session.outbox) + 1)
        for index, notice in enumerate(session.outbox):
            if index == late:
                self.tell(SessionGone(route.decode(), route))
            self.tell(Received(route, notice))
        self.tell(SessionGone(route.decode(), route))

    def finish(self) -> None:
        while any(session.outbox for session in self.sessions.values()):
            self.step()
        if self.directory.deadline_ns() is not None:
            self.step()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_live_object_is_overwritten_and_no_byte_is_lost(seed: int) -> None:
    print(f"seed {seed}; repeat with: MESHRAY_SEED={seed} python -m pytest tests/sim/test_store_clients.py")
    world = World(seed)
    for _ in range(400):
        session = world.random.choice(list(world.sessions.values()))
        roll = world.random.random()
        if roll < 0.35:
            world.put(session)
        elif roll < 0.6 and world.live:
            world.free(session, world.random.choice(list(world.live)))
        elif roll < 0.62:
            offsets = session.client.surplus(everything=True)
            session.outbox.append(ReturnExtents(offsets))
        elif roll < 0.625 and len(world.sessions) > 1:
            world.die(session.route)
        else:
            world.step()
    for name in list(world.live):
        world.free(world.random.choice(list(world.sessions.values())), name)
    world.finish()
    for session in world.sessions.values():
        assert session.client.statistics()["used_bytes"] == 0
        session.outbox.append(ReturnExtents(session.client.surplus(everything=True)))
    world.finish()
    while world.directory.deadline_ns() is not None:
        world.step()
    numbers = world.directory.statistics()
    assert (numbers["used_bytes"], numbers["sealed"], numbers["extents"], numbers["ignored"]) == (0, 0, 0, 0)
