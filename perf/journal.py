"""What came to one simulated process, kept to measure what its decisions cost.

*Shell (CPU clock).* Used by ``perf.simulated_cluster``.

1. Decided again by a fresh process, a few events at a time, which are copied before the clock starts: a real process
   has just decoded what it decides about, while the originals lie scattered over the memory of a thousand processes.
2. It is done several times, and for each few events the least time counts: the one least disturbed by other programs.
3. Bytecodes are counted beside: how many of them a decision takes is the same on every machine and in every run, and
   knows nothing of caches and of other programs. What they call in C is not in the count.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

REPEATS = 3
"""The same journal is decided again this often."""

STEP = 50
"""Events that are copied, and then timed, together."""


class Journal:
    """All that one process decided about, to be decided again by a fresh one, alone and against the clock."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Any]] = []
        self.warm_up = 0
        """How many entries came before the measured time."""

    def cpu_ns(self, fresh: Callable[[], Callable[[Any, int], Any]]) -> int:
        """Return the CPU time that the measured entries take; ``fresh`` makes a process."""
        return sum(map(min, zip(*(self._once(fresh()) for _ in range(REPEATS)), strict=True)))

    def bytecodes(self, fresh: Callable[[], Callable[[Any, int], Any]]) -> int:
        """Return how many bytecodes the measured entries take; ``fresh`` makes a process."""
        decide, count = fresh(), 0

        def step(frame: FrameType, what: str, argument: Any) -> Any:
            nonlocal count
            count += what == "opcode"
            return step

        def enter(frame: FrameType, what: str, argument: Any) -> Any:
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            return step

        for now_ns, event in self.entries[:self.warm_up]:
            decide(event, now_ns)
        before = sys.gettrace()
        sys.settrace(enter)
        try:
            for now_ns, event in self.entries[self.warm_up:]:
                decide(event, now_ns)
        finally:
            sys.settrace(before)
        return count

    def _once(self, decide: Callable[[Any, int], Any]) -> list[int]:
        for now_ns, event in self.entries[:self.warm_up]:
            decide(event, now_ns)
        spent_ns = []
        for start in range(self.warm_up, len(self.entries), STEP):
            step = pickle.loads(pickle.dumps(self.entries[start:start + STEP]))
            started_ns = time.thread_time_ns()
            for now_ns, event in step:
                decide(event, now_ns)
            spent_ns.append(time.thread_time_ns() - started_ns)
        return spent_ns
