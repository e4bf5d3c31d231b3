"""Does the demo learn the same while the replicas of its control store die?

*Shell (processes, signals, threads, clock, stdout).* ``python -m perf.demo_under_kills [--seeds N] [--pairs N]
[--generations N] [--every S] [--json]``.

1. The same training runs twice, each on a new cluster with three replicas; during the second a random replica is
   killed every second, whatever state the chain is in.
2. What the demo learns follows from its seed, so the curves must be equal number by number, not similar.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

import meshray
from examples.evolution_strategies import train
from perf.gcs_cluster import GcsCluster, gcs_cluster

REPLICAS, NODES = 3, 2
EVERY_S = 1.0
UNREACHABLE = 501.0
"""No episode lasts so long, so that the training ends after its generations and not before."""

Curves = tuple[list[float], list[tuple[int, float]]]
"""Returns of training and of evaluation, by generation."""


class Killer(threading.Thread):
    """Kills a random replica at once, and then one every ``every_s``."""

    def __init__(self, cluster: GcsCluster, seed: int, every_s: float) -> None:
        super().__init__(daemon=True)
        self.killed: list[str] = []
        self._cluster, self._random, self._every_s = cluster, random.Random(seed), every_s
        self._over = threading.Event()

    def run(self) -> None:
        """Kill until told to stop."""
        while True:
            name = self._random.choice(sorted(self._cluster.pids()))
            self._cluster.signal(name, signal.SIGKILL)
            self.killed.append(name)
            if self._over.wait(self._every_s):
                return

    def stop(self) -> None:
        """Let the last one be the last."""
        self._over.set()
        self.join()


class Run(msgspec.Struct, frozen=True):
    """One training: what was learnt, how long it took, who was killed meanwhile."""

    curves: Curves
    took_s: float
    killed: list[str]


def learn(seed: int, pairs: int, generations: int, every_s: float | None = None) -> Run:
    """Train on a new cluster; with ``every_s``, kill a replica that often."""
    with gcs_cluster(REPLICAS, nodes=NODES) as cluster, joined(), killing(cluster, seed, every_s) as killed:
        began = time.perf_counter()
        curves = train(seed, pairs, UNREACHABLE, generations)
        return Run(curves, time.perf_counter() - began, killed)


@contextmanager
def joined() -> Iterator[None]:
    """Be a driver of the cluster."""
    meshray.init(address="auto")
    try:
        yield
    finally:
        meshray.shutdown()


@contextmanager
def killing(cluster: GcsCluster, seed: int, every_s: float | None) -> Iterator[list[str]]:
    """Kill replicas meanwhile, unless ``every_s`` is None; yield the names of those that were killed."""
    if every_s is None:
        yield []
        return
    killer = Killer(cluster, seed, every_s)
    killer.start()
    try:
        yield killer.killed
    finally:
        killer.stop()


def first_difference(one: Curves, other: Curves) -> int | None:
    """Return the first generation, from 1, in which two runs differ in anything; None when they are the same."""
    generations = max(len(one[0]), len(other[0]))
    for index in range(generations):
        if one[0][index : index + 1] != other[0][index : index + 1] \
                or one[1][index : index + 1] != other[1][index : index + 1]:
            return index + 1
    return None


def main() -> int:
    """Parse the command line, run, compare, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.demo_under_kills",
                                     description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings (default 3)")
    parser.add_argument("--pairs", type=int, default=64, help="rollouts of a generation (default 64, as in the demo)")
    parser.add_argument("--generations", type=int, default=30, help="how long each learns (default 30)")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two kills (default 1)")
    parser.add_argument("--json", action="store_true", help="one object per line instead of sentences")
    arguments = parser.parse_args()
    worst = 0
    for seed in range(arguments.seeds):
        calm = learn(seed, arguments.pairs, arguments.generations)
        shaken = learn(seed, arguments.pairs, arguments.generations, arguments.every)
        differs = first_difference(calm.curves, shaken.curves)
        worst |= differs is not None
        if arguments.json:
            print(json.dumps({"row": "demo_curve_under_kills", "value": int(differs is None), "unit": "equal",
                              "peer": None, "limit": 1, "seed": seed, "generations": arguments.generations,
                              "kills": len(shaken.killed), "calm_s": calm.took_s, "shaken_s": shaken.took_s,
                              "first_difference": differs}), flush=True)
        else:
            verdict = "equal" if differs is None else f"DIFFERENT from generation {differs} on"
            print(f"seed {seed}: the curves of {arguments.generations} generations are {verdict}; "
                  f"{calm.took_s:.1f} s without kills, {shaken.took_s:.1f} s with {len(shaken.killed)}", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
