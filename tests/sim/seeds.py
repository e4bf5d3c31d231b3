"""Run many seeds of a simulation, on all CPUs.

*Shell (processes, clock, stdout).* Used by ``gcs_seeds`` and ``reference_seeds``.

A seed that fails is printed with the command that repeats it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from functools import partial

CHUNK = 50
TOLD_MAX = 5


def repeat(module: str, seed: int) -> str:
    """Return the command that repeats a seed."""
    return f"python -m {module} --seed {seed}"


def attempt(run: Callable[[int], int], seed: int) -> tuple[int, int, str]:
    """Run a seed; return it, the number of events, and what went wrong."""
    try:
        return seed, run(seed), ""
    except AssertionError:
        return seed, 0, traceback.format_exc()


def main(module: str, purpose: str, run: Callable[[int], int]) -> int:
    """Parse the command line of ``python -m module``, run, report. ``run`` is a function of a module: it takes a seed,
    and returns how much happened or raises AssertionError."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=purpose.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default 0)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (one per CPU)")
    parser.add_argument("--seed", type=int, help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        error = attempt(run, arguments.seed)[2]
        print(error or "this seed passes")
        return int(bool(error))
    began = time.perf_counter()
    events, failed = 0, []
    with multiprocessing.Pool(arguments.jobs) as pool:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        for seed, happened, error in pool.imap_unordered(partial(attempt, run), seeds, CHUNK):
            events += happened
            if error:
                failed.append(seed)
                if len(failed) <= TOLD_MAX:
                    print(f"seed {seed} fails:\n{error}\nrepeat it with: {repeat(module, seed)}\n", flush=True)
    took_s = time.perf_counter() - began
    print(f"{arguments.seeds} seeds, {events} events in {took_s:.0f} s on {arguments.jobs} processes: "
          f"{len(failed)} failed {sorted(failed)[:20] if failed else ''}")
    return 1 if failed else 0
