"""An actor, where it lives: builds the instance and runs its calls.

*Shell (runs user code, threads, asyncio).* Runs in workers that became an actor.

1. A call runs at most once per incarnation: an order number already seen is dropped, another incarnation's refused.
2. A plain class runs one call at a time, in the order of arrival; with ``max_concurrency`` > 1 or concurrency groups it
   has threads, and order is given up. A class with ``async def`` methods runs in one event loop, in the main thread.
3. The end (all handles gone, ``exit_actor``, ``__ray_terminate__``) waits behind the calls that came before it.

Source: DESIGN s5; OSDI'18 s3.2.
"""

from __future__ import annotations

import inspect
import os
import time
from typing import TYPE_CHECKING, Any

from meshray import errors, failures
from meshray.ids import task_id
from meshray.messages.node import ActorStarted, StartActor
from meshray.messages.sched import ActorBuilding
from meshray.messages.tasks import CallActor, CallEntry, CallsRefused, CancelTask, EndActor, TaskResult
from meshray.session.context import CURRENT, ActorExit, TaskContext
from meshray.transport.sockets import name_of

if TYPE_CHECKING:
    import concurrent.futures

    from meshray.session.actor_loop import EventLoop
    from meshray.session.executor import Executor

_ASYNC_CONCURRENCY = 1000


class ActorHost:
    """The one actor of this worker."""

    def __init__(self, executor: Executor, start: StartActor) -> None:
        self.executor = executor
        self.session = executor.session
        self.spec = start.spec
        self.incarnation = start.incarnation
        self.instance: Any = None
        self.loop: EventLoop | None = None
        self.context = TaskContext(self.spec.actor, self.spec.class_name + ".__init__", self.spec.job,
                                   actor=self.spec.actor, gpus=start.gpus)
        self._gpus = start.gpus
        root = self.session.root
        root.name, root.actor, root.gpus = self.spec.class_name, self.spec.actor, start.gpus
        self._seen: dict[bytes, int] = {}
        self._pools: dict[str, concurrent.futures.ThreadPoolExecutor] = {}
        self._running: dict[tuple[bytes, int], TaskContext] = {}
        self._cancelled: set[tuple[bytes, int]] = set()
        self._lenders: dict[tuple[bytes, int], CallEntry] = {}
        """Calls with references that have yet to run."""

    # --- birth ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Build the instance in the main thread and tell the node how that went."""
        spec = self.spec
        error: bytes | None = None
        token = CURRENT.set(self.context)
        try:
            if self._gpus is not None:
                self.executor.set_gpus(self._gpus)
            cls = self.session.functions.load(spec.class_id, spec.job)
            owner_route = spec.owner.encode()
            values = self.executor.values
            args, kwargs = values.arguments(owner_route, spec.actor, spec.creation, spec.owner_endpoint)
            self.session.call(lambda: self.session.to_node(ActorBuilding(spec.actor, self.incarnation)))
            self.session.driving.try_step()
            self.instance = cls(*args, **kwargs)
            del args, kwargs
            values.keep_borrowed(owner_route, spec.creation.seq)
            self._prepare()
        except BaseException as problem:
            error = failures.encode_exception(problem, f"{spec.class_name}.__init__", os.getpid(),
                                              self.session.surroundings.node_name, self.incarnation)
            problem.__traceback__ = None
        finally:
            CURRENT.reset(token)
        self.session.call(lambda: self.session.to_node(ActorStarted(spec.actor, self.incarnation, error)))
        self.session.driving.try_step()
        if error is not None:
            self.executor.leave("the actor's constructor failed")

    def _prepare(self) -> None:
        # asyncio and thread pools take 25 ms to import: only the actors that need them pay.
        spec = self.spec
        if spec.is_async:
            from meshray.session.actor_loop import EventLoop

            self.loop = EventLoop(self.session, self.executor, spec.max_concurrency or _ASYNC_CONCURRENCY, spec.groups)
            self.executor.jobs.append(self._run_loop)
        elif spec.max_concurrency > 1 or spec.groups:
            import concurrent.futures

            for group, size in {"": max(1, spec.max_concurrency), **(spec.groups or {})}.items():
                self._pools[group] = concurrent.futures.ThreadPoolExecutor(size, f"meshray-{group or 'calls'}")

    def _run_loop(self) -> None:
        assert self.loop is not None
        self.loop.run()

    @property
    def callers(self) -> list[bytes]:
        """The routes of all who have called."""
        return list(self._seen)

    # --- calls (leader) ------------------------------------------------------------------------------------------

    def on_call(self, route: bytes, message: CallActor) -> None:
        """Calls arrived: run them, or hand them to where they run."""
        if message.actor != self.spec.actor or message.incarnation != self.incarnation or self.executor.leaving:
            self.session.send(route, CallsRefused(message.actor, message.incarnation,
                                                  [call.seq for call in message.calls], "ended or reborn"))
            return
        seen = self._seen.get(route, 0)
        calls = []
        for call in message.calls:
            if call.order > seen:
                seen = call.order
                calls.append(call)
                if call.refs or call.arguments:
                    self._lenders[route, call.seq] = call
        self._seen[route] = seen
        self.executor.endpoints[route] = message.endpoint
        if name_of(route) in self.session.references.holds.dead:
            self.callers_died({route})
        if self.loop is not None:
            self.loop.submit(self, route, message, calls)
        else:
            for call in calls:
                self.executor.jobs.append(lambda call=call: self._dispatch(route, message, call))  # type: ignore[misc]

    def callers_died(self, gone: set[bytes]) -> None:
        """Hold what the calls of dead callers need: they are run all the same. (leader)"""
        for (route, _), call in list(self._lenders.items()):
            if route in gone:
                self.executor.values.adopt(route, call)

    def on_end(self, route: bytes, message: EndActor) -> None:
        """All handles are gone: leave after what is queued."""
        if message.incarnation == self.incarnation:
            if self.loop is not None:
                self.loop.end(message.reason)
            else:
                self.executor.jobs.append(lambda: self._end(message.reason))

    def _end(self, reason: str) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=True)
        self.executor.leave(reason or "ended")

    def _dispatch(self, route: bytes, message: CallActor, call: CallEntry) -> None:
        if not self._pools:
            self.run_call(route, message, call)
            return
        group = call.group or self.group_of(call.method)
        pool = self._pools.get(group) or self._pools[""]
        pool.submit(self._run_in_thread, route, message, call)

    def _run_in_thread(self, route: bytes, message: CallActor, call: CallEntry) -> None:
        self.run_call(route, message, call)
        self.session.driving.rouse()

    def group_of(self, method: str) -> str:
        """Return the concurrency group that a method was declared in."""
        options = getattr(getattr(type(self.instance), method, None), "__meshray_method__", None)
        return (options or {}).get("concurrency_group") or ""

    # --- one call ------------------------------------------------------------------------------------------------

    def run_call(self, route: bytes, message: CallActor, call: CallEntry) -> None:
        """Run one call of a plain or threaded actor in this thread."""
        context = self.begin(route, message, call)
        token = CURRENT.set(context)
        started_ns = time.monotonic_ns()
        main = not self._pools
        if main:
            self.executor.running = (route, call.seq, context)
        try:
            result = self.result(route, call, context, self.invoke(route, message, call, context))
        except BaseException as error:
            result = self.failed(call, error, context)
        finally:
            if main:
                self.executor.running = None
            CURRENT.reset(token)
        self.finish(route, call, context, started_ns, result)

    def begin(self, route: bytes, message: CallActor, call: CallEntry) -> TaskContext:
        """Return the context of a call that starts now."""
        spec = self.spec
        context = TaskContext(task_id(message.prefix, call.index), f"{spec.class_name}.{call.method}", spec.job,
                              actor=spec.actor, seq=call.seq, gpus=self._gpus)
        key = (route, call.seq)
        self._running[key] = context
        self._lenders.pop(key, None)
        if key in self._cancelled:
            self._cancelled.discard(key)
            context.cancelled = True
        return context

    def invoke(self, route: bytes, message: CallActor, call: CallEntry, context: TaskContext) -> Any:
        """Call the method with its arguments; return its value, or the coroutine that will have it."""
        if context.cancelled:
            raise KeyboardInterrupt
        method = self.method(call.method)
        if call.args is None and call.arguments is None and call.args_location is None:
            return method()
        args, kwargs = self.executor.values.arguments(route, context.task, call, message.endpoint)
        return method(*args, **kwargs)

    def result(self, route: bytes, call: CallEntry, context: TaskContext, value: Any) -> TaskResult:
        """Return the encoded value of a call."""
        if value is None and call.num_returns == 1:
            return TaskResult(call.seq)
        return self.executor.values.result(route, call.seq, context, value, call.num_returns)

    def finish(self, route: bytes, call: CallEntry, context: TaskContext, started_ns: int,
               result: TaskResult) -> None:
        """Record a call that ended and queue its answer."""
        self._running.pop((route, call.seq), None)
        executor = self.executor
        executor.events.append((context.name, started_ns, time.monotonic_ns() - started_ns, "actor", context.task,
                                result.error is not None))
        executor.executed += 1
        if executor.values.lent:
            executor.values.keep_borrowed(route, call.seq)
        executor.out.append((route, 0, result))

    def failed(self, call: CallEntry, error: BaseException, context: TaskContext) -> TaskResult:
        """Return the encoded failure of a call; ``ActorExit`` also ends the actor."""
        if isinstance(error, (ActorExit, SystemExit, errors.AsyncioActorExit)):
            self.executor.leave("exit_actor")
            if self.loop is not None:
                self.loop.stop()
            return TaskResult(call.seq, None, failures.encode_system(
                "actor_died", f"actor {self.spec.class_name} left by exit_actor() in {call.method}"))
        if self.loop is not None and self.loop.is_cancellation(error):
            if context.cancelled:
                return TaskResult(call.seq, None, failures.encode_system("cancelled", f"{context.name} was cancelled"))
            if self.executor.leaving:
                return TaskResult(call.seq, None, failures.encode_system(
                    "actor_died", f"actor {self.spec.class_name} left during {call.method}: {self.executor.leaving}"))
        return self.executor.failure(call.seq, error, context.name, context, call.retry_exceptions)

    def method(self, name: str) -> Any:
        """Return the bound method; ``__ray_call__`` applies a function to the instance."""
        if name == "__ray_terminate__":
            raise ActorExit
        if name == "__ray_ready__":
            return lambda: True
        if name == "__ray_call__":
            return lambda function, *args, **kwargs: function(self.instance, *args, **kwargs)
        try:
            return getattr(self.instance, name)
        except AttributeError:
            methods = [key for key, _ in inspect.getmembers(type(self.instance), callable) if not key.startswith("_")]
            raise AttributeError(f"actor {self.spec.class_name} has no method {name!r}; it has {methods}") from None

    def cancel(self, route: bytes, message: CancelTask) -> None:
        """Cancel a call: a coroutine is cancelled, a queued call dropped, a thread sees ``is_canceled()``. (leader)"""
        key = (route, message.seq)
        context = self._running.get(key)
        if message.recursive:
            self.session.outcomes.cancel_children(message.seq, force=False)
        if context is not None:
            context.cancelled = True
            if self.loop is not None:
                self.loop.cancel(key)
        else:
            self._cancelled.add(key)
