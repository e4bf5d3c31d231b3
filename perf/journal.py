"""What came to one simulated process, kept to measure what its decisions cost.

*Shell (processes, CPU clock).* Used by ``perf.simulated_cluster``.

1. Decided again by a fresh process that has nothing else in its memory, a few events at a time, which are decoded
   before the clock starts: as in a real process. In the one that simulates, the same decisions take longer, because
   what they touch lies scattered over the memory of a thousand processes.
2. It is done several times, and for each few events the least time counts: the one least disturbed by other programs.
3. Bytecodes are counted beside: how many of them a decision takes is the same on every machine and in every run, and
   knows nothing of caches and of other programs. What they call in C is not in the count.
"""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from types import FrameType
from typing import Any

Decide = Callable[[Any, int], Any]

REPEATS = 3
"""The same journal is decided again this often."""

STEP = 50
"""Events that are decoded, and then timed, together."""


class Journal:
    """All that one process decided about, to be decided again by a fresh one, alone and against the clock."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Any]] = []
        self.warm_up = 0
        """How many entries came before the measured time."""

    def cost(self, fresh: Callable[[], Decide]) -> tuple[int, int]:
        """Return the CPU time in ns and the bytecodes of the measured entries; ``fresh``, to be pickled, makes what
        decides."""
        first = pickle.dumps(self.entries[:self.warm_up])
        steps = [pickle.dumps(self.entries[start:start + STEP])
                 for start in range(self.warm_up, len(self.entries), STEP)]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            return alone.submit(_cost, fresh, first, steps).result()


def _cost(fresh: Callable[[], Decide], first: bytes, steps: list[bytes]) -> tuple[int, int]:
    gc.disable()
    cpu_ns = sum(map(min, zip(*(_times(_warm(fresh, first), steps) for _ in range(REPEATS)), strict=True)))
    return cpu_ns, _bytecodes(_warm(fresh, first), steps)


def _warm(fresh: Callable[[], Decide], first: bytes) -> Decide:
    decide = fresh()
    for now_ns, event in pickle.loads(first):
        decide(event, now_ns)
    return decide


def _times(decide: Decide, steps: list[bytes]) -> list[int]:
    spent_ns = []
    for step in steps:
        entries = pickle.loads(step)
        started_ns = time.thread_time_ns()
        for now_ns, event in entries:
            decide(event, now_ns)
        spent_ns.append(time.thread_time_ns() - started_ns)
    return spent_ns


def _bytecodes(decide: Decide, steps: list[bytes]) -> int:
    count = 0

    def step_taken(frame: FrameType, what: str, argument: Any) -> Any:
        nonlocal count
        count += what == "opcode"
        return step_taken

    def entered(frame: FrameType, what: str, argument: Any) -> Any:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return step_taken

    for step in steps:
        entries = pickle.loads(step)
        sys.settrace(entered)
        try:
            for now_ns, event in entries:
                decide(event, now_ns)
        finally:
            sys.settrace(None)
    return count
