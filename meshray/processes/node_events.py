"""What the node's machine is told by its shell, and what it asks of it, beside messages.

*Pure.* Used by ``node`` and ``node_process``.
"""

from __future__ import annotations

import msgspec

from meshray.processes.replacement import Places


class WorkerForked(msgspec.Struct, frozen=True, gc=False):
    """Event: the zygote has forked the worker."""

    name: str
    pid: int


class WorkerForkFailed(msgspec.Struct, frozen=True, gc=False):
    """Event: the zygote could not fork."""

    name: str
    reason: str


class WorkerExited(msgspec.Struct, frozen=True, gc=False):
    """Event: a worker's process is gone. ``stderr`` are the last lines that it wrote."""

    name: str
    pid: int
    code: int
    signal: int
    stderr: str = ""


class DriverExited(msgspec.Struct, frozen=True, gc=False):
    """Event: the process of one or more drivers is gone."""

    pid: int


class LinesWritten(msgspec.Struct, frozen=True, gc=False):
    """Event: a worker wrote these lines. ``stream``: out or err."""

    worker: str
    stream: str
    lines: list[str]


class ServiceExited(msgspec.Struct, frozen=True, gc=False):
    """Event: one of the node's own service processes (shard, master, scheduler, zygote) is gone."""

    name: str
    reason: str
    pid: int = 0


class ForkWorker(msgspec.Struct, frozen=True, gc=False):
    """Effect: have the zygote fork a worker of that name."""

    name: str


class KillWorker(msgspec.Struct, frozen=True, gc=False):
    """Effect: have the zygote kill a worker."""

    name: str


class StartService(msgspec.Struct, frozen=True, gc=False):
    """Effect: start a service process of the node, mostly again."""

    name: str


class StopService(msgspec.Struct, frozen=True, gc=False):
    """Effect: end a service process of the node for good, and remove what it has on the disk."""

    name: str


class KeepPlaces(msgspec.Struct, frozen=True, gc=False):
    """Effect: write down where services run now, for the next start of a node."""

    places: Places


class GreetNode(msgspec.Struct, frozen=True, gc=False):
    """Effect: open a connection to another node now, because it cannot open one to us."""

    node: str


class WatchDriver(msgspec.Struct, frozen=True, gc=False):
    """Effect: report when the process ends (DriverExited). Watching twice is a no-op."""

    pid: int


class ReadLogs(msgspec.Struct, frozen=True, gc=False):
    """Effect: read what workers have written up to now (LinesWritten), then report LogsRead. ``driver`` leaves, and
    ``node`` is its node."""

    driver: str
    node: str


class LogsRead(msgspec.Struct, frozen=True, gc=False):
    """Event: what ReadLogs asked for has been told."""

    driver: str
    node: str
