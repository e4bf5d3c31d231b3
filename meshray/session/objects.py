"""Objects as a session sees them: publish, hold, release, resolve, store, read.

*Shell (arena) around the reference protocol.* Runs in drivers and workers; methods marked (leader) only in the leader.

1. A reference that leaves this process is *published*: it has an id and can be found by it. Its owner keeps the value
   as long as this process or any registered holder refers to it.
2. Whoever passes a reference on keeps its own until the receiver's hold is registered at the owner: a task's arguments
   are pinned until it has answered, and a worker that still refers to one of them registers before it answers.
3. A result's inner references are pinned by the worker until the owner of the result says that it holds them.
4. A zero-copy view keeps its reference alive: memory is reused only after the last buffer over it is gone.

Source: DESIGN s6 Lifetime; borrowing in NSDI'21 s4.2.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from meshray import config, failures, serialization
from meshray.ids import object_id, task_id
from meshray.messages.objects import (
    FetchFailed,
    FetchObject,
    HoldersDied,
    HoldObjects,
    HoldsRegistered,
    ObjectFetched,
    ObjectResolved,
    ObjectsFreed,
    ObjectsSealed,
    ReleaseObjects,
    ResolveObjects,
    Sealed,
)
from meshray.messages.tasks import Argument, Location, RefInfo, TaskEntry, Value
from meshray.object_ref import DATA, FAILED, PENDING, READY, STORED, ObjectRef
from meshray.session.values import Borrow, Stored, fail, fill
from meshray.store import layout

if TYPE_CHECKING:
    from meshray.session.records import Task
    from meshray.session.session import Session

ARGUMENTS_RETURN = 0xFFFE
"""Return index that names a task's stored argument blob."""

_NONE = Value()


class Objects:
    """The references and stored values of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.known: dict[bytes, weakref.ref[ObjectRef]] = {}
        """Every published or borrowed reference of this process, by id."""
        self.held: dict[bytes, tuple[ObjectRef, set[str]]] = {}
        """Own objects that others hold."""
        self.dropped: deque[Any] = deque()
        """Own stored objects whose last reference died (appended by ``Stored.__del__``)."""
        self.released: deque[tuple[str, bytes]] = deque()
        """Borrowed objects whose last reference died here (appended by ``Borrow.__del__``)."""
        self._asked: dict[int, tuple[list[ObjectRef], Any]] = {}
        self._cookie = 0
        self._resolving: dict[bytes, ObjectRef] = {}
        self._questions: dict[bytes, set[bytes]] = {}
        self._fetching: dict[bytes, list[ObjectRef]] = {}
        self._unsealed: deque[weakref.ref[ObjectRef]] = deque()
        self._repeat_ns = 0

    # --- references out ------------------------------------------------------------------------------------------

    def info_of(self, ref: ObjectRef) -> RefInfo:
        """Publish ``ref`` and say who owns it."""
        owner = ref._owner
        if owner is not None:
            return RefInfo(owner.object, owner.owner, owner.endpoint)
        identity = ref.binary()
        if identity not in self.known:
            self.known[identity] = weakref.ref(ref)
            self._session.lineage.escaped(ref)
            if ref._state == STORED:
                self._seal(ref)
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
        return Value(None, ref._value.local or ref._value.location, refs, ref.binary())

    def entry_of(self, task: Task) -> TaskEntry:
        """Return the wire form of a task whose reference arguments all have values. (leader)"""
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

    def input_bytes(self, task: Task) -> dict[str, int] | None:
        """Return the stored input bytes of ``task`` per node, for placement near the data."""
        if not task.slots:
            return None
        sizes: dict[str, int] = {}
        for _, ref in task.slots:
            if ref._state == STORED:
                location = ref._value.location
                sizes[location.node] = sizes.get(location.node, 0) + location.size_bytes
        return sizes or None

    # --- references in -------------------------------------------------------------------------------------------

    def restore(self, identity: bytes, owner: str, endpoint: str) -> ObjectRef:
        """Return this process's reference for ``identity``, making a borrowed one if it is new here."""
        known = self.known.get(identity)
        ref = known() if known is not None else None
        if ref is not None:
            return ref
        ref = ObjectRef(_id=identity, _return=int.from_bytes(identity[-2:], "big"))
        if owner == self._session.name:
            fail(ref, failures.encode_system("lost", f"object {identity.hex()} was already freed by its owner"))
            return ref
        ref._owner = Borrow(identity, owner, endpoint, self.released)
        self.known[identity] = weakref.ref(ref)
        return ref

    def restore_all(self, infos: Iterable[RefInfo]) -> list[ObjectRef]:
        """Return this process's references for ``infos``."""
        return [self.restore(info.object, info.owner, info.endpoint) for info in infos]

    def hold(self, refs: Iterable[ObjectRef], keep: Any = None) -> int:
        """Register holds for the borrowed among ``refs``; ``keep`` lives until all are registered. Return a cookie that
        ``is_held`` takes, 0 if there was nothing to register. (leader)"""
        owners: dict[str, list[ObjectRef]] = {}
        for ref in refs:
            borrow = ref._owner
            if borrow is not None and not borrow.registered:
                borrow.registered = True
                owners.setdefault(borrow.owner, []).append(ref)
        cookie = 0
        for owner, held in owners.items():
            self._cookie += 1
            cookie = self._cookie
            self._asked[cookie] = (held, keep)
            route = self._session.connect(owner, held[0]._owner.endpoint)
            if not self._session.send(route, HoldObjects([ref.binary() for ref in held], cookie)):
                self._lose(held, f"its owner {owner} is gone")
                self._asked.pop(cookie, None)
        return cookie

    def hold_now(self, refs: list[ObjectRef], timeout_ns: int) -> None:
        """Register holds and wait until the owners know of them. Any thread."""
        cookies: list[int] = []
        self._session.call(lambda: cookies.append(self.hold(refs)))
        self._session.driving.until(lambda: bool(cookies) and self.is_held(cookies[0]),
                                    time.monotonic_ns() + timeout_ns)

    def is_held(self, cookie: int) -> bool:
        """Whether every hold up to ``cookie`` has been registered."""
        return not any(asked <= cookie for asked in self._asked)

    def on_hold(self, route: bytes, holder: str, message: HoldObjects) -> None:
        """A borrower holds some of our objects. (leader)"""
        lost = []
        for identity in message.objects:
            entry = self.held.get(identity)
            if entry is None:
                known = self.known.get(identity)
                ref = known() if known is not None else None
                if ref is None:
                    lost.append(identity)
                    continue
                entry = self.held[identity] = (ref, set())
            entry[1].add(holder)
        self._session.send(route, HoldsRegistered(message.cookie, lost))

    def on_registered(self, message: HoldsRegistered) -> None:
        """The owner knows of our holds. (leader)"""
        held, _ = self._asked.pop(message.cookie, ([], None))
        if message.lost:
            lost = set(message.lost)
            self._lose([ref for ref in held if ref.binary() in lost], "it was freed before it was held")

    def on_release(self, holder: str, message: ReleaseObjects) -> None:
        """A borrower lets go. (leader)"""
        for identity in message.objects:
            self._unhold(identity, holder)

    def _unhold(self, identity: bytes, holder: str) -> None:
        entry = self.held.get(identity)
        if entry is not None:
            entry[1].discard(holder)
            if not entry[1]:
                del self.held[identity]

    def on_holders_died(self, message: HoldersDied) -> None:
        """Processes are gone: their holds end, and what they owned is lost. (leader)"""
        gone = set(message.processes)
        for identity, (_, holders) in list(self.held.items()):
            for holder in holders & gone:
                self._unhold(identity, holder)
        for cookie, (held, _) in list(self._asked.items()):
            if held[0]._owner.owner in gone:
                self._asked.pop(cookie)
        lost = [ref for ref in self._resolving.values() if ref._owner.owner in gone]
        self._lose(lost, "its owner died", kind="owner_died")

    def _lose(self, refs: Iterable[ObjectRef], reason: str, kind: str = "lost") -> None:
        for ref in refs:
            self._resolving.pop(ref.binary(), None)
            if ref._state == PENDING:
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
            self._resolving[identity] = ref
            route = self._session.connect(ref._owner.owner, ref._owner.endpoint)
            owners.setdefault(route, []).append(identity)
        for route, identities in owners.items():
            self._session.send(route, ResolveObjects(identities))

    def on_resolve(self, route: bytes, message: ResolveObjects) -> None:
        """A borrower asks for values: answer now, or when they are there. (leader)"""
        for identity in message.objects:
            known = self.known.get(identity)
            ref = known() if known is not None else None
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
        if ref is None or ref._state != PENDING:
            return
        if message.error is not None:
            fail(ref, message.error)
        elif message.value is not None:
            self.take(ref, message.value, owned=False)
        self._session.outcomes.completed(ref)

    def take(self, ref: ObjectRef, value: Value, *, owned: bool) -> None:
        """Give ``ref`` a value that came over the wire, holding the references inside it. (leader)"""
        if value.refs:
            ref._contains = self.restore_all(value.refs)
            self.hold(ref._contains, ref)
        fill(ref, value, self.dropped if owned else None)

    # --- storing -------------------------------------------------------------------------------------------------

    def put(self, ref: ObjectRef, value: Any) -> None:
        """Give the new own reference ``ref`` the value that ``put`` was called with."""
        serialized = serialization.serialize(value)
        ref._contains = serialized.refs or None
        for inner in serialized.refs:
            self.info_of(inner)
        if serialized.size_bytes <= config.INLINE_BYTES_MAX:
            ref._value = serialized.inline()
            ref._state = DATA
        else:
            ref._value = Stored(ref.binary(), self.store(serialized), self.dropped, sealed=False)
            ref._state = STORED
            self._unsealed.append(weakref.ref(ref))

    def store(self, serialized: serialization.Serialized) -> Location:
        """Write a serialized value into the arena and return where it lies. Raise ObjectStoreFullError."""
        if self.dropped:
            self.free_dropped()
        arena = self._session.arena
        plan = layout.plan(len(serialized.data), [buffer.nbytes for buffer in serialized.buffers])
        offset = arena.allocate(plan.size_bytes)
        arena.write(offset, plan.pieces(serialized.data, serialized.buffers))
        return Location(self._session.node, offset, plan.size_bytes)

    def blob(self, task: Task, serialized: serialization.Serialized) -> ObjectRef:
        """Store the arguments of ``task``; the reference returned pins them."""
        identity = object_id(task_id(task.prefix, task.index), ARGUMENTS_RETURN)
        ref = ObjectRef(_id=identity, _state=STORED)
        ref._value = Stored(identity, self.store(serialized), self.dropped, sealed=False)
        self.info_of(ref)
        return ref

    def _seal(self, ref: ObjectRef) -> None:
        stored: Stored = ref._value
        if not stored.sealed:
            stored.sealed = True
            self.seal(stored.object, stored.location, self._session.name)

    def seal(self, identity: bytes, location: Location, owner: str) -> None:
        """Tell the node of a complete object and whose it is. Any thread."""
        sealed = ObjectsSealed([Sealed(identity, location.offset, location.size_bytes, owner)])
        self._session.later(lambda: self._session.to_node(sealed))

    def free_dropped(self) -> None:
        """Free own stored objects whose last reference died; others are told in the next turn. Any thread."""
        freed: dict[str, list[bytes]] = {}
        while self.dropped:
            try:
                ghost = self.dropped.popleft()
            except IndexError:
                break
            location = ghost.location
            local = location.node == self._session.node
            if local and self._session.arena.release(location.offset) and not ghost.sealed:
                continue
            freed.setdefault(location.node, []).append(ghost.object)
        for node, objects in freed.items():
            message = ObjectsFreed(objects, node)
            self._session.later(lambda message=message: self._session.to_node(message))  # type: ignore[misc]

    # --- reading -------------------------------------------------------------------------------------------------

    def read(self, ref: ObjectRef) -> Any:
        """Return the Python value of a DATA or STORED reference; references inside it are held."""
        if ref._state == DATA:
            return serialization.deserialize(ref._value)
        return serialization.deserialize(*self._view(ref))

    def read_arguments(self, blob: ObjectRef, slots: dict[int | str, Any]) -> tuple[Any, Any]:
        """Return the (args, kwargs) stored in an argument blob."""
        data, buffers = self._view(blob)
        return serialization.deserialize_args(data, buffers, slots)

    def _view(self, ref: ObjectRef) -> tuple[Any, list[memoryview]]:
        location = ref._value.local or ref._value.location
        if location.node != self._session.node:
            location = self._fetch(ref)
        return layout.parse(self._session.arena_file.pin(location.offset, location.size_bytes, ref.binary))

    def _fetch(self, ref: ObjectRef) -> Location:
        session = self._session
        stored: Stored = ref._value

        def done() -> bool:
            return stored.local is not None or ref._state == FAILED

        def ask() -> None:
            waiting = self._fetching.setdefault(ref.binary(), [])
            waiting.append(ref)
            if len(waiting) == 1:
                session.to_node(FetchObject(ref.binary(), stored.location, session.name))

        session.call(ask)
        session.block_until(done, None)
        if stored.local is None:
            raise failures.decode(ref._value)
        return stored.local

    def on_fetched(self, message: ObjectFetched) -> None:
        """A remote object is in our arena now. (leader)"""
        for ref in self._fetching.pop(message.object, ()):
            if ref._state == STORED:
                ref._value.local = message.location

    def on_fetch_failed(self, message: FetchFailed) -> None:
        """A remote object cannot be had. (leader)"""
        for ref in self._fetching.pop(message.object, ()):
            fail(ref, failures.encode_system("lost", f"object {message.object.hex()} is lost: {message.reason}"))

    # --- time ----------------------------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> None:
        """Send releases, free what died, repeat unanswered questions, tell the node of objects that stay. (leader)"""
        if self.dropped:
            self.free_dropped()
        if self.released:
            self._send_releases()
        if now_ns >= self._repeat_ns:
            self._repeat_ns = now_ns + config.LINEAGE_FLUSH_NS
            self._seal_survivors()
            self._forget_dead()

    def _send_releases(self) -> None:
        owners: dict[str, list[bytes]] = {}
        while self.released:
            owner, identity = self.released.popleft()
            known = self.known.get(identity)
            if known is not None and known() is None:
                del self.known[identity]
            owners.setdefault(owner, []).append(identity)
        for owner, identities in owners.items():
            self._session.send(self._session.out_route(owner), ReleaseObjects(identities))

    def _seal_survivors(self) -> None:
        sealed = []
        while self._unsealed:
            ref = self._unsealed.popleft()()
            if ref is not None and ref._state == STORED and not ref._value.sealed:
                ref._value.sealed = True
                location = ref._value.location
                sealed.append(Sealed(ref.binary(), location.offset, location.size_bytes, self._session.name))
        if sealed:
            self._session.to_node(ObjectsSealed(sealed))

    def _forget_dead(self) -> None:
        if len(self.known) > 2 * self._session.known_live:
            for identity, known in list(self.known.items()):
                if known() is None:
                    self.known.pop(identity, None)
            self._session.known_live = max(1024, len(self.known))
