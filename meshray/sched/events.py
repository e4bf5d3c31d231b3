"""What a local scheduler is told, and what it asks for, beside messages.

*Pure.* Made by the node process (events) and by ``LocalScheduler`` (effects).
"""

from __future__ import annotations

import msgspec

from meshray.messages.node import ActorSpec, Death

OUT = b">"


def route_to(name: str) -> bytes:
    """Return the route of a peer that we connect to (see ``transport.sockets``)."""
    return OUT + name.encode()


# --- events ------------------------------------------------------------------------------------------------------


class SessionJoined(msgspec.Struct, frozen=True, gc=False):
    """Event: a session registered on ``route``. ``kind``: driver or worker. ``job`` is a driver's own."""

    name: str
    route: bytes
    kind: str
    pid: int
    endpoint: str
    job: str = ""


class WorkerLeft(msgspec.Struct, frozen=True, gc=False):
    """Event: a worker said that it ends of its own will; ``WorkerDied`` follows when the process is gone."""

    name: str
    reason: str = ""


class WorkerDied(msgspec.Struct, frozen=True, gc=False):
    """Event: a worker's process is gone."""

    name: str
    death: Death


class DriverGone(msgspec.Struct, frozen=True, gc=False):
    """Event: a driver left or died; its job is over."""

    name: str


class WorkerStartFailed(msgspec.Struct, frozen=True, gc=False):
    """Event: ``count`` workers asked for by ``StartWorkers`` will never register."""

    count: int = 1
    reason: str = ""


class Transferred(msgspec.Struct, frozen=True, gc=False):
    """Event: ``size_bytes`` came from other nodes within ``elapsed_ns``; feeds the bandwidth average."""

    size_bytes: int
    elapsed_ns: int


# --- effects -----------------------------------------------------------------------------------------------------


class StartWorkers(msgspec.Struct, frozen=True, gc=False):
    """Effect: fork ``count`` workers; each comes back as ``SessionJoined`` or ``WorkerStartFailed``."""

    count: int


class StopWorker(msgspec.Struct, frozen=True, gc=False):
    """Effect: end this worker: by SIGKILL if ``kill``, else by ``Leave``. ``WorkerDied`` is expected."""

    name: str
    pid: int
    kill: bool
    reason: str = ""


class ActorStateChanged(msgspec.Struct, frozen=True):
    """Effect: write the actor's row and tell its watchers. ``state``: pending, alive, restarting, dead."""

    spec: ActorSpec
    state: str
    incarnation: int
    worker: str = ""
    endpoint: str = ""
    pid: int = 0
    death: Death | None = None
    error: bytes | None = None
    restarts_left: int = 0
    home: str = ""
    """The node that starts it again when this one is gone."""


class ActorOrphaned(msgspec.Struct, frozen=True, gc=False):
    """Effect: a detached actor whose home is here has lost its ``node``, where it was known in this incarnation. If its
    row says that it is ours to do, start it again there and by CreateActor; another node may have done so already."""

    actor: bytes
    incarnation: int
    node: str


class ActorPassed(msgspec.Struct, frozen=True, gc=False):
    """Event: a detached actor was started elsewhere: end what is here of it in an incarnation ``before`` this one."""

    actor: bytes
    before: int


class WorkerLabelled(msgspec.Struct, frozen=True, gc=False):
    """Effect: from now on the worker's output belongs to ``label`` of ``job``."""

    worker: str
    label: str
    job: str


class Warn(msgspec.Struct, frozen=True, gc=False):
    """Effect: tell the user behind this session."""

    session_route: bytes
    text: str
