"""The world: processes on nodes, messages on their way, deaths by seed; and the course of one run.

*Pure* but for fibers. Runs in tests.

1. Messages of one connection stay in order; what a process had sent when it died arrives up to some point, the rest is
   lost. A connection between nodes that breaks swallows what is on the way of the dialogs about lifetimes.
2. The same seed gives the same run.
3. A run: traffic with deaths; traffic stops; 2 s later nothing unreachable is there; all references are dropped; 2 s
   later nothing is there at all. If connections broke, it takes until owners and workers have asked.
"""

from __future__ import annotations

import gc
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from meshray import config, serialization
from meshray.messages.objects import (
    HoldersDied,
    HoldObjects,
    HoldsDoubted,
    HoldsRegistered,
    ObjectResolved,
    ObjectsSealed,
    ReleaseObjects,
    ResolveObjects,
)
from meshray.messages.tasks import ReleaseReturns, ReturnsPinned, TasksFinished
from meshray.transport.codec import decode, encode
from tests.sim.network import MS, Clock, S
from tests.sim.reference_sim.fibers import Fiber, Fibers
from tests.sim.reference_sim.nodes import Node
from tests.sim.reference_sim.processes import Process
from tests.sim.reference_sim.programs import Program, drive, serve
from tests.sim.reference_sim.truth import Truth, Violation

DELAY_MAX_NS = 100 * MS
TRAFFIC_NS = 2 * S
FREED_NS = 2 * S
"""Within this time after the last reference has gone, everything is freed."""
HEALED_NS = FREED_NS + 2 * config.HOLDS_DOUBTED_NS
INLINE_BYTES = 200
LOST = (HoldObjects, HoldsRegistered, ReleaseObjects, HoldsDoubted, ResolveObjects, ObjectResolved, ReleaseReturns,
        ReturnsPinned)
"""What a breaking connection swallows here. Calls and answers that are lost are another matter."""


class Envelope:
    """A message on its way."""

    def __init__(self, source: str, target: str, message: Any) -> None:
        self.source, self.target, self.message, self.lost = source, target, message, False


class World:
    """One run by one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.fibers = Fibers()
        self.truth = Truth(self)
        self.stopping = False
        self.deaths = 0
        self.nodes_died = False
        self.freed_ns = FREED_NS
        self.next_token = itertools.count(1).__next__
        self.last_seq = 0
        self.nodes: dict[str, Node] = {}
        self.processes: dict[str, Process] = {}
        self.states: dict[str, list[Any]] = {}
        self.results: dict[tuple[str, int], bytes] = {}
        self.open_frames: dict[tuple[str, int, bytes], tuple[int, Program]] = {}
        self._ways: dict[tuple[str, str, bool], deque[Envelope]] = {}
        self._busy_until: dict[tuple[str, str, bool], int] = {}
        self._births = itertools.count(1)

    def next_seq(self) -> int:
        """Number a call."""
        self.last_seq += 1
        return self.last_seq

    # --- who there is --------------------------------------------------------------------------------------------

    def node(self) -> Node:
        """Start a node."""
        node = Node(self, f"node-{len(self.nodes)}")
        self.nodes[node.name] = node
        return node

    def process(self, kind: str, node: Node) -> Process:
        """Start a process."""
        name = f"{kind}-{next(self._births)}"
        self.states[name] = []
        process = self.processes[name] = Process(self, name, node)
        return process

    def living(self) -> list[Process]:
        """Return the processes that live."""
        return [process for process in self.processes.values() if process.alive]

    def callees(self) -> list[Process]:
        """Return whom one may call: also who died a moment ago, as long as nobody was born in its place."""
        return [process for process in list(self.processes.values())[-8:] if process.name.startswith("actor")]

    def lives(self, name: str) -> bool:
        """Whether a process lives."""
        return self.processes[name].alive

    def depth_of(self, process: Process) -> int:
        """How many calls this process is in the middle of."""
        return sum(1 for fiber in process.fibers if not fiber.over)

    # --- running code --------------------------------------------------------------------------------------------

    @contextmanager
    def inside(self, process: Process) -> Iterator[None]:
        """What runs in here runs in this process."""
        serialization.set_ref_hooks(process.references.info_of, process.references.restore)
        yield
        serialization.set_ref_hooks(None, None)

    def begin(self, process: Process, program: Callable[[], None]) -> None:
        """Run ``program`` as a part of ``process``, soon."""
        fiber = Fiber(program)
        process.fibers.append(fiber)
        self.after(process, self.random.choice((0, 0, 5, 40, 1500)) * MS, lambda: self._run(process, fiber))

    def _run(self, process: Process, fiber: Fiber) -> None:
        with self.inside(process):
            self.fibers.run(fiber)
            if fiber.over:
                process.fibers.remove(fiber)
            process.hand_out()
        self.settle(process)

    def settle(self, process: Process) -> None:
        """After an event of ``process``: fibers that need not wait any more go on, and the truth is compared."""
        self.truth.check_freed()
        if not process.alive:
            return
        process.rest()
        for fiber in process.fibers:
            if fiber.waits_for is not None and fiber.waits_for():
                fiber.waits_for = None
                self.after(process, 0, lambda fiber=fiber: self._run(process, fiber))  # type: ignore[misc]

    def take_turn(self, process: Process) -> None:
        """A turn of a session that nobody talks to."""
        if process.alive:
            with self.inside(process):
                process.turn()
            self.settle(process)

    def after(self, who: Process | Node, delay_ns: int, action: Callable[[], None]) -> None:
        """Do something in a while if ``who`` still lives then."""
        self.clock.after(delay_ns, lambda: action() if who.alive else None)

    def program(self, process: Process, args: tuple[Any, ...]) -> Any:
        """Run the user code of a call."""
        return serve(self, process, args)

    def close_frame(self, process: Process, seq: int, task: bytes = b"") -> None:
        """The answer of a call has left."""
        for key in [key for key in self.open_frames if key[:2] == (process.name, seq) and (not task or key[2] == task)]:
            number, program = self.open_frames.pop(key)
            self.truth.frames.pop(number)
            program.refs.clear()

    # --- messages ------------------------------------------------------------------------------------------------

    def send(self, source: Process | Node, target: str, dialog: bool, route: bytes, message: Any) -> None:
        """Carry a message. ``dialog``: on a connection that the sender opened."""
        if not source.alive:
            return
        self.truth.sent(source.name, target, message)
        if isinstance(message, TasksFinished) and isinstance(source, Process):
            for result in message.results:
                self._answer_leaves(source, result.seq)
        envelope = Envelope(source.name, target, decode(encode(message)))
        way = (source.name, target, dialog)
        self._ways.setdefault(way, deque()).append(envelope)
        arrival_ns = self.clock.now_ns + self.random.choice((MS, MS, 5 * MS, DELAY_MAX_NS)) // self.random.randint(1, 5)
        arrival_ns = max(arrival_ns, self._busy_until.get(way, 0) + 1)
        self._busy_until[way] = arrival_ns
        self.clock.at(arrival_ns, lambda: self._arrive(envelope, way, route))

    def _answer_leaves(self, process: Process, seq: int) -> None:
        for name, number, task in list(self.open_frames):
            if name == process.name and number == seq:
                self.close_frame(process, seq, task)

    def _arrive(self, envelope: Envelope, way: tuple[str, str, bool], route: bytes) -> None:
        if envelope.lost:
            return
        self._ways[way].remove(envelope)
        target: Any = self.processes.get(envelope.target) or self.nodes[envelope.target]
        if not target.alive:
            return
        self.truth.delivered(envelope.source, envelope.message)
        if isinstance(target, Node):
            target.receive(route, envelope.message)
        else:
            with self.inside(target):
                target.receive(route, envelope.message)
            self.settle(target)

    def news_of_calls(self, process: Process, gone: Process) -> None:
        """A node tells a session of lost calls, on another way than of the death."""
        def tell() -> None:
            with self.inside(process):
                process.calls_lost(gone)
            self.settle(process)

        self.after(process, self.random.randint(0, 60) * MS, tell)

    # --- deaths --------------------------------------------------------------------------------------------------

    def kill(self, process: Process, *, with_node: bool = False) -> None:
        """Kill a process; its node hears of it, unless that dies as well."""
        process.alive = False
        self.deaths += 1
        self._lose_messages(process.name)
        with self.inside(process):
            for fiber in [fiber for fiber in process.fibers if not fiber.over and fiber.program is None]:
                fiber.killed = True
                self.fibers.run(fiber)
        process.fibers.clear()
        for name, seq, task in list(self.open_frames):
            if name == process.name:
                self.close_frame(process, seq, task)
        if not with_node:
            node = process.home
            self.after(node, self.random.randint(1, 20) * MS, lambda: node.process_died(process.name))
            self.after(node, config.EXTENT_LINGER_NS, lambda: _dissolve(process))

    def kill_node(self, node: Node) -> None:
        """Kill a node with all its processes; the others hear of it after the suspicion time."""
        node.alive = False
        self.nodes_died = True
        self._lose_messages(node.name)
        for process in self.living():
            if process.home is node:
                self.kill(process, with_node=True)
        for other in self.nodes.values():
            self.after(other, config.SUSPICION_NS, lambda other=other: other.died(  # type: ignore[misc]
                HoldersDied([], (f"via://{node.name}",))))

    def _lose_messages(self, name: str) -> None:
        for (source, target, _), way in self._ways.items():
            if source == name and way:
                # A seal notice leaves in the turn of the answer that tells of it, so that both go or neither does.
                for envelope in [one for one in list(way)[self.random.randint(0, len(way)):]
                                 if not isinstance(one.message, ObjectsSealed)]:
                    envelope.lost = True
                    way.remove(envelope)
                    self.truth.vanished(source, target, envelope.message)

    def break_connections(self) -> None:
        """Nodes lose what is on the way between them, in both directions."""
        self.freed_ns = HEALED_NS
        for (source, target, _), way in self._ways.items():
            ends = [self.processes.get(name) for name in (source, target)]
            if None not in ends and ends[0].home is not ends[1].home:  # type: ignore[union-attr]
                for envelope in [one for one in way if isinstance(one.message, LOST)]:
                    envelope.lost = True
                    way.remove(envelope)

    # --- the course of a run -------------------------------------------------------------------------------------

    def violation(self, text: str) -> Violation:
        """Make an error that names the time."""
        return Violation(f"at {self.clock.now_ns / S:.3f} s: {text}")

    def pass_time(self, ns: int) -> None:
        """Let time pass."""
        over: list[bool] = []
        self.clock.after(ns, lambda: over.append(True))
        self.clock.run(lambda: bool(over), self.clock.now_ns + ns)

    def traffic(self, *, nodes: int, kills: int, node_kill: bool, breaks: int) -> None:
        """Make processes and let them go on until ``TRAFFIC_NS``, with deaths and births."""
        for _ in range(nodes):
            self.node()
        alive = list(self.nodes.values())
        for number in range(self.random.randint(1, 2)):
            self._drive(self.process("driver", alive[number % nodes]))
        for number in range(self.random.randint(2, 4)):
            self.process("actor", alive[number % nodes])
        for _ in range(kills):
            self.clock.at(self.random.randrange(TRAFFIC_NS), self._kill_one)
        for _ in range(breaks):
            self.clock.at(self.random.randrange(TRAFFIC_NS), self.break_connections)
        if node_kill:
            self.clock.at(self.random.randrange(TRAFFIC_NS), lambda: self.kill_node(alive[-1]))
        self.pass_time(TRAFFIC_NS)

    def _drive(self, process: Process) -> None:
        self.begin(process, lambda: drive(self, process))

    def _kill_one(self) -> None:
        victims = [process for process in self.living() if process.name != "driver-1"]
        if victims:
            victim = self.random.choice(victims)
            self.kill(victim)
            born = self.process("actor", victim.home)
            if victim.name.startswith("driver"):
                self._drive(born)

    @staticmethod
    def _is_busy(process: Process) -> bool:
        return bool(process.fibers or process.outcomes.pending)

    def finish(self) -> None:
        """Stop, and compare what is left with the truth."""
        self.stopping = True
        patience_ns = self.clock.now_ns + config.SUSPICION_NS + 30 * S
        if not self.clock.run(lambda: not any(map(self._is_busy, self.living())), patience_ns):
            stuck = {process.name: len(process.fibers) for process in self.living() if self._is_busy(process)}
            raise self.violation(f"programs wait for ever in {stuck}")
        if self.nodes_died:
            self.pass_time(config.SUSPICION_NS)
        if self.deaths:
            gc.collect()  # exceptions that programs met hold their frames in cycles
        self.pass_time(self.freed_ns)
        self.truth.check_kept()
        for state in self.states.values():
            state.clear()
        self.pass_time(self.freed_ns)
        self.truth.check_kept()
        left = {process.name: found for process in self.living() if (found := process.leftovers())}
        if left:
            raise self.violation(f"everything was dropped, but there is left: {left}")
        memory = {node.name: node.sealed or node.memory for node in self.nodes.values() if node.alive and node.memory}
        if memory:
            raise self.violation(f"everything was dropped, but memory is in use: {memory}")


def _dissolve(process: Process) -> None:
    """Extents of a dead process: what is not sealed by now is free."""
    node = process.home
    sealed = {location.offset for location, _, _ in node.sealed.values()}
    for offset in process.arena.mine:
        if offset not in sealed:
            node.memory.pop(offset, None)


def run(seed: int) -> World:
    """Run one seed. Raise Violation."""
    usual = config.INLINE_BYTES_MAX
    config.INLINE_BYTES_MAX = INLINE_BYTES
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()
    world = World(seed)
    try:
        kills = (0, 1, 2, 6)[seed % 4]
        world.traffic(nodes=1 + seed % 3, kills=kills, node_kill=seed % 3 == 2 and seed % 5 == 0,
                      breaks=10 if seed % 7 == 3 else 0)
        world.finish()
    finally:
        for process in world.processes.values():
            if process.fibers:
                world.kill(process, with_node=True)
        world.fibers.close()
        config.INLINE_BYTES_MAX = usual
        gc.unfreeze()
        if collecting:
            gc.enable()
    return world
