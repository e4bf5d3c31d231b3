"""What a session remembers of a task, a lease and a scheduling class.

*Pure.* Runs in drivers and workers.

1. A task record lives while its task is pending; it keeps alive (pins) every reference that the task needs.
2. A finished record is kept only as lineage, by the references it made, until its row is in the task table.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from meshray.messages.node import Strategy
from meshray.messages.tasks import RefInfo, Value
from meshray.object_ref import ObjectRef

QUEUED, PUSHED, FINISHED, CANCELLED = range(4)


class Task(msgspec.Struct, eq=False):
    """One submitted task or actor call."""

    seq: int
    klass: Any
    """The SchedulingClass, or the ActorLink of a call."""
    prefix: bytes
    index: int
    returns: ObjectRef | list[ObjectRef]
    args: bytes | None = None
    slots: list[tuple[int | str, ObjectRef]] | None = None
    refs: list[RefInfo] | None = None
    pins: list[ObjectRef] | None = None
    """References inside the arguments, and the stored argument blob: held until the task has answered."""
    blob: Value | None = None
    state: int = QUEUED
    attempt: int = 0
    retries_left: int = 0
    lease: Any = None
    waits_for: int = 0
    """How many of ``slots`` have no value yet."""
    method: str = ""
    num_returns: int = 1
    order: int = 0
    group: str | None = None
    retry_exceptions: bytes | None = None
    lost_at: set[str] | None = None
    """Nodes whose worker died with this task: a result may lie there that nobody has heard of."""
    submitted_ns: int = 0
    parent_seq: int = 0


class Lease(msgspec.Struct, eq=False):
    """The right to push tasks of one class to one worker."""

    number: int
    klass: SchedulingClass
    worker: str
    route: bytes
    node: str
    pid: int
    gpus: list[int] | None = None
    outstanding: dict[int, Task] = {}
    blocked: bool = False
    reclaimed: bool = False
    recalling: bool = False
    idle_since_ns: int = 0
    answered_ns: int = 0
    calls: int = 0
    """Tasks answered under this lease: counts only if the class has ``max_calls``."""


class SchedulingClass(msgspec.Struct, eq=False):
    """Tasks that are alike to the scheduler: same function, resources and strategy."""

    number: int
    function: bytes
    name: str
    resources: dict[str, int]
    strategy: Strategy
    num_returns: int
    max_calls: int = 0
    """A worker ends after that many tasks; 0 is no limit."""
    ready: bool = False
    """Whether the function is in the function table, so that any worker can fetch it."""
    queue: deque[Task] = msgspec.field(default_factory=deque)
    leases: dict[int, Lease] = {}
    hungry: int = 0
    """Leases with nothing outstanding that accept work."""
    mean_ns: int = 0
    declared: int = 0
    stuck: str = ""
    retry_exceptions: bytes | None = None
    max_retries: int = 0
    used_ns: int = 0
    parts: dict[str, SchedulingClass] = {}
    """The same function's tasks whose inputs lie on one node, by node (see ``locality``)."""
    input_bytes: dict[str, int] | None = None
    """Of a part: where the inputs of a task lie, as of the last one."""
    dropped: int = 0
    """Tasks in the queue that were cancelled there, at most."""
    looked_ns: int = 0
    """When the leases were last looked through for long tasks."""
