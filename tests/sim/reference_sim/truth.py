"""The truth: which objects can be reached, computed from what programs have and not from what protocols remember.

*Pure.* Runs in tests.

1. Roots are the references in the variables of living programs, the state of living actors, and the arguments of calls
   that were made and not answered, as long as the callee lives and the call has not been lost with its caller.
2. An object reaches the references inside it. One whose owner died reaches nothing, and may be freed.
3. What is freed is looked at after the event that freed it, against the truth of that moment.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from meshray import errors
from meshray.ids import object_id, task_id
from meshray.messages.tasks import CallActor, CallEntry, TasksFinished

if TYPE_CHECKING:
    from meshray.object_ref import ObjectRef
    from tests.sim.reference_sim.processes import Process
    from tests.sim.reference_sim.world import World


class Violation(AssertionError):
    """A promise was broken."""


class Call:
    """A call from its submission to its answer. ``needs`` are the objects that its arguments refer to."""

    def __init__(self, caller: Process, callee: Process, result: bytes, needs: list[bytes]) -> None:
        self.caller, self.callee, self.result, self.needs = caller, callee, result, needs
        self.on_the_way = self.delivered = False

    def is_open(self) -> bool:
        """Whether it will be run, is, or waits for its turn."""
        return self.callee.alive and (self.delivered or self.on_the_way or self.caller.alive)


class Truth:
    """What there is, and what can be reached."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.owner: dict[bytes, Process] = {}
        self.token: dict[bytes, int] = {}
        """What value each object has, by number."""
        self.inside: dict[bytes, list[bytes]] = {}
        self.frames: dict[int, tuple[Process, list[ObjectRef]]] = {}
        """The variables of programs that run."""
        self.calls: dict[tuple[str, int], Call] = {}
        self._watched: dict[bytes, weakref.ref[ObjectRef]] = {}
        self._freed: list[bytes] = []
        self.counts = {"objects": 0, "freed": 0, "read": 0, "failed reads": 0}

    # --- what programs do ----------------------------------------------------------------------------------------

    def made(self, process: Process, ref: ObjectRef) -> None:
        """``process`` owns a new object."""
        identity = ref.binary()
        self.owner[identity] = process
        self.counts["objects"] += 1
        self._watched[identity] = weakref.ref(ref, lambda _: self._freed.append(identity))

    def filled(self, identity: bytes, token: int, inside: list[ObjectRef]) -> None:
        """The object has its value."""
        self.token[identity] = token
        self.inside[identity] = [ref.binary() for ref in inside]

    def leads_to(self, identity: bytes, target: bytes) -> bool:
        """Whether ``target`` is the object or inside it."""
        return identity == target or any(self.leads_to(one, target) for one in self.inside.get(identity, ()))

    def called(self, caller: Process, seq: int, callee: Process, ref: ObjectRef, args: list[ObjectRef]) -> None:
        """A call was made."""
        self.made(caller, ref)
        self.calls[caller.name, seq] = Call(caller, callee, ref.binary(), [arg.binary() for arg in args])

    def started(self, result: bytes) -> None:
        """A call has its arguments in its variables now."""
        for call in self.calls.values():
            if call.result == result:
                call.needs = []

    def lost(self, caller: Process, seq: int) -> None:
        """The caller has been told that the callee is gone."""
        self.calls.pop((caller.name, seq), None)
        self.inside.pop(self._world.results[caller.name, seq], None)

    def read(self, process: Process, ref: ObjectRef, value: Any) -> None:
        """A program got the value of ``ref``: it must be the one that was made."""
        token, refs, _ = value
        identity = ref.binary()
        self.counts["read"] += 1
        if token != self.token.get(identity) or [one.binary() for one in refs] != self.inside.get(identity):
            raise Violation(f"{process.name} read the value of another object from {ref!r}")

    def not_read(self, process: Process, ref: ObjectRef, error: Exception) -> None:
        """A program got an error instead: it must be due to a death."""
        self.counts["failed reads"] += 1
        identity = ref.binary()
        owner = self.owner[identity]
        if identity not in self.token and self._world.deaths:
            return  # the call that should have made it met a death
        if owner.alive and not self._world.nodes_died and (
                not self._world.deaths or isinstance(error, (errors.ObjectLostError, errors.OwnerDiedError))):
            raise Violation(f"{process.name} cannot read {ref!r}, though its owner {owner.name} lives: {error}")

    def waited_in_vain(self, process: Process, ref: ObjectRef) -> None:
        """A program heard nothing of a value for long: then nobody may have it, and its owner must live."""
        identity = ref.binary()
        if identity in self.inside or not self.owner[identity].alive:
            raise Violation(f"{process.name} waits in vain for {ref!r} of {self.owner[identity].name}")

    # --- what the network sees -----------------------------------------------------------------------------------

    def sent(self, source: str, target: str, message: Any) -> None:
        """A message leaves."""
        if isinstance(message, CallActor):
            for entry in message.calls:
                call = self.calls.get((source, entry.seq))
                if call is not None:
                    call.needs = needs_of(entry)
                    call.on_the_way = True
        elif isinstance(message, TasksFinished):
            for result in message.results:
                self.calls.pop((target, result.seq), None)

    def vanished(self, source: str, target: str, message: Any) -> None:
        """A message that will not arrive: its sender died."""
        if isinstance(message, CallActor):
            for entry in message.calls:
                self.calls.pop((source, entry.seq), None)
        elif isinstance(message, TasksFinished):
            for result in message.results:
                self.inside.pop(self._world.results.get((target, result.seq), b""), None)

    def delivered(self, source: str, message: Any) -> None:
        """A message is there."""
        if isinstance(message, CallActor):
            for entry in message.calls:
                call = self.calls.get((source, entry.seq))
                if call is not None:
                    call.delivered = True

    # --- judgement -----------------------------------------------------------------------------------------------

    def reachable(self, *, generous: bool = False) -> set[bytes]:
        """Return what programs can reach. ``generous``: also through objects whose owner died."""
        todo = [ref.binary() for process, refs in self.frames.values() if process.alive for ref in refs]
        todo += [ref.binary() for process in self._world.living() for ref in self._world.states[process.name]]
        for call in self.calls.values():
            if call.is_open():
                todo += call.needs
        found: set[bytes] = set()
        while todo:
            identity = todo.pop()
            if identity not in found and (generous or self.owner[identity].alive):
                found.add(identity)
                todo += self.inside.get(identity, ())
        return found

    def check_freed(self) -> None:
        """Nothing that the last event freed can be reached."""
        if not self._freed:
            return
        freed, self._freed = [one for one in self._freed if self.owner[one].alive], []
        if freed:
            self.counts["freed"] += len(freed)
            for identity in self.reachable().intersection(freed):
                raise Violation(f"{identity.hex()} of {self.owner[identity].name} was freed and can be reached")

    def check_kept(self) -> None:
        """Nothing that cannot be reached is still there."""
        reachable = self.reachable(generous=True)
        for identity, known in self._watched.items():
            owner = self.owner[identity]
            if owner.alive and known() is not None and identity not in reachable:
                raise Violation(f"{identity.hex()} of {owner.name} cannot be reached and is not freed")


def needs_of(entry: CallEntry) -> list[bytes]:
    """Return the objects that the arguments of a call refer to."""
    needs = [info.object for info in entry.refs or ()]
    for argument in entry.arguments or ():
        needs += [info.object for info in argument.value.refs or ()]
        if argument.ref is not None:
            needs.append(argument.ref.object)
    return needs


def result_of(prefix: bytes, index: int) -> bytes:
    """Return the id of the one result of a task."""
    return object_id(task_id(prefix, index), 0)
