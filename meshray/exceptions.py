"""The errors of ``meshray.errors`` under the names that Ray programs use (``ray.exceptions``).

*Pure.* Used by user programs only; nothing in meshray imports it but the public API.

Names that stand for things meshray does not have (other languages, compiled graphs, its remote procedure calls) are
there so that programs load; they are never raised.

Source: ray 2.60.0, ``ray.exceptions``.
"""

from __future__ import annotations

from meshray.errors import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorHandleNotFoundError,
    ActorUnavailableError,
    ActorUnschedulableError,
    AsyncioActorExit,
    GetTimeoutError,
    MeshrayError,
    NodeDiedError,
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    ReferenceCountingAssertionError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskError,
    TaskUnschedulableError,
    UnserializableError,
    WorkerCrashedError,
)
from meshray.errors import ActorError as RayActorError
from meshray.errors import LocalNodeDiedError as LocalRayletDiedError
from meshray.errors import MeshraySystemError as RaySystemError

RayError = MeshrayError
RayTaskError = TaskError
UnserializableException = UnserializableError
OufOfBandObjectRefSerializationException = UnserializableError


class CrossLanguageError(MeshrayError):
    """Never raised: every worker speaks Python."""


class RpcError(MeshrayError):
    """Never raised: peers talk in messages, and what goes wrong has a name of its own."""


class AuthenticationError(MeshrayError):
    """The peer did not accept this process's key."""


class UserCodeException(MeshrayError):
    """Never raised: see ``TaskError``."""


class PlasmaObjectNotAvailable(MeshrayError):
    """Never raised: see ``ObjectLostError``."""


class TaskPlacementGroupRemoved(MeshrayError):
    """The placement group of the task was removed."""


class ActorPlacementGroupRemoved(MeshrayError):
    """The placement group of the actor was removed."""


class ObjectRefStreamEndOfStreamError(MeshrayError):
    """A stream of results has ended."""


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A generator that ran again gave another number of results."""


class RayChannelError(RaySystemError):
    """Never raised: there are no compiled graphs."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """Never raised: there are no compiled graphs."""


class RayCgraphCapacityExceeded(RaySystemError):
    """Never raised: there are no compiled graphs."""


class RayDirectTransportError(RaySystemError):
    """Never raised: there is no direct tensor transport."""


__all__ = [
    "ActorAlreadyExistsError", "ActorDiedError", "ActorHandleNotFoundError", "ActorPlacementGroupRemoved",
    "ActorUnavailableError", "ActorUnschedulableError", "AsyncioActorExit", "AuthenticationError", "CrossLanguageError",
    "GetTimeoutError", "LocalRayletDiedError", "MeshrayError", "NodeDiedError", "ObjectFetchTimedOutError",
    "ObjectFreedError", "ObjectLostError", "ObjectReconstructionFailedError", "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError", "OufOfBandObjectRefSerializationException", "OutOfDiskError", "OutOfMemoryError",
    "OwnerDiedError", "PendingCallsLimitExceeded", "PlasmaObjectNotAvailable", "RayActorError",
    "RayCgraphCapacityExceeded", "RayChannelError", "RayChannelTimeoutError", "RayDirectTransportError", "RayError",
    "RaySystemError", "RayTaskError", "ReferenceCountingAssertionError", "RpcError", "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError", "TaskCancelledError", "TaskError", "TaskPlacementGroupRemoved",
    "TaskUnschedulableError", "UnserializableError", "UnserializableException", "UserCodeException",
    "WorkerCrashedError",
]
