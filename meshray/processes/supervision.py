"""Which of a node's own services start again, when, and when to give up.

*Pure.* Runs in the node process.

1. A service that ended starts again: at once the first time, then after pauses that double.
2. Services that have replicas (``lasting``: global schedulers, and what of the control store is replicated) start
   again after pauses of at most ``PAUSE_MAX_NS``, for ever: the cluster goes on without them. The first start waits
   too, so that it does not take a CPU from those that are about to go on without it. Pauses double only for those that
   end soon after their start: until the others are back, one more end may be one too many.
3. Of all others, more than ``RESTARTS_MAX`` ends within ``RESTART_WINDOW_NS`` together end the node: whatever the
   cause is, starting again does not mend it.

Source: Erlang/OTP supervisor, restart intensity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

from meshray import config
from meshray.machine import Stop
from meshray.processes.node_events import ServiceExited, StartService

RESTARTS_MAX = 5
"""Ends of services that a node survives within the window: a crash or two, but not a loop."""

RESTART_WINDOW_NS = 60 * config.SECOND_NS
"""Ends longer ago than this are forgotten."""

PAUSE_NS = 100 * config.MILLISECOND_NS
"""Pause before the second start of a service within the window; doubles with each further one."""

PAUSE_MAX_NS = 1 * config.SECOND_NS
"""The longest pause of a service that has replicas."""

SOUND_NS = 2 * config.SECOND_NS
"""A service that has replicas and lived this long did not end by its own start."""


class Supervisor:
    """The recent ends of a node's services, and the starts that are due."""

    def __init__(self, lasting: Collection[str] = ()) -> None:
        self.lasting = frozenset(lasting)
        self._ends: deque[tuple[int, str]] = deque()
        self._due: dict[str, int] = {}
        self._started_ns: dict[str, int] = {}
        self._short_lives: dict[str, int] = {}
        """How many lives of each service were short, one after the other, up to the last."""

    def exited(self, event: ServiceExited, now_ns: int) -> list[Any]:
        """A service has ended."""
        while self._ends and now_ns - self._ends[0][0] > RESTART_WINDOW_NS:
            self._ends.popleft()
        before = sum(1 for _, name in self._ends if name == event.name)
        self._ends.append((now_ns, event.name))
        if event.name in self.lasting:
            lived_ns = now_ns - self._started_ns.get(event.name, -SOUND_NS)
            short = self._short_lives.get(event.name, 0) + 1 if lived_ns < SOUND_NS else 0
            self._short_lives[event.name] = short
            self._due[event.name] = now_ns + min(PAUSE_MAX_NS, PAUSE_NS << min(short, 10))
            return []
        ends = sum(name not in self.lasting for _, name in self._ends)
        if ends > RESTARTS_MAX:
            return [Stop(f"{ends} services ended within {RESTART_WINDOW_NS // config.SECOND_NS} s, "
                         f"{event.name} the last: {event.reason}")]
        self._due[event.name] = now_ns + (PAUSE_NS << (before - 1) if before else 0)
        return self.tick(now_ns)

    def forget(self, name: str) -> None:
        """This service does not run here any more."""
        self._due.pop(name, None)
        self._started_ns.pop(name, None)
        self._short_lives.pop(name, None)

    def tick(self, now_ns: int) -> list[Any]:
        """Start what is due."""
        due = [name for name, start_ns in self._due.items() if start_ns <= now_ns]
        for name in due:
            del self._due[name]
            self._started_ns[name] = now_ns
        return [StartService(name) for name in due]

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return min(self._due.values(), default=None)
