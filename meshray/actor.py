"""ActorClass and ActorHandle: what ``@meshray.remote`` makes of a class, and what ``.remote()`` returns.

*Pure* but for its session. Used by drivers and workers.

1. All handles of an actor, wherever they are, share one reference; the actor ends when the last one is gone.
2. A handle from ``get_actor`` does not keep the actor alive, and neither do handles of a detached actor.
3. Methods are declared by the class; calling one directly is an error that says how to call it.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from meshray import errors, options
from meshray.call_shape import CallShape, shape_of
from meshray.ids import task_id
from meshray.messages.node import ActorSpec
from meshray.object_ref import PENDING, READY, ObjectRef
from meshray.options import ActorOptions
from meshray.remote_function import attach_arguments
from meshray.session import current
from meshray.session.actors import ActorLink, guard
from meshray.session.context import exit_actor as exit_actor
from meshray.session.naming import claim_name, find_actor, namespace_of
from meshray.session.records import Task
from meshray.session.session import Session

RESERVED = ("__ray_terminate__", "__ray_ready__", "__ray_call__")


class MethodMeta(msgspec.Struct, frozen=True):
    """How one method is called unless ``.options`` says otherwise."""

    num_returns: int = 1
    group: str | None = None
    max_task_retries: int | None = None
    retry_exceptions: bytes | None = None
    shape: CallShape = CallShape()


class MethodTable(msgspec.Struct, frozen=True):
    """What an actor's row keeps so that ``get_actor`` can make a handle."""

    methods: dict[str, MethodMeta]
    max_pending_calls: int = -1


class ActorMethod:
    """A method of an actor: call ``.remote(...)``, get an ``ObjectRef`` at once."""

    __slots__ = ("_handle", "_meta", "_name")

    def __init__(self, handle: ActorHandle, name: str, meta: MethodMeta) -> None:
        self._handle = handle
        self._name = name
        self._meta = meta

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; return its reference (a list for ``num_returns`` other than 1)."""
        return call(self._handle, self._name, self._meta, args, kwargs)

    def options(self, **changes: Any) -> ActorMethod:
        """Return the same method with other options (``num_returns``, ``concurrency_group``, ...)."""
        chosen = options.method_options(changes)
        meta = MethodMeta(
            chosen.get("num_returns", self._meta.num_returns),
            chosen.get("concurrency_group", self._meta.group),
            chosen.get("max_task_retries", self._meta.max_task_retries),
            options.retry_bytes(chosen["retry_exceptions"]) if "retry_exceptions" in chosen
            else self._meta.retry_exceptions, self._meta.shape)
        return ActorMethod(self._handle, self._name, meta)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"actor method {self._name} cannot be called directly: use .{self._name}.remote(...)")


class ActorHandle:
    """A running (or coming) actor. Pass it to tasks and other actors; its methods have ``.remote()``."""

    def __init__(self, actor: bytes, class_name: str, methods: dict[str, MethodMeta], ref: ObjectRef | None,
                 max_task_retries: int, max_pending_calls: int = -1) -> None:
        self._actor_id = actor
        self._class_name = class_name
        self._methods = methods
        self._ref = ref
        self._max_task_retries = max_task_retries
        self._max_pending_calls = max_pending_calls
        self._generation = -1
        self._link: ActorLink | None = None

    def __getattr__(self, name: str) -> ActorMethod:
        methods = self.__dict__.get("_methods") or {}
        meta = methods.get(name)
        if meta is None:
            if name in RESERVED:
                meta = MethodMeta()
            else:
                raise AttributeError(
                    f"actor {self.__dict__.get('_class_name')} has no method {name!r}; it has {sorted(methods)}")
        return ActorMethod(self, name, meta)

    def _link_in(self, session: Session) -> ActorLink:
        if self._link is None or self._generation != current.generation:
            self._link = session.actors.link(self._actor_id, self._class_name, self._max_task_retries)
            self._link.calls_max = self._max_pending_calls
            self._generation = current.generation
        return self._link

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._actor_id, self._class_name, self._methods, self._ref, self._max_task_retries,
                             self._max_pending_calls)

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id.hex()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)


def call(handle: ActorHandle, name: str, meta: MethodMeta, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make one call and hand it to the session. The hot path of actor calls (``perf/test_actors.py``)."""
    meta.shape.check(name, args, kwargs)
    session = current._session or current.session()
    link = handle._link if handle._generation == current.generation else None
    if link is None:
        link = handle._link_in(session)
    if 0 < link.calls_max <= len(link.queue) + len(link.outstanding):
        raise errors.PendingCallsLimitExceeded(
            f"{handle._class_name} has {link.calls_max} unanswered calls of this process, its max_pending_calls: "
            "get some results first, or raise the limit")
    context = session.context()
    prefix, index = context.prefix(), context.next_index()
    seq = session.next_seq()
    returns: Any
    if meta.num_returns == 1:
        returns = ObjectRef(PENDING, None, link, prefix, index)
    else:
        returns = [ObjectRef(PENDING, None, link, prefix, index, number) for number in range(meta.num_returns)]
    task = Task(seq, link, prefix, index, returns)
    task.method = name
    task.num_returns = meta.num_returns
    task.group = meta.group
    task.parent_seq = context.seq
    task.retry_exceptions = meta.retry_exceptions
    task.retries_left = handle._max_task_retries if meta.max_task_retries is None else meta.max_task_retries
    if args or kwargs:
        attach_arguments(session, task, args, kwargs, name)
    session.actors.enqueue(link, task)
    if task.waits_for:
        session.call(lambda: session.outcomes.wait_for_arguments(task))
    return returns if meta.num_returns else None


class ActorClass:
    """A class whose instances are actors: ``Handle = Class.remote(...)``."""

    def __init__(self, cls: type, actor_options: ActorOptions) -> None:
        self._cls = cls
        self._options = actor_options
        self._methods = methods_of(cls)
        self._shape = shape_of(cls)
        self._generation = -1
        self._class_id = b""
        self._ready = False
        self._waiting: list[Any] = []
        self.__name__ = cls.__name__
        self.__doc__ = cls.__doc__
        self.__module__ = cls.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"actor class {self.__name__} cannot be instantiated directly: use {self.__name__}.remote(...)")

    def options(self, **changes: Any) -> ActorClass:
        """Return the same class with other options, for example ``A.options(name="a").remote()``."""
        return ActorClass(self._cls, options.change_actor(self._options, changes))

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._cls, self._options)

    def __repr__(self) -> str:
        return f"ActorClass({self.__name__})"

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Create an actor; return its handle at once, before the constructor has run."""
        session = current.session()
        chosen = self._options
        self._shape.check(f"{self.__name__}.__init__", args, kwargs)
        if self._generation != current.generation:
            self._export(session)
        namespace = chosen.namespace or namespace_of(session) if chosen.name else ""
        # The ids come from the process, not from the task: a task that runs again makes new actors.
        prefix, index = session.root.prefix(), session.root.next_index()
        actor = task_id(prefix, index)
        detached = chosen.lifetime == "detached"
        if chosen.name and not claim_name(session, namespace, chosen.name, actor):
            if chosen.get_if_exists:
                return handle_of(find_actor(session, namespace, chosen.name))
            raise errors.ActorAlreadyExistsError(
                f"the name {chosen.name!r} is taken in namespace {namespace!r}: choose another, "
                "use get_actor(), or pass get_if_exists=True")
        ref = ObjectRef(READY, None, None, prefix, index)
        link = session.actors.expect(actor, self.__name__, chosen.max_task_retries)
        if not detached:
            guard(ref, actor, session.actors)
        task = Task(session.next_seq(), link, prefix, index, [])
        if args or kwargs:
            attach_arguments(session, task, args, kwargs, f"{self.__name__}.__init__")
        is_async = any(inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
                       for _, member in inspect.getmembers(self._cls, inspect.isfunction))

        def create() -> None:
            entry = session.references.entry_of(task, "")
            session.actors.create(ActorSpec(
                actor, session.name, session.endpoint, session.context().job, self._class_id, self.__name__, entry,
                options.actor_place_resources(chosen), options.actor_run_resources(chosen), chosen.max_restarts,
                chosen.max_task_retries, chosen.max_concurrency or 0, is_async, chosen.name or "", namespace, detached,
                options.strategy_of(chosen), None, chosen.concurrency_groups, b"",
                msgspec.msgpack.encode(MethodTable(self._methods, chosen.max_pending_calls))), task)

        def when_exported() -> None:
            session.outcomes.wait_for_creation(task, create)

        session.call(lambda: when_exported() if self._ready else self._waiting.append(when_exported))
        return ActorHandle(actor, self.__name__, self._methods, None if detached else ref, chosen.max_task_retries,
                           chosen.max_pending_calls)

    def _export(self, session: Session) -> None:
        self._ready = False
        self._waiting = []

        def ready() -> None:
            self._ready = True
            waiting, self._waiting = self._waiting, []
            for start in waiting:
                start()

        self._class_id = session.functions.export(self._cls, self.__name__, ready)
        self._generation = current.generation


def methods_of(cls: type) -> dict[str, MethodMeta]:
    """Return how each public method of a class is called."""
    methods = {}
    for name, member in inspect.getmembers(cls, callable):
        if name.startswith("__") and name != "__call__":
            continue
        declared = getattr(member, "__meshray_method__", {})
        retry = declared.get("retry_exceptions")
        methods[name] = MethodMeta(declared.get("num_returns", 1), declared.get("concurrency_group"),
                                   declared.get("max_task_retries"),
                                   None if retry is None else options.retry_bytes(retry),
                                   shape_of(member, bound=not isinstance(inspect.getattr_static(cls, name),
                                                                         (staticmethod, classmethod))))
    return methods


def handle_of(spec: ActorSpec) -> ActorHandle:
    """Return a handle that does not keep the actor alive, from its row."""
    table = msgspec.msgpack.decode(spec.method_table, type=MethodTable)
    return ActorHandle(spec.actor, spec.class_name, table.methods, None, spec.max_task_retries, table.max_pending_calls)
