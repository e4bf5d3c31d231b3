"""Does memory stay flat over a million tasks whose references are dropped?

*Shell (/proc, clock, stdout).* ``python -m perf.flat_memory [--tasks N] [--replicas R] [--hold N] [--json]``.

1. After each batch the program notes the memory of itself and of every process below it (USS: private pages, so that
   shared ones are not counted for everybody), and the size of the control store's files.
2. The slope is a least-squares fit over the second half of the run, in bytes per task: what is allocated once does not
   count, what grows does.
3. The cluster is one node, whose control store has one shard with ``--replicas`` servers, all of them on it. The rows
   of the node, of the control store and of its files have a limit.
4. Results that are dropped at once leave no trace in the control store. With ``--hold`` the results of the last N
   batches stay referred to, so that lineage is written and removed again: the row of operations says how much of it.

Source: OSDI'18 figure 10b.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import meshray
from meshray.messages.gcs import DescribeShard, ShardDescribed
from meshray.processes.run_dirs import run_root
from meshray.transport.codec import decode, encode
from perf.footprint import command_of, descendants, smaps
from perf.gcs_caller import Caller
from perf.gcs_cluster import gcs_cluster
from perf.keeper import adopt_orphans

BATCH = 2_000
NOTES = 50
LIMIT = 5.0
"""Bytes a task may leave in a process of node or control store, by the slope."""
FILES = "control store files"


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


def run(tasks: int, replicas: int, hold: int) -> tuple[dict[str, list[tuple[int, int]]], float, float]:
    """Run the tasks; return (tasks done, bytes) for each process, tasks per second, and the control store's operations
    per task."""
    adopt_orphans()
    with gcs_cluster(replicas, nodes=1, cpus=2) as cluster:
        meshray.init(cluster.file.address)
        try:
            notes, rate = _run(tasks, hold)
            return notes, rate, _operations(cluster.caller()) / tasks
        finally:
            meshray.shutdown()


def _operations(caller: Caller) -> int:
    """Return how many operations the shard has done."""
    (head, endpoint), *_ = caller.client.shards[0].members
    caller.peers.send(caller.peers.connect(head, endpoint), encode(DescribeShard()))
    try:
        while caller.peers.wait(60_000):
            for parts in caller.peers.receive(1, ready=True):
                message = decode(parts[1])
                if isinstance(message, ShardDescribed):
                    return message.sequence
        raise TimeoutError(f"{head} does not say how many operations it has done")
    finally:
        caller.close()


def _run(tasks: int, hold: int) -> tuple[dict[str, list[tuple[int, int]]], float]:
    notes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    held: deque[list[Any]] = deque()
    every = max(BATCH, tasks // NOTES // BATCH * BATCH)
    began = time.perf_counter()
    for done in range(BATCH, tasks + 1, BATCH):
        held.append([nothing.remote() for _ in range(BATCH)])
        meshray.get(held[-1])
        if len(held) > hold:
            held.popleft()
        if done % every == 0:
            for pid in [os.getpid(), *descendants(os.getpid())]:
                notes[role(pid)].append((done, private_bytes(pid)))
            notes[FILES].append((done, store_bytes(Path(run_root()))))
    return notes, tasks / (time.perf_counter() - began)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.flat_memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--hold", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    notes, rate, operations = run(arguments.tasks, arguments.replicas, arguments.hold)
    rows: list[dict[str, Any]] = [row("tasks", rate, "1/s"), row("control store operations", operations, "1/task")]
    for name, points in notes.items():
        half = points[len(points) // 2 :]
        if len(half) > 1:
            rows.append(row(f"slope of {name}", slope(half), "B/task", limit_of(name)))
            rows.append(row(f"size of {name}", half[-1][1] / 1e6, "MB"))
    for each in rows:
        print(json.dumps(each) if arguments.json else f"{each['row']:90} {each['value']:12,.3f} {each['unit']}")


def limit_of(name: str) -> float | None:
    """Return how many bytes a task may leave, in the processes and files that outlive it."""
    if name == FILES:
        return 0.0
    return LIMIT if name.startswith(("meshray:node", "meshray:shard", "meshray:master")) else None


def row(name: str, value: float, unit: str, limit: float | None = None) -> dict[str, Any]:
    """Return one line of output; there is no peer."""
    return {"row": name, "value": value, "unit": unit, "peer": None, "limit": limit}


if __name__ == "__main__":
    main()
