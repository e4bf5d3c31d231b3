"""The event loop of an async actor.

*Shell (asyncio).* Runs in the main thread of a worker that became an async actor.

1. The loop's thread also leads the session: the socket's descriptor is one of the loop's readers, so a call costs no
   thread hand-over.
2. At most ``concurrency`` coroutines run at once; further calls wait in order.
3. If the loop is stuck in blocking code, another thread takes turns of the session (see ``_watch``).
4. What is due by the clock, or handed over by other threads, gives the loop a turn (see ``_set_timer``, ``_nudge``).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from meshray.messages.tasks import CallActor, CallEntry
from meshray.session.context import CURRENT

if TYPE_CHECKING:
    from meshray.session.actor_host import ActorHost
    from meshray.session.executor import Executor
    from meshray.session.session import Session

_STUCK_S = 0.02

Item = tuple[bytes, CallActor, CallEntry]


class EventLoop:
    """Runs an async actor's calls as coroutines."""

    def __init__(self, session: Session, executor: Executor, concurrency: int, groups: dict[str, int] | None) -> None:
        self.session = session
        self.executor = executor
        self.loop = asyncio.new_event_loop()
        self._host: ActorHost | None = None
        self._limits = {"": concurrency, **(groups or {})}
        self._active = dict.fromkeys(self._limits, 0)
        self._waiting: dict[str, deque[Item]] = {group: deque() for group in self._limits}
        self._arrived: deque[Item] = deque()
        self._tasks: dict[tuple[bytes, int], asyncio.Task[None]] = {}
        self._ending = ""
        self._scheduled = False
        self._beat = 0
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0

    def run(self) -> None:
        """Run until the actor ends. Called in the main thread."""
        asyncio.set_event_loop(self.loop)
        driving = self.session.driving
        descriptor = self.session.socket_fd()
        driving.autonomous = False
        background, driving.nudge = driving.nudge, self._nudge
        driving.wake()
        self.loop.add_reader(descriptor, self._pump)
        self.loop.add_reader(driving.wake_fd, self._pump)
        watcher = threading.Thread(target=self._watch, name="meshray-watch", daemon=True)
        watcher.start()
        try:
            self.loop.call_soon(self._pump)
            self.loop.run_forever()
        finally:
            self._over = True
            self.loop.remove_reader(descriptor)
            self.loop.remove_reader(driving.wake_fd)
            driving.autonomous = True
            driving.nudge = background
            for task in list(self._tasks.values()):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _pump(self) -> None:
        if self._over:
            return
        self._beat += 1
        driving = self.session.driving
        while True:
            if not driving.try_step():
                self.loop.call_later(0.001, self._pump)
                return
            if not self.session.has_input():
                break
        if self.executor.leaving:
            self.loop.stop()
        self._set_timer()

    def _set_timer(self) -> None:
        """Have the next turn when something is due by the clock."""
        delay_ms = self.session.until_deadline_ms()
        if self._timer is None or delay_ms < self._timer_ms:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ms = delay_ms
            self._timer = self.loop.call_later(delay_ms / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _nudge(self) -> None:
        """Have a turn soon. Any thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._pump)

    def _watch(self) -> None:
        driving = self.session.driving
        while not self.loop.is_closed() and not driving.closed:
            beat = self._beat
            time.sleep(_STUCK_S)
            if beat == self._beat and driving.stepping_thread == 0 and self.session.input_waits():
                driving.try_step()

    # --- calls ---------------------------------------------------------------------------------------------------

    def submit(self, host: ActorHost, route: bytes, message: CallActor, calls: list[CallEntry]) -> None:
        """Take calls. (leader, which may be another thread than the loop's)"""
        self._host = host
        for call in calls:
            self._arrived.append((route, message, call))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            if self.session.driving.stepping_thread == threading.main_thread().ident:
                self.loop.call_soon(self._start_arrived)
            else:
                self.loop.call_soon_threadsafe(self._start_arrived)

    def _start_arrived(self) -> None:
        self._scheduled = False
        assert self._host is not None
        while self._arrived:
            item = self._arrived.popleft()
            group = item[2].group or self._host.group_of(item[2].method)
            group = group if group in self._limits else ""
            if self._active[group] < self._limits[group]:
                self._start(group, item)
            else:
                self._waiting[group].append(item)

    def _start(self, group: str, item: Item) -> None:
        self._active[group] += 1
        task = self.loop.create_task(self._run(group, *item))
        self._tasks[item[0], item[2].seq] = task

    async def _run(self, group: str, route: bytes, message: CallActor, call: CallEntry) -> None:
        host = self._host
        assert host is not None
        context = host.begin(route, message, call)
        CURRENT.set(context)
        started_ns = time.monotonic_ns()
        try:
            value = host.invoke(route, message, call, context)
            if inspect.isawaitable(value):
                value = await value
            result = host.result(route, call, context, value)
            del value
        except BaseException as error:
            result = host.failed(call, error, context)
        host.finish(route, call, context, started_ns, result)
        self._done(group, (route, call.seq))

    def _done(self, group: str, key: tuple[bytes, int]) -> None:
        self._tasks.pop(key, None)
        self._active[group] -= 1
        if self._waiting[group]:
            self._start(group, self._waiting[group].popleft())
        if len(self.executor.out) == 1:
            self.loop.call_soon(self._pump)
        if self._ending and not self._tasks and not self._arrived:
            self.executor.leave(self._ending)
            self.loop.call_soon(self._pump)

    def is_cancellation(self, error: BaseException) -> bool:
        """Whether ``error`` is what a cancelled coroutine raises."""
        return isinstance(error, asyncio.CancelledError)

    def cancel(self, key: tuple[bytes, int]) -> None:
        """Cancel a running coroutine. (leader)"""
        task = self._tasks.get(key)
        if task is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(task.cancel)

    def end(self, reason: str) -> None:
        """Leave when everything that has arrived is done. (leader)"""
        self._ending = reason or "ended"

        def check() -> None:
            if not self._tasks and not self._arrived:
                self.executor.leave(self._ending)
                self._pump()

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(check)

    def stop(self) -> None:
        """Stop after the running callbacks."""
        self._nudge()
