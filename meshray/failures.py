"""How a failure travels: encoded where it happens, decoded where ``get`` raises it.

*Shell (the exception's own pickle).* Runs in drivers and workers; nodes pass the bytes on unread.

1. Type name, message and traceback travel as text beside the pickled exception, so they survive whatever the
   exception's own pickling does. Neither ``encode_*`` nor ``decode`` ever raises.
2. An exception travels with its chain: causes, contexts, notes, and for each the frames of user code.
3. A failure that caused another is kept whole inside it: a ``get`` at the end of a pipeline shows every step.

Source: tblib rebuilds traceback objects from frames; text causes as in ``concurrent.futures.process``.
"""

from __future__ import annotations

import msgspec

from meshray import exception_chain
from meshray.errors import (
    CAME_AS,
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    MeshrayError,
    MeshraySystemError,
    NodeDiedError,
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    RemoteTraceback,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskError,
    TaskUnschedulableError,
    UnserializableError,
    WorkerCrashedError,
)
from meshray.exception_chain import Link
from meshray.messages.base import Part
from meshray.messages.node import UNSCHEDULABLE, Death

TASK = "task"
"""Kind of a failure that user code raised."""
DEPENDENCY = "dependency"
"""Kind of a failure that a task inherited from an argument."""

SYSTEM_KINDS: dict[str, type[MeshrayError]] = {
    "worker_died": WorkerCrashedError,
    "out_of_memory": OutOfMemoryError,
    "node_died": NodeDiedError,
    "actor_died": ActorDiedError,
    "actor_unavailable": ActorUnavailableError,
    "actor_unschedulable": ActorUnschedulableError,
    "unschedulable": TaskUnschedulableError,
    "pending_limit": PendingCallsLimitExceeded,
    "cancelled": TaskCancelledError,
    "lost": ObjectLostError,
    "freed": ObjectFreedError,
    "owner_died": OwnerDiedError,
    "fetch_timeout": ObjectFetchTimedOutError,
    "reconstruction": ObjectReconstructionFailedError,
    "timeout": GetTimeoutError,
    "runtime_env": RuntimeEnvSetupError,
    "unserializable": UnserializableError,
    "full": ObjectStoreFullError,
    "system": MeshraySystemError,
}
"""Kinds of failures that no user code raised. ``full`` takes the five numbers of ObjectStoreFullError."""


class Failure(Part, frozen=True):
    """One failed task or object. ``kind``: ``task``, ``dependency`` or one of ``SYSTEM_KINDS``."""

    kind: str
    message: str = ""
    name: str = ""
    pid: int = 0
    node: str = ""
    attempt: int = 0
    traceback: str = ""
    error: Link | None = None
    cause: bytes = b""
    numbers: tuple[int, ...] = ()
    origin: str = ""
    """Message of the first failure of a chain."""
    depth: int = 0
    """Failures inside this one."""


DEPTH_MAX = 16
"""Failures inside a failure that travel; of a longer chain, steps in the middle are left out."""


class DependencyFailed(Exception):
    """An argument of a task is itself a failure (``encoded``), so the task cannot run."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self.encoded = encoded


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Failure)


def encode_exception(error: BaseException, name: str, pid: int, node: str, attempt: int = 0) -> bytes:
    """Encode what the function or method ``name`` raised in process ``pid`` on ``node``."""
    encoded = exception_chain.came_as(error)
    if encoded:
        inner = _parse(encoded)
        origin = inner.origin or inner.message
        message = f"{origin}, raised again in {name} (pid={pid}, node={node})"
    else:
        origin = ""
        message = f"{exception_chain.describe(error)} (in {name}, pid={pid}, node={node})"
    text = exception_chain.format_text(error)
    link, depth = _link(error)
    return _encode(Failure(TASK, message, name, pid, node, attempt, text, link, origin=origin, depth=depth))


def _link(error: BaseException) -> tuple[Link | None, int]:
    try:
        link = exception_chain.encode(error)
    except Exception:  # an exception with properties that raise; its text is all there is
        return None, 0
    if not link.encoded:
        return link, 0
    encoded, depth = _shortened(link.encoded)
    return msgspec.structs.replace(link, encoded=encoded), depth


def _shortened(encoded: bytes) -> tuple[bytes, int]:
    """Return a failure that another one may contain, and the depth of the other one."""
    failure = _parse(encoded)
    if failure.depth >= DEPTH_MAX:
        return failure.cause or (failure.error.encoded if failure.error is not None else b""), failure.depth
    return encoded, failure.depth + 1


def encode_dependency(error: DependencyFailed, name: str) -> bytes:
    """Encode that ``name`` did not run because an argument failed."""
    cause = _parse(error.encoded)
    origin = cause.origin or cause.message
    inner, depth = _shortened(error.encoded)
    return _encode(Failure(DEPENDENCY, f"{name} did not run, because an argument failed: {origin}", name, cause.pid,
                           cause.node, traceback=cause.traceback, cause=inner, origin=origin, depth=depth))


def encode_constructor(encoded: bytes, name: str) -> bytes:
    """Encode that actor ``name`` died because its constructor failed with ``encoded``."""
    cause = _parse(encoded)
    return _encode(Failure("actor_died", f"actor {name} died in its constructor: {cause.message}", name, cause.pid,
                           cause.node, traceback=cause.traceback, cause=encoded))


def encode_system(kind: str, message: str, *, numbers: tuple[int, ...] = ()) -> bytes:
    """Encode a failure of one of ``SYSTEM_KINDS``."""
    return _encode(Failure(kind, message, numbers=numbers))


def encode_death(kind: str, name: str, death: Death | None, attempt: int = 0) -> bytes:
    """Encode that the process running ``name`` died; ``kind``: worker_died, actor_died or actor_unavailable. An actor
    whose death says that no place is left for it is unschedulable."""
    if kind == "actor_died" and death is not None and death.reason.startswith(UNSCHEDULABLE):
        return encode_system("actor_unschedulable",
                             f"actor {name} cannot be scheduled: {death.reason.removeprefix(UNSCHEDULABLE)}")
    subject = f"the worker running {name}" if kind == "worker_died" else f"actor {name}"
    if kind == "actor_unavailable":
        subject = f"the worker of {name}"
    message = f"{subject} died{_runs(attempt)}" if death is None else f"{subject} died{_runs(attempt)}: {manner(death)}"
    if death is None:
        return _encode(Failure(kind, message, name, attempt=attempt))
    return _encode(Failure(kind, message, name, death.pid, death.node, attempt))


def _runs(attempt: int) -> str:
    return f" in each of {attempt + 1} attempts" if attempt else ""


def manner(death: Death) -> str:
    """Say how a process ended: pid, node, signal or exit code, reason, and the last lines of its stderr."""
    import signal

    if death.signal:
        names = {number.value: number.name for number in signal.Signals}
        how = f"signal {death.signal} ({names.get(death.signal, 'unknown')})"
    else:
        how = f"exit code {death.code}"
    reason = f", {death.reason}" if death.reason else ""
    stderr = f"\nlast lines of its stderr:\n{death.stderr.rstrip()}" if death.stderr.strip() else ""
    return f"pid={death.pid}, node={death.node}, {how}{reason}{stderr}"


def _encode(failure: Failure) -> bytes:
    return _encoder.encode(failure)


def _parse(encoded: bytes) -> Failure:
    try:
        return _decoder.decode(encoded)
    except (msgspec.DecodeError, RecursionError) as error:
        return Failure("system", f"a failure of {len(encoded)} bytes arrived that cannot be decoded: {error}")


def decode(encoded: bytes) -> BaseException:
    """Return the exception to raise: for what user code raised a TaskError that is also of the user's type."""
    failure = _parse(encoded)
    if failure.kind not in (TASK, DEPENDENCY):
        return _system_error(failure)
    cause: BaseException | None
    if failure.kind == DEPENDENCY:
        cause = decode(failure.cause)
    else:
        cause = exception_chain.decode(failure.error, decode) if failure.error is not None else None
    error = TaskError(failure.message, cause=cause, function_name=failure.name, traceback_str=failure.traceback,
                      pid=failure.pid, node=failure.node)
    if cause is None:
        error.__cause__ = RemoteTraceback(failure.traceback)
    error = error.as_instanceof_cause()
    error.__dict__[CAME_AS] = (decode, (encoded,))
    return error


def _system_error(failure: Failure) -> BaseException:
    kind = SYSTEM_KINDS.get(failure.kind, MeshraySystemError)
    error: MeshrayError
    if kind is ObjectStoreFullError and failure.numbers:
        error = ObjectStoreFullError(*failure.numbers[:5])
    else:
        error = kind(failure.message)
    if failure.cause:
        error.__cause__ = decode(failure.cause)
    error.__dict__[CAME_AS] = (decode, (_encode(failure),))
    return error
