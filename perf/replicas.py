"""What does it cost local work when the global scheduler replicas are killed and frozen all the time?

*Shell (processes, signals, clock, stdout).* ``python -m perf.replicas [--rounds N] [--seconds S] [--json]``.

1. Two nodes, two replicas, one driver. Its tasks spin for a millisecond each and must run on its own node, so that one
   CPU is busy with them and another is free for replicas that start again: what is measured is waiting, not their CPU.
2. Rounds alternate: one undisturbed, one in which every second one replica is killed or frozen for half a second, each
   in turn. Every result is checked.
3. Row ``local_work_under_replica_kills``: tasks per second in struck rounds over undisturbed ones, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import threading
import time
from contextlib import suppress

import meshray
from meshray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from perf.gcs_cluster import GcsCluster, gcs_cluster

BATCH = 200
"""Tasks that the driver submits and waits for together."""

SPIN_NS = 1_000_000
STRIKE_S = 1.0
FROZEN_S = 0.5


def spin(value: int) -> int:
    """Use the CPU for a millisecond."""
    end_ns = time.monotonic_ns() + SPIN_NS
    while time.monotonic_ns() < end_ns:
        pass
    return value * 2


class Striker(threading.Thread):
    """Kills and freezes the replicas in turn until told to end."""

    def __init__(self, cluster: GcsCluster) -> None:
        super().__init__(daemon=True)
        self.strikes = 0
        self._cluster = cluster
        self._over = threading.Event()

    def run(self) -> None:
        """Strike once a second: kill the first, freeze the second, kill the second, freeze the first."""
        while not self._over.wait(STRIKE_S):
            pids = sorted(self._cluster.pids("scheduler").items())
            turn = self.strikes % 4
            _, pid = pids[(turn in (1, 2)) % len(pids)]
            self.strikes += 1
            with suppress(ProcessLookupError):
                if turn % 2 == 0:
                    os.kill(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGSTOP)
                    self._over.wait(FROZEN_S)
                    os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        """Strike no more; whoever is frozen goes on."""
        self._over.set()
        self.join()


def tasks_per_s(work: meshray.RemoteFunction, seconds: float) -> float:
    """Return how many tasks run per second."""
    started = time.monotonic()
    done = 0
    while time.monotonic() - started < seconds:
        values = meshray.get([work.remote(value) for value in range(done, done + BATCH)], timeout=60)
        if values != [value * 2 for value in range(done, done + BATCH)]:
            raise SystemExit("a task returned something wrong")
        done += BATCH
    return done / (time.monotonic() - started)


def measure(rounds: int, seconds: float) -> dict[str, float]:
    """Return the rows."""
    calm, struck, strikes = [], [], 0
    with gcs_cluster(1, nodes=2) as cluster:
        meshray.init(address="auto")
        try:
            here = NodeAffinitySchedulingStrategy(meshray.get_runtime_context().get_node_id(), soft=False)
            work = meshray.remote(spin).options(scheduling_strategy=here)
            tasks_per_s(work, 1)
            for _ in range(rounds):
                calm.append(tasks_per_s(work, seconds))
                striker = Striker(cluster)
                striker.start()
                struck.append(tasks_per_s(work, seconds))
                striker.end()
                strikes += striker.strikes
        finally:
            meshray.shutdown()
    calm_per_s, struck_per_s = statistics.median(calm), statistics.median(struck)
    return {"local_work_under_replica_kills": round(struck_per_s / calm_per_s, 4),
            "tasks_per_s_undisturbed": round(calm_per_s), "tasks_per_s_struck": round(struck_per_s),
            "strikes": strikes}


def main() -> None:
    """Run the rounds that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one round")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    rows = measure(options.rounds, options.seconds)
    print(json.dumps(rows) if options.json else "\n".join(f"{name:<32} {value}" for name, value in rows.items()))


if __name__ == "__main__":
    main()
