"""What the simulated user code does: random, but by the world's seed.

*Pure.* Runs in fibers, in tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshray import config, errors
from meshray.ids import object_id
from meshray.object_ref import PENDING, ObjectRef
from meshray.session import getting
from tests.sim.network import MS, S
from tests.sim.reference_sim.fibers import Killed

if TYPE_CHECKING:
    from tests.sim.reference_sim.processes import Process
    from tests.sim.reference_sim.world import World

DEPTH_MAX = 3
"""Calls inside calls."""
_REFS_MAX = 3
PATIENCE_NS = 3 * S + config.SUSPICION_NS
"""How long a program waits for a value; what is there, or will never be, is told sooner."""


class Program:
    """One piece of user code: a driver's main program, or a call."""

    def __init__(self, world: World, process: Process, refs: list[ObjectRef]) -> None:
        self.world, self.process, self.refs = world, process, refs
        self.random = world.random

    def some(self) -> list[ObjectRef]:
        """Return a few of the references at hand."""
        at_hand = [*self.refs, *self.world.states[self.process.name]]
        return self.random.sample(at_hand, min(len(at_hand), self.random.randint(0, _REFS_MAX)))

    def step(self) -> None:
        """Do one random thing."""
        self.random.choice((self.put, self.put, self.call, self.call, self.call, self.get, self.get, self.keep,
                            self.drop, self.drop, self.forget, self.sleep))()

    def value(self, refs: list[ObjectRef]) -> tuple[int, list[ObjectRef], bytes]:
        """Return a new value, small or large."""
        padding = b"." * (2 * config.INLINE_BYTES_MAX if self.random.random() < 0.4 else 4)
        return self.world.next_token(), refs, padding

    def put(self) -> None:
        """Put a value with references in it."""
        context = self.process.context()
        ref = ObjectRef(PENDING, None, None, context.prefix(), context.next_index(), 0xFFFF)
        value = self.value(self.some())
        self.world.truth.made(self.process, ref)
        self.world.truth.filled(ref.binary(), value[0], value[1])
        self.process.objects.put(ref, value)
        self.refs.append(ref)

    def call(self) -> None:
        """Call a process with references as arguments and inside arguments, perhaps large ones."""
        world = self.world
        if world.stopping or self.world.depth_of(self.process) >= DEPTH_MAX:
            return
        callee = self.random.choice(world.callees())
        nested, direct = self.some(), self.some()[:2]
        args = ("." * (2 * config.INLINE_BYTES_MAX if self.random.random() < 0.2 else 1), nested, *direct)
        ref = self.process.submit(callee, args)
        seq = world.last_seq
        world.truth.called(self.process, seq, callee, ref, [*nested, *direct])
        world.results[self.process.name, seq] = ref.binary()
        self.refs.append(ref)
        self.process.hand_out()

    def get(self) -> None:
        """Read a value, and take some of the references inside."""
        refs = self.some()[:1]
        if not refs:
            return
        if not self._wait(refs[0]):
            return
        try:
            value = getting.value_of(self.process, refs[0])  # type: ignore[arg-type]
        except errors.MeshrayError as error:
            self.world.truth.not_read(self.process, refs[0], error)
            return
        self.world.truth.read(self.process, refs[0], value)
        self.refs += self.random.sample(value[1], self.random.randint(0, len(value[1])))

    def _wait(self, ref: ObjectRef) -> bool:
        """Wait for a value, but not for ever: random programs wait for each other in circles."""
        getting.ask_owners(self.process, [ref])  # type: ignore[arg-type]
        self.process.block_until(lambda: ref._state != PENDING, self.process.now_ns + PATIENCE_NS)
        if ref._state == PENDING:
            self.world.truth.waited_in_vain(self.process, ref)
        return ref._state != PENDING

    def keep(self) -> None:
        """Keep something beyond this call."""
        self.world.states[self.process.name] += self.some()

    def drop(self) -> None:
        """Drop something."""
        if self.refs:
            self.refs.pop(self.random.randrange(len(self.refs)))

    def forget(self) -> None:
        """Do not keep something any longer."""
        state = self.world.states[self.process.name]
        if state:
            self.refs[:] = [*self.refs[-1:], state.pop(self.random.randrange(len(state)))]

    def sleep(self) -> None:
        """Let time pass, now and then more than dead holders linger."""
        until_ns = self.process.now_ns + self.random.choice((1, 10, 30, 80, 1500)) * MS
        self.process.block_until(lambda: False, until_ns)


def drive(world: World, process: Process) -> None:
    """The main program of a driver."""
    program = Program(world, process, [])
    world.truth.frames[id(program)] = (process, program.refs)
    try:
        while not world.stopping:
            program.step()
            process.block_until(lambda: False, process.now_ns + world.random.randint(1, 40) * MS)
    finally:
        world.truth.frames.pop(id(program))


def serve(world: World, process: Process, args: tuple[Any, ...]) -> Any:
    """The program of one call. Its variables count until it has been answered."""
    _, nested, *values = args
    program = Program(world, process, [*nested, *(ref for value in values for ref in value[1])])
    context = process.context()
    key = id(program)
    world.truth.frames[key] = (process, program.refs)
    result = object_id(context.task, 0)
    world.truth.started(result)
    # Until its answer has left, what a call returns is in nobody else's hands.
    world.open_frames[process.name, context.seq, context.task] = (key, program)
    try:
        for _ in range(world.random.randint(0, 4)):
            program.step()
    except Killed:
        world.close_frame(process, context.seq, context.task)
        raise
    if world.states[process.name] and world.random.random() < 0.4:
        program.forget()  # into the hands of the caller alone
    # A value that contains itself, however deep, would never be freed: references are counted.
    value = program.value([ref for ref in program.some() if not world.truth.leads_to(ref.binary(), result)])
    world.truth.filled(result, value[0], value[1])
    del nested, values, args
    return value


