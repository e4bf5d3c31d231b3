"""Objects in the arena as a session sees them: store, seal, free, read, fetch.

*Shell (arena).* Runs in drivers and workers; methods marked (leader) only in the leader.

1. An object is sealed, that is made known to the node, when its reference leaves this process or outlives
   ``LINEAGE_FLUSH_NS``; before that it is freed without a word to anybody.
2. A zero-copy view keeps its reference alive, and pins the object's place: memory is reused only after the last buffer
   over it is gone.
3. What is sealed belongs to the node, which may move it: its location is good only as long as its generation is (see
   ``store.pins``), else the node is asked.

Source: DESIGN s6.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config, failures, serialization
from meshray.ids import object_id, task_id
from meshray.messages.objects import (
    ExtentRefused,
    FetchFailed,
    FetchObject,
    ObjectFetched,
    ObjectsFreed,
    ObjectsSealed,
    Sealed,
)
from meshray.messages.tasks import Location
from meshray.object_ref import DATA, FAILED, STORED, ObjectRef
from meshray.session.extents import store_full
from meshray.session.values import Stored, fail
from meshray.store import layout

if TYPE_CHECKING:
    from meshray.session.records import Task
    from meshray.session.session import Session

ARGUMENTS_RETURN = 0xFFFE
"""Return index that names a task's stored argument blob."""


class Objects:
    """The stored values of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.dropped: deque[Any] = deque()
        """Own stored objects whose last reference died (appended by ``Stored.__del__``)."""
        self.orphans: deque[Any] = deque()
        """Stored objects of dead owners whose last reference died here; the node keeps them until then."""
        self._fetching: dict[bytes, list[tuple[ObjectRef, list[ExtentRefused | None]]]] = {}
        self._unsealed: deque[weakref.ref[ObjectRef]] = deque()
        self._survey_ns = 0
        self._freed: deque[tuple[str, bytes]] = deque()
        self._freed_bytes = 0

    # --- storing -------------------------------------------------------------------------------------------------

    def put(self, ref: ObjectRef, value: Any) -> None:
        """Give the new own reference ``ref`` the value that ``put`` was called with."""
        serialized = serialization.serialize(value)
        ref._contains = serialized.refs or None
        for inner in serialized.refs:
            self._session.references.info_of(inner)
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
        return Location(self._session.node, offset, plan.size_bytes, self._session.pins.generation(offset))

    def blob(self, task: Task, serialized: serialization.Serialized) -> ObjectRef:
        """Store the arguments of ``task``; the reference returned pins them."""
        identity = object_id(task_id(task.prefix, task.index), ARGUMENTS_RETURN)
        ref = ObjectRef(_id=identity, _state=STORED)
        ref._value = Stored(identity, self.store(serialized), self.dropped, sealed=False)
        self._session.references.known[identity] = weakref.ref(ref)
        self._unsealed.append(weakref.ref(ref))
        return ref

    def seal_ref(self, ref: ObjectRef) -> None:
        """Tell the node of a stored reference that is about to leave this process, once. Any thread."""
        stored: Stored = ref._value
        if not stored.sealed:
            stored.sealed = True
            self.seal(stored.object, stored.location, self._session.endpoint)

    def seal_now(self, ref: ObjectRef) -> None:
        """Like ``seal_ref``, but at once: what is sent next may lead another node to the object. (leader)"""
        stored: Stored = ref._value
        if not stored.sealed:
            stored.sealed = True
            location = stored.location
            self._session.to_node(ObjectsSealed([Sealed(stored.object, location.offset, location.size_bytes,
                                                        self._session.endpoint)]))

    def seal(self, identity: bytes, location: Location, owner: str) -> None:
        """Tell the node of a complete object and where its owner lives. Any thread."""
        sealed = ObjectsSealed([Sealed(identity, location.offset, location.size_bytes, owner)])
        if self._session.driving.stepping_thread == threading.get_ident():
            self._session.to_node(sealed)  # now: what the leader sends next may lead another node to the object
        else:
            self._session.later(lambda: self._session.to_node(sealed))

    def free_dropped(self) -> None:
        """Free own stored objects whose last reference died; nodes are told in batches. Any thread."""
        while self.dropped:
            try:
                ghost = self.dropped.popleft()
            except IndexError:
                break
            location = ghost.location
            if not ghost.sealed:
                self._session.arena.release(location.offset)
                continue
            self._freed.append((location.node, ghost.object))
            self._freed_bytes += location.size_bytes
        if self._freed_bytes > config.FREED_BYTES_MAX:
            self._freed_bytes = 0
            self._session.later(self.send_freed)

    def free_at(self, objects: Sequence[bytes], node: str) -> None:
        """Free objects at a node where they may lie without our having heard of it. (leader)"""
        self._freed.extend((node, identity) for identity in objects)

    def keep_orphan(self, ref: ObjectRef) -> bool:
        """The owner of ``ref`` is gone: read it on if it is here. Return whether it is. (leader)"""
        stored: Stored = ref._value
        if stored.is_here(self._session.node):
            stored.dropped = self.orphans
            return True
        return False

    def _free_orphans(self) -> None:
        while self.orphans:
            self._freed.append((self._session.node, self.orphans.popleft().object))

    @property
    def waiting(self) -> bool:
        """Whether ``send_freed`` has something to send."""
        return bool(self._freed)

    def send_freed(self) -> None:
        """Tell the nodes of the objects that were freed. (leader)"""
        self._freed_bytes = 0
        nodes: dict[str, list[bytes]] = {}
        while self._freed:
            node, identity = self._freed.popleft()
            nodes.setdefault(node, []).append(identity)
        for node, objects in nodes.items():
            self._session.to_node(ObjectsFreed(objects, node))

    # --- reading -------------------------------------------------------------------------------------------------

    def read(self, ref: ObjectRef, *, keep_cpu: bool = False) -> Any:
        """Return the Python value of a DATA or STORED reference; references inside it are held. ``keep_cpu``: a worker
        that waits for it lets nobody else run meanwhile."""
        if ref._state == DATA:
            return serialization.deserialize(ref._value)
        return serialization.deserialize(*self._view(ref, keep_cpu))

    def read_arguments(self, blob: ObjectRef, slots: dict[int | str, Any]) -> tuple[Any, Any]:
        """Return the (args, kwargs) stored in an argument blob."""
        data, buffers = self._view(blob, keep_cpu=True)
        return serialization.deserialize_args(data, buffers, slots)

    def _view(self, ref: ObjectRef, keep_cpu: bool = False) -> tuple[Any, list[memoryview]]:
        session = self._session
        stored = ref._value
        if type(stored) is not Stored:
            raise failures.decode(stored)  # its owner died a moment ago
        while True:
            location = stored.local or stored.location
            if location.node == session.node:
                view = session.pins.view(location.offset, location.size_bytes, location.generation, ref)
                if view is not None:
                    return layout.parse(view)
                generation = session.pins.generation(location.offset)
                if not stored.sealed:
                    # Only we know of it, so a neighbour was moved; it can be moved itself only after this generation.
                    stored.location = msgspec.structs.replace(location, generation=generation)
                    continue
                stored.local = None
            self._fetch(ref, stored, keep_cpu)

    def _fetch(self, ref: ObjectRef, stored: Stored, keep_cpu: bool) -> None:
        """Ask the node for the object, which lies elsewhere, on disk, or at another place than we know."""
        session = self._session
        answer: list[ExtentRefused | None] = []

        def ask() -> None:
            waiting = self._fetching.setdefault(ref.binary(), [])
            waiting.append((ref, answer))
            if len(waiting) == 1:
                owner = ref._owner.endpoint if ref._owner is not None else session.endpoint
                session.to_node(FetchObject(ref.binary(), stored.location, owner))

        session.call(ask)
        session.block_until(lambda: bool(answer), None, keep_cpu=keep_cpu)
        if ref._state == FAILED:
            raise failures.decode(ref._value)
        if answer and answer[0] is not None:
            raise store_full(answer[0])

    def on_fetched(self, message: ObjectFetched) -> None:
        """The object is in our arena, there. (leader)"""
        for ref, answer in self._fetching.pop(message.object, ()):
            if ref._state == STORED:
                ref._value.local = message.location
            answer.append(None)

    def on_fetch_failed(self, message: FetchFailed) -> None:
        """The object cannot be had, for want of room now, or for ever. (leader)"""
        for ref, answer in self._fetching.pop(message.object, ()):
            if message.refused is None:
                dead = ref._owner is not None and ref._owner.owner in self._session.references.holds.dead
                kind, reason = ("owner_died", "its owner died") if dead else ("lost", message.reason)
                fail(ref, failures.encode_system(kind, f"object {message.object.hex()} is lost: {reason}"))
            answer.append(message.refused)

    # --- time ----------------------------------------------------------------------------------------------------

    def flush(self, now_ns: int) -> None:
        """Free what died, tell the node of objects that stay. (leader)"""
        if self.dropped:
            self.free_dropped()
        if self.orphans:
            self._free_orphans()
        if now_ns >= self._survey_ns:
            self._survey_ns = now_ns + config.LINEAGE_FLUSH_NS
            self.seal_survivors()

    def seal_survivors(self) -> None:
        """Tell the node of the objects that it does not know yet. (leader)"""
        sealed = []
        while self._unsealed:
            ref = self._unsealed.popleft()()
            if ref is not None and ref._state == STORED and not ref._value.sealed:
                ref._value.sealed = True
                location = ref._value.location
                sealed.append(Sealed(ref.binary(), location.offset, location.size_bytes, self._session.endpoint))
        if sealed:
            self._session.to_node(ObjectsSealed(sealed))
