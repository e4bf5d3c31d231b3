"""Every exception that meshray raises.

*Pure.* Used by every process; ``meshray.exceptions`` offers the same classes under Ray's names.

1. ``MeshrayError`` is the root. Multiple inheritance lets ordinary ``except`` clauses work: a timeout is a
   ``TimeoutError``, a bad name is a ``ValueError``, a lost process is never a ``KeyError``.
2. What user code raised arrives as ``TaskError`` that is also an instance of the user's own exception type.
3. Every error survives pickling: what cannot be passed to a constructor lies in ``__dict__``.
4. A message names the thing, the numbers, and what to do.
"""

from __future__ import annotations

from types import MethodDescriptorType
from typing import Any

CAME_AS = "_came_as"
"""Attribute of an error that came over the wire: the function that rebuilds it, and its arguments (the bytes)."""


class MeshrayError(Exception):
    """Root of every error of this package."""


# --- what user code raised -------------------------------------------------------------------------------------------


class TaskError(MeshrayError):
    """A task or an actor's method raised.

    ``cause`` is the user's exception, or a stand-in if it could not be rebuilt here; ``traceback_str`` is the remote
    traceback as text and survives in any case. What ``get`` raises is ``as_instanceof_cause()``.
    """

    cause: BaseException | None = None
    function_name: str = ""
    traceback_str: str = ""
    pid: int = 0
    node: str = ""

    def __init__(self, message: str = "", *, cause: BaseException | None = None, function_name: str = "",
                 traceback_str: str = "", pid: int = 0, node: str = "") -> None:
        super().__init__(message)
        self._message = message
        self.cause = cause
        self.__cause__ = cause
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.pid = pid
        self.node = node

    def __str__(self) -> str:
        return self._message

    def __reduce__(self) -> tuple[Any, ...]:
        # An error that came over the wire goes on as the bytes it came as, with its whole chain.
        came_as: tuple[Any, ...] | None = self.__dict__.get(CAME_AS)
        if came_as is not None:
            return came_as
        return _rebuild, (self._message, self.cause, self.function_name, self.traceback_str, self.pid, self.node,
                          type(self) is not TaskError)

    def root_cause(self) -> BaseException | None:
        """Return the exception at the beginning: what user code raised, however many tasks passed it on."""
        cause = self.cause
        while isinstance(cause, TaskError):
            cause = cause.cause
        return cause

    def as_instanceof_cause(self) -> TaskError:
        """Return this error as an instance of the user's exception type too, with its attributes.

        Return it unchanged if that type cannot be subclassed or built, or if it is no ``Exception``: a remote
        ``KeyboardInterrupt`` must not look like a Ctrl-C of this process.
        """
        cause = self.root_cause()
        if not isinstance(cause, Exception) or isinstance(cause, RemoteException) or isinstance(self, type(cause)):
            return self
        try:
            return _dual(self, cause)
        except Exception:  # whatever a user's class or metaclass raises: the plain error says the same
            return self


def _rebuild(message: str, cause: BaseException | None, function_name: str, traceback_str: str, pid: int, node: str,
             dual: bool) -> TaskError:
    error = TaskError(message, cause=cause, function_name=function_name, traceback_str=traceback_str, pid=pid,
                      node=node)
    return error.as_instanceof_cause() if dual else error


def _dual(error: TaskError, cause: Exception) -> TaskError:
    """Return ``error`` as an instance of a class made of ``TaskError`` and the class of ``cause``."""
    user_type: Any = type(cause)

    def missing(self: Any, name: str) -> Any:
        return getattr(cause, name)

    name = f"TaskError({user_type.__name__})"
    both: Any = type(user_type)(name, (TaskError, user_type), {
        "__init__": TaskError.__init__, "__str__": TaskError.__str__, "__reduce__": TaskError.__reduce__,
        "__reduce_ex__": _reduce_ex, "__getattr__": missing, "__module__": __name__, "__qualname__": name})
    instance: Any = build(both, user_type, *taken_apart(cause))
    instance.__dict__.update(error.__dict__)
    instance.__cause__ = error.__cause__
    if str(instance) != error._message:
        raise TypeError(f"{user_type.__name__} hides the message")
    return instance  # type: ignore[no-any-return]


def pickles_plainly(cls: type[BaseException]) -> bool:
    """Whether instances of ``cls`` are pickled as built-in exceptions are, with no word of the user's."""
    return isinstance(cls.__reduce__, MethodDescriptorType) and cls.__reduce_ex__ is object.__reduce_ex__


def taken_apart(error: BaseException) -> tuple[tuple[Any, ...], Any]:
    """Return the arguments and the state from which ``build`` makes such an error again."""
    if not pickles_plainly(type(error)):
        return error.args, error.__dict__
    reduced: Any = error.__reduce__()
    return reduced[1], reduced[2] if len(reduced) > 2 else None


def build(cls: Any, user_type: Any, arguments: tuple[Any, ...], state: Any) -> BaseException:
    """Return an instance of ``cls``, which is ``user_type`` or made of it, without calling an ``__init__`` that a user
    wrote: that may want other arguments."""
    instance: Any = user_type.__new__(cls, *arguments)
    # Built-in exceptions keep their fields (errno, reason, ...) in C, so their own __init__ must fill them.
    builtin = next(base for base in user_type.__mro__ if base.__module__ == "builtins")
    builtin.__init__(instance, *arguments)
    if state:
        instance.__setstate__(state)
    return instance  # type: ignore[no-any-return]


def _reduce_ex(self: TaskError, protocol: int) -> tuple[Any, ...]:
    return TaskError.__reduce__(self)


class RemoteException(MeshrayError):
    """Cause of a ``TaskError`` whose own exception could not be rebuilt here; the message says why."""


class RemoteTraceback(MeshrayError):
    """Cause of an error whose exception could not be rebuilt here: the remote traceback as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0] if self.args else ""}"""'


class TaskCancelledError(MeshrayError):
    """The task was cancelled, so it has no result."""


class UnserializableError(MeshrayError, TypeError):
    """A value cannot be pickled (or not be rebuilt); the message names the attribute that is in the way."""


# --- processes -------------------------------------------------------------------------------------------------------


class MeshraySystemError(MeshrayError):
    """A part of the system failed in a way that is not the program's fault."""


class NotInitializedError(MeshraySystemError):
    """There is no session: call ``meshray.init()`` first, or ``shutdown()`` has already been called."""


class ClusterStartError(MeshrayError, RuntimeError):
    """A cluster did not start; the message says which part, and why."""


class HostError(ClusterStartError):
    """A host of a cluster could not be used. ``words`` are the last lines that it wrote to standard error."""

    def __init__(self, message: str, words: list[str] | None = None) -> None:
        super().__init__(message)
        self.words = words or []


class ClusterNotFoundError(MeshrayError, ConnectionError):
    """No cluster is at the address."""


class KeyFileError(MeshrayError):
    """A key file is missing, no key file, or open to others."""


class KeyRefusedError(MeshrayError, PermissionError):
    """A cluster does not let this key in; the message says how its owner would."""


class WorkerCrashedError(MeshrayError):
    """The worker died while it ran the task; the message has pid, node, signal and its last words."""


class OutOfMemoryError(MeshrayError):
    """The worker was ended because its node ran out of memory."""


class NodeDiedError(MeshrayError):
    """The node is dead or out of reach."""


class LocalNodeDiedError(MeshrayError):
    """The node process of this machine died; the session cannot go on."""


class RuntimeEnvSetupError(MeshrayError):
    """The environment that a task or actor asked for could not be made."""


# --- actors ----------------------------------------------------------------------------------------------------------


class ActorError(MeshrayError):
    """An actor cannot run the method call. ``actor_id`` is the actor's id in hexadecimal, where it is known."""

    def __init__(self, message: str = "", *, actor_id: str = "") -> None:
        super().__init__(message)
        self.actor_id = actor_id


class ActorDiedError(ActorError):
    """The actor is dead and will not come back; the message says how it died."""


class ActorUnavailableError(ActorError):
    """The actor cannot be reached at the moment; whether it ran the call is not known."""


class ActorAlreadyExistsError(MeshrayError, ValueError):
    """Another actor of this namespace has the name."""


class ActorHandleNotFoundError(MeshrayError, ValueError):
    """The handle belongs to an earlier session or to an actor nobody knows any more."""


class PendingCallsLimitExceeded(MeshrayError):
    """The actor has ``max_pending_calls`` unanswered calls of this caller."""


class AsyncioActorExit(MeshrayError):
    """Ends an asyncio actor from inside (``exit_actor``)."""


# --- scheduling ------------------------------------------------------------------------------------------------------


class TaskUnschedulableError(MeshrayError):
    """The task can never run, for example because the only node it may run on is gone."""


class ActorUnschedulableError(MeshrayError):
    """The actor can never be placed."""


# --- objects ---------------------------------------------------------------------------------------------------------


class GetTimeoutError(MeshrayError, TimeoutError):
    """``get`` gave up after its timeout; the values may still come."""


class ObjectStoreFullError(MeshrayError):
    """The object store has no room for a value."""

    def __init__(self, need_bytes: int = 0, free_bytes: int = 0, used_bytes: int = 0, capacity_bytes: int = 0,
                 pinned_bytes: int | None = None, spilled_bytes: int = 0, *, disk_error: str = "") -> None:
        """Size of the value (``need_bytes``) and of the store; ``pinned_bytes`` of it are being read and cannot be
        moved, ``spilled_bytes`` lie on disk, and ``disk_error`` says why the disk takes no more."""
        super().__init__(need_bytes, free_bytes, used_bytes, capacity_bytes, pinned_bytes, spilled_bytes)
        self.need_bytes = need_bytes
        self.free_bytes = free_bytes
        self.used_bytes = used_bytes
        self.capacity_bytes = capacity_bytes
        self.pinned_bytes = pinned_bytes
        self.spilled_bytes = spilled_bytes
        self.disk_error = disk_error

    def __str__(self) -> str:
        held = f", pinned {size_text(self.pinned_bytes)}" if self.pinned_bytes is not None else ""
        held += f", on disk {size_text(self.spilled_bytes)}" if self.spilled_bytes else ""
        numbers = (f"need {size_text(self.need_bytes)}, free {size_text(self.free_bytes)}, "
                   f"used {size_text(self.used_bytes)} of {size_text(self.capacity_bytes)}{held}")
        if self.need_bytes > self.capacity_bytes:
            return f"value larger than the object store ({numbers}): raise object_store_memory or split the value"
        if self.disk_error:
            return (f"object store full ({numbers}) and {self.disk_error}: make room there, set spill_directory to a "
                    "larger disk, raise object_store_memory, or drop refs")
        return f"object store full ({numbers}): raise object_store_memory or drop refs"


def size_text(size_bytes: int) -> str:
    """Return a size as a person reads it: ``512 B``, ``3.5 KiB``, ``64 MiB``, ``1.2 GiB``."""
    size, units = float(size_bytes), ["TiB", "GiB", "MiB", "KiB", "B"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        units.pop()
    return f"{size:.0f} {units[-1]}" if size >= 100 or size.is_integer() else f"{size:.1f} {units[-1]}"


class OutOfDiskError(MeshrayError):
    """The disk for spilled objects is full."""


class ObjectLostError(MeshrayError):
    """No copy of the object is left. ``object_ref_hex`` names it, where it is known."""

    def __init__(self, message: str = "", *, object_ref_hex: str = "") -> None:
        super().__init__(message)
        self.object_ref_hex = object_ref_hex


class ObjectFreedError(ObjectLostError):
    """The object was freed while somebody still wanted it."""


class OwnerDiedError(ObjectLostError):
    """The process that made the reference died, and with it the object."""


class ObjectFetchTimedOutError(ObjectLostError):
    """No holder sent the object in time."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost, and running its task again did not bring it back."""


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was freed although a reference to it exists: a bug."""
