"""Virtual time, and clocks that go at their own rate.

*Pure.* Runs in simulation tests. Everything that happens is an entry of one heap, ordered by time and then by the order
in which it was made, so that a seed is a schedule.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Schedule:
    """What is to happen when. ``now_ns`` is true time, which no process can see."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.events = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = 0

    def after(self, delay_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do ``action`` after ``delay_ns``."""
        self._made += 1
        heapq.heappush(self._heap, (self.now_ns + max(0, delay_ns), self._made, action, arguments))

    def run(self, duration_ns: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most until ``until`` holds; return whether it does."""
        end_ns = self.now_ns + duration_ns
        heap = self._heap
        while heap and heap[0][0] <= end_ns:
            self.now_ns, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            action(*arguments)
            if until is not None and until():
                return True
        self.now_ns = end_ns
        return until is not None and until()


class Clock:
    """What one process takes for the time: true time at another rate, from another start."""

    def __init__(self, schedule: Schedule, rate: float, start_ns: int) -> None:
        self.rate = rate
        self._schedule, self._start_ns = schedule, start_ns

    def now_ns(self) -> int:
        """Return this clock's time."""
        return self._start_ns + int(self._schedule.now_ns * self.rate)

    def delay_ns(self, due_ns: int) -> int:
        """Return how much true time is left until this clock shows ``due_ns``; 0 if it does already."""
        left_ns = due_ns - self.now_ns()
        return 0 if left_ns <= 0 else int(left_ns / self.rate) + 1
