"""What the calling code is a part of: the driver's program, or the task that runs in this thread or coroutine.

*Pure.* Runs in drivers and workers.

1. Children are numbered by their parent's counter, so ids do not depend on timing.
2. The current context is a context variable: right in threads, coroutines and callbacks alike.
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar

import msgspec

from meshray import errors
from meshray.ids import child_prefix


class TaskContext(msgspec.Struct, eq=False):
    """The running task (or driver program) and its counter of children."""

    task: bytes
    name: str = ""
    job: str = ""
    attempt: int = 0
    actor: bytes = b""
    gpus: list[int] | None = None
    cancelled: bool = False
    children: itertools.count[int] | None = None
    _prefix: bytes = b""
    seq: int = 0

    def prefix(self) -> bytes:
        """Return the id prefix of this task's children; the hash is taken on first use."""
        if not self._prefix:
            self._prefix = child_prefix(self.task)
        return self._prefix

    def next_index(self) -> int:
        """Return the number of the next child."""
        if self.children is None:
            self.children = itertools.count(1)
        return next(self.children)


class ActorExit(BaseException):
    """Raised by ``exit_actor`` to leave the running method."""


def exit_actor() -> None:
    """End the actor that the calling method belongs to, after the calls before this one; it is not restarted. The
    caller of the method gets ActorDiedError. Raise MeshrayError outside an actor."""
    context = CURRENT.get()
    if context is None or not context.actor:
        raise errors.MeshrayError("exit_actor() was called outside an actor: call it inside one of its methods")
    raise ActorExit


CURRENT: ContextVar[TaskContext | None] = ContextVar("meshray_task", default=None)
