"""Does memory stay flat over a million tasks whose references are dropped?

*Shell (/proc, clock, stdout).* ``python -m perf.flat_memory [--tasks N] [--json]``.

1. After each batch the program notes the memory of itself and of every process below it (USS: private pages, so that
   shared ones are not counted for everybody), and the size of the control store's files.
2. The slope is a least-squares fit over the second half of the run, in bytes per task: what is allocated once does not
   count, what grows does.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import meshray
from meshray.processes.run_dirs import run_root
from perf.footprint import command_of, descendants, smaps
from perf.keeper import adopt_orphans

BATCH = 2_000
NOTES = 50


@meshray.remote
def nothing() -> None:
    """Do nothing."""


def private_bytes(pid: int) -> int:
    """Return the memory that only this process has."""
    return smaps(pid, "Private_Clean") + smaps(pid, "Private_Dirty")


def role(pid: int) -> str:
    """Name a process in the report."""
    return "driver" if pid == os.getpid() else f"{command_of(pid)[:60]} ({pid})"


def slope(points: list[tuple[int, int]]) -> float:
    """Return the least-squares slope of (x, y) points."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def store_bytes(root: Path) -> int:
    """Return the disk space of the control store's files below ``root``."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("data.mdb"))


def run(tasks: int) -> tuple[dict[str, list[tuple[int, int]]], float]:
    """Run the tasks; return (tasks done, bytes) for each process, and tasks per second."""
    adopt_orphans()
    notes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    meshray.init(num_cpus=2)
    every = max(BATCH, tasks // NOTES // BATCH * BATCH)
    began = time.perf_counter()
    for done in range(BATCH, tasks + 1, BATCH):
        meshray.get([nothing.remote() for _ in range(BATCH)])
        if done % every == 0:
            for pid in [os.getpid(), *descendants(os.getpid())]:
                notes[role(pid)].append((done, private_bytes(pid)))
            notes["control store files"].append((done, store_bytes(Path(run_root()))))
    rate = tasks / (time.perf_counter() - began)
    meshray.shutdown()
    return notes, rate


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.flat_memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    notes, rate = run(arguments.tasks)
    rows: list[dict[str, Any]] = [row("tasks", rate, "1/s")]
    for name, points in notes.items():
        half = points[len(points) // 2 :]
        if len(half) > 1:
            rows.append(row(f"slope of {name}", slope(half), "B/task"))
            rows.append(row(f"size of {name}", half[-1][1] / 1e6, "MB"))
    for each in rows:
        print(json.dumps(each) if arguments.json else f"{each['row']:90} {each['value']:12,.3f} {each['unit']}")


def row(name: str, value: float, unit: str) -> dict[str, Any]:
    """Return one line of output; there is no peer and no limit here."""
    return {"row": name, "value": value, "unit": unit, "peer": None, "limit": None}


if __name__ == "__main__":
    main()
