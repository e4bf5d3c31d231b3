"""Values in and out of references: inline bytes, stored objects, failures.

*Pure* but for the arena reads it asks of its session. Runs in drivers and workers.

1. A simple value (None, bool, int, float, str, bytes) is decoded once, when it arrives; it is immutable.
2. Any other value is decoded anew at each ``get``, so that no two callers share a mutable object.
3. What a reference holds (an arena range, a hold at the owner) is let go by the death of the object that stands for it
   (``Stored``, ``Borrow``). Their ``__del__`` may run anywhere, so it only appends to a deque.
"""

from __future__ import annotations

from collections import deque

from meshray import serialization
from meshray.messages.tasks import Location, Value
from meshray.object_ref import DATA, FAILED, READY, STORED, ObjectRef

SIMPLE_TYPES = frozenset({type(None), bool, int, float, str, bytes})


class Stored:
    """A complete object in some node's arena, as seen by a process that refers to it."""

    __slots__ = ("dropped", "local", "location", "object", "owned", "sealed")

    def __init__(self, object_: bytes, location: Location, dropped: deque[Stored] | None, *, sealed: bool) -> None:
        """``dropped`` is given by the owner: when this dies the object is freed. ``sealed``: the node knows it."""
        self.object = object_
        self.location = location
        self.local: Location | None = None
        self.sealed = sealed
        self.owned = dropped is not None
        self.dropped = dropped

    def is_here(self, node: str) -> bool:
        """Whether it can be read in the arena of ``node``."""
        return self.local is not None or self.location.node == node

    def __del__(self) -> None:
        if self.dropped is not None:
            self.dropped.append(_Ghost(self))  # type: ignore[arg-type]


class _Ghost:
    """What remains of a dead ``Stored``: enough to free it."""

    __slots__ = ("local", "location", "object", "sealed")

    def __init__(self, stored: Stored) -> None:
        self.object = stored.object
        self.location = stored.location
        self.local = stored.local
        self.sealed = stored.sealed


class Borrow:
    """This process's hold on an object that another process owns."""

    __slots__ = ("cookie", "endpoint", "object", "owner", "released")

    def __init__(self, object_: bytes, owner: str, endpoint: str, released: deque[tuple[str, bytes]]) -> None:
        self.object = object_
        self.owner = owner
        self.endpoint = endpoint
        self.cookie = 0
        """The question by which the owner was asked to register this hold; 0 before that."""
        self.released = released

    def __del__(self) -> None:
        if self.cookie:
            self.released.append((self.owner, self.object))


def fill(ref: ObjectRef, value: Value, dropped: deque[Stored] | None) -> None:
    """Give ``ref`` its value. ``dropped`` as for ``Stored``: given when this process owns the object."""
    if value.location is not None:
        ref._value = Stored(ref.binary(), value.location, dropped, sealed=True)
        ref._state = STORED
    elif value.data is None:
        ref._value = None
        ref._state = READY
    elif serialization.is_simple(value.data):
        ref._value = serialization.deserialize(value.data)
        ref._state = READY
    else:
        ref._value = value.data
        ref._state = DATA


def fail(ref: ObjectRef, error: bytes) -> None:
    """Give ``ref`` an encoded failure in place of a value."""
    ref._value = error
    ref._state = FAILED
