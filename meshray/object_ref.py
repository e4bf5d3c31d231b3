"""ObjectRef: the name of a value that exists now or later.

*Pure.* Used by drivers and workers.

1. One instance per object and process: a reference that arrives again is the same Python object. Identity is equality,
   hashing costs nothing, and Python's own reference count is this process's count for the object.
2. The instance carries the value's state, so that ``get`` of a ready value is an attribute access.
3. A reference can be pickled only as part of a value that meshray itself sends: only then is it known who holds it.

States::

    PENDING --result--> READY (a simple Python value) | DATA (serialized bytes) | STORED (in an arena) | FAILED
    READY, DATA, STORED, FAILED are final; DATA of a simple value becomes READY when first read
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Generator
from typing import Any

import msgspec

PENDING, READY, DATA, STORED, FAILED = range(5)


class ObjectRef(msgspec.Struct, weakref=True, eq=False, repr_omit_defaults=True):
    """A reference to a value: pass it to tasks, ``get`` it, ``wait`` for it, ``await`` it.

    References are made by ``.remote()`` and ``put``; there is no other way to get one.
    """

    _state: int = PENDING
    _value: Any = None
    _task: Any = None
    _prefix: bytes = b""
    _index: int = 0
    _return: int = 0
    _id: bytes | None = None
    _owner: Any = None
    """None for values made here, else the ``Borrow`` that ends this process's hold when it dies."""
    _contains: Any = None
    """References inside the value: they live as long as this one."""
    _waiters: list[Callable[[ObjectRef], None]] | None = None

    def binary(self) -> bytes:
        """Return the 18-byte id: task id (16 bytes), then return index (2 bytes)."""
        if self._id is None:
            self._id = self._prefix + self._index.to_bytes(6, "big") + self._return.to_bytes(2, "big")
        return self._id

    def hex(self) -> str:
        """Return the id as 36 hexadecimal digits."""
        return self.binary().hex()

    def task_id(self) -> bytes:
        """Return the 16-byte id of the task that makes the value."""
        return self.binary()[:16]

    def is_nil(self) -> bool:
        """Whether this names nothing: never true (for programs that ask)."""
        return False

    def future(self) -> concurrent.futures.Future[Any]:
        """Return a ``concurrent.futures.Future`` that gets the value, or the exception that ``get`` would raise."""
        from meshray.session import current, futures

        return futures.future_of(current.session(), self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the value in an event loop: ``value = await ref``."""
        from meshray.session import current, futures

        return futures.await_ref(current.session(), self).__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        from meshray import serialization

        return serialization.reduce_ref(self)

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __copy__(self) -> ObjectRef:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef:
        return self

    def __class_getitem__(cls, item: Any) -> Any:
        return cls
