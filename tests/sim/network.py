"""Virtual time and a seeded network for simulations.

*Pure.* Runs in tests.

1. Everything that happens is an entry of one heap, ordered by virtual time and then by the order it was made.
2. Messages of one pair of processes stay in order; those of different pairs overtake each other.
3. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

MS = 1_000_000
S = 1_000_000_000


class Clock:
    """Virtual time in nanoseconds, and what is to happen when."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.events = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._made = 0

    def at(self, when_ns: int, action: Callable[[], None]) -> None:
        """Do ``action`` at ``when_ns``, at the earliest now."""
        self._made += 1
        heapq.heappush(self._heap, (max(when_ns, self.now_ns), self._made, action))

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do ``action`` after ``delay_ns``."""
        self.at(self.now_ns + delay_ns, action)

    def run(self, until: Callable[[], bool], limit_ns: int) -> bool:
        """Let time pass until ``until`` holds; False if ``limit_ns`` came first or nothing is left to happen."""
        while not until():
            if not self._heap or self._heap[0][0] > limit_ns:
                return False
            self.now_ns, _, action = heapq.heappop(self._heap)
            self.events += 1
            action()
        return True


class Network:
    """Delivers messages between named processes late, sometimes twice, and sometimes not at all."""

    def __init__(self, clock: Clock, rng: random.Random, *, delay_max_ns: int = MS, loss: float = 0.0,
                 duplication: float = 0.0, lossy: tuple[type, ...] = (), repeatable: tuple[type, ...] = ()) -> None:
        """``lossy`` are the messages whose protocol repeats them, ``repeatable`` those that may come twice."""
        self.clock = clock
        self.rng = rng
        self.sent: dict[str, int] = {}
        self._delay_max_ns = delay_max_ns
        self._loss = loss
        self._duplication = duplication
        self._lossy = lossy
        self._repeatable = repeatable
        self._busy_until: dict[tuple[str, str], int] = {}

    def send(self, source: str, target: str, message: Any, deliver: Callable[[], None]) -> None:
        """Carry ``message`` from ``source`` to ``target``."""
        kind = type(message)
        self.sent[kind.__name__] = self.sent.get(kind.__name__, 0) + 1
        if kind in self._lossy and self.rng.random() < self._loss:
            return
        copies = 2 if kind in self._repeatable and self.rng.random() < self._duplication else 1
        for _ in range(copies):
            arrival_ns = self.clock.now_ns + self.rng.randrange(50_000, self._delay_max_ns + 50_000)
            arrival_ns = max(arrival_ns, self._busy_until.get((source, target), 0) + 1)
            self._busy_until[source, target] = arrival_ns
            self.clock.at(arrival_ns, deliver)
