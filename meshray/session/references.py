"""References between processes: publish, restore, resolve.

*Shell (waits, in ``hold_now``).* Runs in drivers and workers; methods marked (leader) only in the leader.

1. A reference that leaves this process is *published*: it has an id and can be found by it. Its owner keeps the value
   as long as this process or any registered holder refers to it (see ``holds``).
2. Whoever passes a reference on keeps its own until the receiver's hold is registered at the owner: a task's arguments
   are pinned until it has answered, and a worker that still refers to one of them registers before it answers; what a
   result contains is pinned by the worker until the owner of the result holds it.
3. A reference that has a value has those inside the value too (``_contains``), and holds them.

Source: DESIGN s6 Lifetime; borrowing in NSDI'21 s4.2.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from meshray import config, failures, serialization
from meshray.messages.objects import HoldersDied, ObjectResolved, OrphansRead, ResolveObjects
from meshray.messages.tasks import Argument, RefInfo, TaskEntry, Value
from meshray.object_ref import DATA, FAILED, PENDING, READY, STORED, ObjectRef
from meshray.session.holds import Cookies, Holds
from meshray.session.values import Borrow, fail, fill
from meshray.transport.endpoints import home_of

if TYPE_CHECKING:
    from meshray.session.records import Task
    from meshray.session.session import Session

_NONE = Value()

_KNOWN_MIN = 1024
"""Known references below which the dead among them are left alone; above, they go when their number has doubled."""


class References:
    """The references of one session that other processes know of."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.known: dict[bytes, weakref.ref[ObjectRef]] = {}
        """Every published or borrowed reference of this process, by id."""
        self.holds = Holds(session, self.find, self._lose)
        self._making = threading.RLock()
        """One instance per object and process, also when two threads meet it at once."""
        self._resolving: dict[bytes, ObjectRef] = {}
        self._repeat_ns = 0
        self._questions: dict[bytes, set[bytes]] = {}
        self._known_live = _KNOWN_MIN

    # --- references out ------------------------------------------------------------------------------------------

    def info_of(self, ref: ObjectRef) -> RefInfo:
        """Publish ``ref`` and say who owns it."""
        owner = ref._owner
        if owner is not None:
            return RefInfo(owner.object, owner.owner, owner.endpoint)
        identity = ref.binary()
        known = self.known.get(identity)
        if known is None or known() is None:
            self.known[identity] = weakref.ref(ref)
            self._session.lineage.escaped(ref)
            if ref._state == STORED:
                self._session.objects.seal_ref(ref)
        return RefInfo(identity, self._session.name, self._session.endpoint)

    def value_of(self, ref: ObjectRef) -> Value:
        """Return the wire form of a value that is there and not a failure."""
        state = ref._state
        if state == READY:
            return _NONE if ref._value is None else Value(serialization.serialize(ref._value).data)
        refs = [self.info_of(inner) for inner in ref._contains] if ref._contains else None
        if state == DATA:
            return Value(ref._value, None, refs)
        assert state == STORED, state
        self.info_of(ref)
        return Value(None, ref._value.location, refs, ref.binary())

    def entry_of(self, task: Task, node: str) -> TaskEntry:
        """Return the wire form of a task, for a worker of ``node``; its reference arguments have values. (leader)"""
        if task.blob is not None and node != self._session.node and task.pins:
            self._session.objects.seal_now(task.pins[-1])
        return TaskEntry(task.seq, task.index, task.args, self.arguments_of(task), task.refs,
                         task.blob.location if task.blob is not None else None)

    def arguments_of(self, task: Task) -> list[Argument] | None:
        """Return the resolved reference arguments of ``task``."""
        if not task.slots:
            return None
        arguments = []
        for key, ref in task.slots:
            if ref._state == FAILED:
                arguments.append(Argument(key, Value(ref._value), is_error=True))
            else:
                value = self.value_of(ref)
                info = self.info_of(ref) if ref._state == STORED else None
                arguments.append(Argument(key, value, False, info))
        return arguments

    # --- references in -------------------------------------------------------------------------------------------

    def restore(self, identity: bytes, owner: str, endpoint: str) -> ObjectRef:
        """Return this process's reference for ``identity``, making a borrowed one if it is new here."""
        ref = self.find(identity)
        if ref is not None:
            return ref
        with self._making:
            return self.find(identity) or self._make(identity, owner, endpoint)

    def _make(self, identity: bytes, owner: str, endpoint: str) -> ObjectRef:
        ref = ObjectRef(_id=identity, _return=int.from_bytes(identity[-2:], "big"))
        if owner == self._session.name:
            fail(ref, failures.encode_system("lost", f"object {identity.hex()} was already freed by its owner"))
            return ref
        ref._owner = Borrow(identity, owner, endpoint, self.holds.released)
        self.known[identity] = weakref.ref(ref)
        return ref

    def restore_all(self, infos: Iterable[RefInfo]) -> list[ObjectRef]:
        """Return this process's references for ``infos``."""
        return [self.restore(info.object, info.owner, info.endpoint) for info in infos]

    def hold_now(self, refs: list[ObjectRef], timeout_ns: int) -> None:
        """Register holds and wait until the owners know of them. Any thread."""
        asked: list[Cookies] = []
        self._session.call(lambda: asked.append(self.holds.hold(refs)))
        self._session.driving.until(lambda: bool(asked) and self.holds.is_held(asked[0]),
                                    time.monotonic_ns() + timeout_ns)

    def find(self, identity: bytes) -> ObjectRef | None:
        """Return the living reference of that id, if this process has one that others know of. Any thread."""
        known = self.known.get(identity)
        return known() if known is not None else None

    def on_holders_died(self, message: HoldersDied) -> None:
        """Processes are gone: their holds end, and what they owned is lost. (leader)"""
        self.holds.on_died(message)
        orphans = [ref for one in list(self.known.values()) if (ref := one()) is not None
                   and ref._owner is not None
                   and message.covers(ref._owner.owner, home_of(ref._owner.endpoint))]
        self.holds.dead.update(dict.fromkeys(ref._owner.owner for ref in orphans))
        read = [ref.binary() for ref in orphans if ref._state == STORED and self._session.objects.keep_orphan(ref)]
        self._lose(orphans, "its owner died", "owner_died")
        if message.cookie:
            self._session.to_node(OrphansRead(message.cookie, read))

    def _lose(self, refs: Iterable[ObjectRef], reason: str, kind: str) -> None:
        for ref in refs:
            self._resolving.pop(ref.binary(), None)
            if ref._state == PENDING or (ref._state == STORED and not ref._value.is_here(self._session.node)):
                fail(ref, failures.encode_system(kind, f"object {ref.hex()} is lost: {reason}"))
                self._session.outcomes.completed(ref)

    # --- resolving borrowed references ---------------------------------------------------------------------------

    def resolve(self, refs: Iterable[ObjectRef]) -> None:
        """Ask the owners of pending borrowed references for their values. (leader)"""
        owners: dict[bytes, list[bytes]] = {}
        for ref in refs:
            identity = ref.binary()
            if ref._owner is None or ref._state != PENDING or identity in self._resolving:
                continue
            if ref._owner.owner in self.holds.dead:
                self._lose([ref], "its owner died", "owner_died")
                continue
            self._resolving[identity] = ref
            route = self._session.connect(ref._owner.owner, ref._owner.endpoint)
            owners.setdefault(route, []).append(identity)
        for route, identities in owners.items():
            self._session.send(route, ResolveObjects(identities))

    def tick(self, now_ns: int) -> None:
        """Ask again what was not answered for a second, forget references that died. (leader)"""
        self.forget_dead()
        if self.holds.is_due(now_ns):
            self.holds.tick(now_ns)
        if self._resolving and now_ns >= self._repeat_ns:
            if self._repeat_ns:
                waiting = [ref for ref in self._resolving.values() if ref._state == PENDING]
                arrived = [ref for ref in self._resolving.values() if ref._state != PENDING]
                self._resolving.clear()
                self.resolve(waiting)
                for ref in arrived:
                    self._session.outcomes.completed(ref)  # it came with the arguments of a call, which tells nobody
                self.holds.ask_after({ref._owner.owner: ref._owner.endpoint for ref in waiting})
            self._repeat_ns = now_ns + config.SECOND_NS
        elif not self._resolving:
            self._repeat_ns = 0

    def on_resolve(self, route: bytes, message: ResolveObjects) -> None:
        """A borrower asks for values: answer now, or when they are there. (leader)"""
        for identity in message.objects:
            ref = self.find(identity)
            if ref is None:
                self._session.send(route, ObjectResolved(identity, None, failures.encode_system(
                    "lost", f"object {identity.hex()} was freed by its owner {self._session.name}")))
            elif ref._state == PENDING:
                asked = self._questions.setdefault(identity, set())
                if not asked:
                    self._session.outcomes.when_complete(ref, self._answer_all)
                asked.add(route)
            else:
                self._answer(route, ref)

    def _answer_all(self, ref: ObjectRef) -> None:
        for route in self._questions.pop(ref.binary(), ()):
            self._answer(route, ref)

    def _answer(self, route: bytes, ref: ObjectRef) -> None:
        if ref._state == FAILED:
            self._session.send(route, ObjectResolved(ref.binary(), None, ref._value))
        else:
            self._session.send(route, ObjectResolved(ref.binary(), self.value_of(ref)))

    def on_resolved(self, message: ObjectResolved) -> None:
        """A borrowed reference has its value. (leader)"""
        ref = self._resolving.pop(message.object, None)
        if ref is None:
            return
        if ref._state == PENDING:
            if message.error is not None:
                fail(ref, message.error)
            elif message.value is not None:
                self.take(ref, message.value, owned=False)
        # Else it came with the arguments of a call meanwhile, which tells nobody.
        self._session.outcomes.completed(ref)

    def take(self, ref: ObjectRef, value: Value, *, owned: bool) -> Cookies:
        """Give ``ref`` a value that came over the wire, holding the references inside it. Return what
        ``holds.when_held`` takes. (leader)"""
        cookies: Cookies = ()
        if value.refs:
            ref._contains = self.restore_all(value.refs)
            cookies = self.holds.hold(ref._contains, ref)
        fill(ref, value, self._session.objects.dropped if owned else None)
        return cookies

    def filled(self, ref: ObjectRef) -> None:
        """A borrowed reference has got its value with a call's arguments. Any thread."""
        if ref._owner.owner in self.holds.dead:
            self._session.later(lambda: self._adopt(ref))

    def _adopt(self, ref: ObjectRef) -> None:
        if ref._state == STORED and self._session.objects.keep_orphan(ref):
            self._session.to_node(OrphansRead(0, [ref.binary()]))

    # --- time ----------------------------------------------------------------------------------------------------

    def forget_dead(self) -> None:
        """Drop the names of references that died, once there are as many again as when this was last done. (leader)"""
        if len(self.known) > 2 * self._known_live:
            for identity, known in list(self.known.items()):
                if known() is None:
                    with self._making:
                        if self.known.get(identity) is known:
                            del self.known[identity]
            self._known_live = max(_KNOWN_MIN, len(self.known))
