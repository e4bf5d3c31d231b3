"""Run many seeds of the simulated control store, on all CPUs.

*Shell (processes, clock, stdout).* ``python -m tests.sim.gcs_seeds [--seeds N] [--first N] [--jobs N] [--seed N]``.

A seed that fails is printed with the command that repeats it, and the exit code is 1, unless it is a bug that is known
and still open (``OPEN``): then it is only printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback

from tests.sim.gcs_sim.scenarios import run

CHUNK = 50
TOLD_MAX = 5
OPEN = {2841: "a member with an empty disk becomes the tail of a later epoch, after crashes: see docs/NEXT.md"}
"""Seeds that show a bug of the control store which is not mended yet, with what goes wrong."""


def repeat(seed: int) -> str:
    """Return the command that repeats a seed."""
    return f"python -m tests.sim.gcs_seeds --seed {seed}"


def attempt(seed: int) -> tuple[int, int, str]:
    """Run a seed; return it, the number of events, and what went wrong."""
    try:
        return seed, run(seed).schedule.events, ""
    except AssertionError:
        return seed, 0, traceback.format_exc()


def main() -> int:
    """Parse the command line, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.gcs_seeds", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default 0)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (one per CPU)")
    parser.add_argument("--seed", type=int, help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(attempt(arguments.seed)[2] or "this seed passes")
        return 0
    began = time.perf_counter()
    events, failed = 0, []
    with multiprocessing.Pool(arguments.jobs) as pool:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        for seed, happened, error in pool.imap_unordered(attempt, seeds, CHUNK):
            events += happened
            if seed in OPEN:
                print(f"seed {seed} is an open bug, and {'fails' if error else 'passes now: take it off the list'}: "
                      f"{OPEN[seed]}", flush=True)
            elif error:
                failed.append(seed)
                if len(failed) <= TOLD_MAX:
                    print(f"seed {seed} fails:\n{error}\nrepeat it with: {repeat(seed)}\n", flush=True)
    took_s = time.perf_counter() - began
    print(f"{arguments.seeds} seeds, {events} events in {took_s:.0f} s on {arguments.jobs} processes: "
          f"{len(failed)} failed {sorted(failed)[:20] if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
