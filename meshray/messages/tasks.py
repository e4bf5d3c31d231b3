"""Messages between the owner of tasks or caller of an actor and the worker that runs them.

*Pure.* The owner connects to the worker's ROUTER; answers come back on the same connection, so each direction is
first in, first out.

Dialog::

    owner  -> worker  PushTasks | CallActor      many per message
    worker -> owner   TasksFinished              in batches; at once when nothing else is queued
    owner  -> worker  RecallTasks                give back what you have not started
    worker -> owner   TasksRecalled
    owner  -> worker  CancelTask
    owner  -> worker  ReleaseReturns             the owner holds what the results contain
    worker -> owner   ReturnsPinned              now and then, if that has not come

Source: OSDI'18 s4.2; direct task push as in Wang et al., NSDI'21 s4.
"""

from __future__ import annotations

from meshray.messages.base import Message, Part


class Location(Part):
    """Where a sealed object lies: a range of one node's arena, as of ``generation`` of the board (``store.pins``)."""

    node: str
    offset: int
    size_bytes: int
    generation: int = 0


class RefInfo(Part):
    """A reference inside a value: the object and the process that owns it."""

    object: bytes
    owner: str
    endpoint: str


class Value(Part):
    """One value: inline bytes (``data``), or a stored object (``location``). All None stands for Python's None.

    ``refs`` lists the references inside the value, so that a receiver can hold them without decoding it.
    """

    data: bytes | None = None
    location: Location | None = None
    refs: list[RefInfo] | None = None
    object: bytes | None = None


class Argument(Part):
    """A resolved top-level reference argument: where it goes, its value, and (for a stored value) its owner."""

    key: int | str
    value: Value
    is_error: bool = False
    ref: RefInfo | None = None


class TaskEntry(Part):
    """One task of a batch. ``seq`` is the owner's number for it; ``index`` its place under the batch's parent."""

    seq: int
    index: int
    args: bytes | None = None
    arguments: list[Argument] | None = None
    refs: list[RefInfo] | None = None
    args_location: Location | None = None


class PushTasks(Message, tag=1):
    """owner -> worker. Run these tasks in order. ``endpoint`` is the owner's; ``retry_exceptions`` is a pickled bool or
    list of exception types; after ``max_calls`` tasks under this lease (0: no limit) the worker ends. Answered by
    TasksFinished. Retry: a task is re-pushed only after
    its worker is known dead or it was recalled."""

    lease: int
    function: bytes
    name: str
    prefix: bytes
    num_returns: int
    tasks: list[TaskEntry]
    job: str = ""
    attempt: int = 0
    gpus: list[int] | None = None
    max_calls: int = 0
    endpoint: str = ""
    retry_exceptions: bytes | None = None


class TaskResult(Part):
    """Outcome of one task. ``values`` None stands for a single return of None; ``error`` is an encoded failure."""

    seq: int
    values: list[Value] | None = None
    error: bytes | None = None
    retryable: bool = False


class TasksFinished(Message, tag=2):
    """worker -> owner. Outcomes; ``mean_ns`` is the worker's exponential average of this function's run time."""

    results: list[TaskResult]
    mean_ns: int = 0
    lease: int = 0


class RecallTasks(Message, tag=3):
    """owner -> worker. Give back every task of this lease that has not started, at most ``count_max`` (0: all).
    Answered by TasksRecalled."""

    lease: int
    count_max: int = 0


class TasksRecalled(Message, tag=4):
    """worker -> owner. These will not run here; the owner may push them elsewhere. ``blocked``: the running task waits
    for others, so push nothing here until it has answered."""

    lease: int
    seqs: list[int]
    blocked: bool = False


class CancelTask(Message, tag=5):
    """owner -> worker. Drop the task if queued; interrupt it if running (``force``: end the process). Idempotent."""

    seq: int
    force: bool = False
    recursive: bool = True


class CallEntry(Part):
    """One actor method call. ``order`` is dense per caller and incarnation: a gap or a repeat is refused."""

    seq: int
    index: int
    order: int
    method: str
    args: bytes | None = None
    arguments: list[Argument] | None = None
    refs: list[RefInfo] | None = None
    num_returns: int = 1
    args_location: Location | None = None
    group: str | None = None
    retry_exceptions: bytes | None = None


class CallActor(Message, tag=6):
    """caller -> actor's worker. Run these methods in order of ``order``. Answered by TasksFinished. Retry: by
    (caller, incarnation, order), each runs at most once per incarnation."""

    actor: bytes
    incarnation: int
    prefix: bytes
    calls: list[CallEntry]
    job: str = ""
    endpoint: str = ""


class CallsRefused(Message, tag=7):
    """actor's worker -> caller. These calls did not run: wrong incarnation, or the actor is ending."""

    actor: bytes
    incarnation: int
    seqs: list[int]
    reason: str


class ReleaseReturns(Message, tag=8):
    """owner -> worker. The owner now holds the references inside these results; the worker may let go of its own."""

    seqs: list[int]


class ReturnsPinned(Message, tag=10):
    """worker -> owner on another machine. I still keep the references inside these results: do you need that? Answered
    by ReleaseReturns for those that need it no more. Idempotent; sent now and then."""

    seqs: list[int]


class EndActor(Message, tag=9):
    """owner -> actor's worker. All handles are gone (or ``__ray_terminate__``): finish what is queued, then exit."""

    actor: bytes
    incarnation: int
    reason: str = ""


MESSAGES = (PushTasks, TasksFinished, RecallTasks, TasksRecalled, CancelTask, CallActor, CallsRefused,
            ReleaseReturns, EndActor, ReturnsPinned)
