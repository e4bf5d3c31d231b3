"""What came to one simulated process, kept to measure what its decisions cost.

*Shell (CPU clock).* Used by ``perf.simulated_cluster``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Journal:
    """All that one process decided about, to be decided again by a fresh one, alone and against the clock."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Any]] = []
        self.warm_up = 0
        """How many entries came before the measured time."""

    def cpu_ns(self, decide: Callable[[Any, int], Any]) -> int:
        """Return the CPU time that the measured entries take."""
        for now_ns, event in self.entries[:self.warm_up]:
            decide(event, now_ns)
        measured = self.entries[self.warm_up:]
        started_ns = time.thread_time_ns()
        for now_ns, event in measured:
            decide(event, now_ns)
        return time.thread_time_ns() - started_ns
