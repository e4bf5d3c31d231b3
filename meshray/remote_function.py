"""RemoteFunction: what ``@meshray.remote`` makes of a function.

*Pure* but for its session. Used by drivers and workers. ``_submit`` is the hot path (``perf/test_tasks.py``).

1. A function is exported when it is first called in a session, and again if it is called in another session.
2. ``.options()`` never changes the original. The same options give the same object again: a scheduling class belongs to
   it, with its leases and with what it knows of the tasks' times, and a program may call ``.options()`` for every task.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from meshray import config, options, serialization
from meshray.call_shape import shape_of
from meshray.object_ref import PENDING, ObjectRef
from meshray.options import TaskOptions
from meshray.session import current
from meshray.session.records import SchedulingClass, Task
from meshray.session.session import Session

VARIANTS_MAX = 256
"""Different options of one function for which the object is kept."""

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """A function that runs as tasks: call ``.remote(...)``, get an ``ObjectRef`` at once."""

    def __init__(self, function: Callable[P, R], task_options: TaskOptions,
                 variants: dict[Any, RemoteFunction[P, R]] | None = None) -> None:
        """``variants``: the same function with other options, by these."""
        self._variants = {} if variants is None else variants
        self._function = function
        self._options = task_options
        self._name: str = task_options.name or getattr(function, "__qualname__", None) or type(function).__name__
        self._shape = shape_of(function)
        self._generation = -1
        self._klass: SchedulingClass | None = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"remote function {self._name} cannot be called directly: use {self._name}.remote(...), "
            f"or {self._name}.__wrapped__(...) to run it here")

    def options(self, **changes: Any) -> RemoteFunction[P, R]:
        """Return the same function with other options, for example ``f.options(num_cpus=2).remote()``."""
        chosen = options.change_task(self._options, changes)
        key = options.key(chosen)
        variant = self._variants.get(key) if key is not None else None
        if variant is None:
            variant = RemoteFunction(self._function, chosen, self._variants)
            if key is not None:
                if len(self._variants) >= VARIANTS_MAX:
                    self._variants.clear()
                self._variants[key] = variant
        return variant

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"RemoteFunction({self._name})"

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task; return its reference at once (a list of them for ``num_returns`` other than 1)."""
        session = current._session
        if session is None or self._generation != current.generation:
            session = current.session()
            self._export(session)
        self._shape.check(self._name, args, kwargs)
        return submit(session, self._klass, args, kwargs)  # type: ignore[arg-type]

    def _export(self, session: Session) -> None:
        chosen = self._options
        submitter = session.submitter
        number = session.next_seq()
        klass = SchedulingClass(
            number, b"", self._name, options.task_resources(chosen), options.strategy_of(chosen),
            chosen.num_returns, retry_exceptions=options.retry_bytes(chosen.retry_exceptions),
            max_retries=chosen.max_retries, max_calls=chosen.max_calls, leases={}, parts={})

        def ready() -> None:
            submitter.exported(klass)

        submitter.classes[number] = klass
        klass.function = session.functions.export(self._function, self._name, ready)
        self._klass = klass
        self._generation = current.generation


def submit(session: Session, klass: SchedulingClass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a task of one call and hand it to the session."""
    context = session.context()
    prefix, index = context.prefix(), context.next_index()
    seq = session.next_seq()
    returns: Any
    if klass.num_returns == 1:
        first = returns = ObjectRef(PENDING, None, None, prefix, index)
        task = Task(seq, klass, prefix, index, first)
        first._task = task
        session.lineage.note(first, session.now_ns)
    else:
        returns = [ObjectRef(PENDING, None, None, prefix, index, number) for number in range(klass.num_returns)]
        task = Task(seq, klass, prefix, index, returns)
        task.num_returns = klass.num_returns
        if returns:
            returns[0]._task = task
            session.lineage.note(returns[0], session.now_ns)
    task.retries_left = klass.max_retries
    task.parent_seq = context.seq
    if args or kwargs:
        attach_arguments(session, task, args, kwargs, klass.name)
    if task.waits_for:
        session.outcomes.pending[seq] = task
        session.call(lambda: session.outcomes.wait_for_arguments(task))
    elif task.slots is not None or task.blob is not None:
        session.enqueue(session.submitter.near_inputs(klass, task), task)
    else:
        session.enqueue(klass, task)
    return returns if klass.num_returns else None


def attach_arguments(session: Session, task: Task, args: tuple[Any, ...], kwargs: dict[str, Any], of: Any) -> None:
    """Serialize the arguments of ``task``: inline, or as a stored blob if large. ``of`` is called with them."""
    data, buffers, slots, refs = serialization.serialize_args(args, kwargs, of=of)
    if refs:
        task.pins = list(refs)
        task.refs = [session.references.info_of(ref) for ref in refs]
    if slots:
        task.slots = slots
        task.waits_for = sum(1 for _, ref in slots if ref._state == PENDING)
    if data is None:
        return
    if len(data) <= config.INLINE_BYTES_MAX and not buffers:
        task.args = data
        return
    packed = serialization.Serialized(data, buffers)
    if packed.size_bytes <= config.INLINE_BYTES_MAX:
        task.args = packed.inline()
    else:
        blob = session.objects.blob(task, packed)
        task.pins = [*(task.pins or ()), blob]
        task.blob = session.references.value_of(blob)
