"""References are passed around at random between two nodes, workers are killed, and in the end nothing is left.

A program is determined by its seed; what a value contains follows from its number, so that every read is checked. Each
runs on two nodes of one machine, and on two that only a network connects.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Iterator

import numpy
import pytest
from integration.networked import Hosts
from integration.support import wait_until

import meshray
from meshray.session import current

SEEDS = [1, 2, 3]
MIB = 2**20
FREED_S = 2.0
pytestmark = pytest.mark.limit_s(120)
DEATHS = (meshray.exceptions.RayActorError, meshray.exceptions.ObjectLostError, meshray.exceptions.OwnerDiedError,
          meshray.exceptions.WorkerCrashedError)


@pytest.fixture
def network(root) -> Iterator[None]:
    """Two nodes that meet over TCP on loopback, and this process as a driver of the first."""
    cluster = Hosts(root)
    try:
        cluster.start()
        cluster.head.join()
        yield
    finally:
        meshray.shutdown()
        cluster.stop()


def value(number, refs):
    """Small for even numbers, 1 MiB for odd ones."""
    return number, list(refs), numpy.full(MIB if number % 2 else 64, number % 251, dtype=numpy.uint8)


def check(found, number):
    assert found[0] == number
    assert (found[2] == number % 251).all()


@meshray.remote(max_retries=0)
def make(number, boxes):
    return value(number, boxes)


@meshray.remote
class Keeper:
    def __init__(self):
        self.kept = []

    def pid(self):
        return os.getpid()

    def keep(self, box):
        self.kept += box

    def put(self, number, box):
        self.kept.append(number)
        return [meshray.put(value(number, [*box, *[ref for ref in self.kept if not isinstance(ref, int)][-1:]]))]

    def give(self):
        refs = [ref for ref in self.kept if not isinstance(ref, int)]
        self.kept = []
        return refs

    def read(self, box, number):
        found = meshray.get(box[0])
        assert found[0] == number
        return int(found[2][0])

    def clear(self):
        self.kept = []

    def left(self):
        gc.collect()
        session = current.session()
        return len(session.references.holds.held) + len(session.executor.values.lent)


class Storm:
    """One program. ``refs`` are the driver's references with the numbers of their values."""

    def __init__(self, seed):
        self.random, self.refs, self.number, self.deaths = random.Random(seed), [], 0, 0
        self.keepers = [self.born(side) for side in ("left", "right", "left", "right")]

    @staticmethod
    def born(side):
        return side, Keeper.options(num_cpus=0, resources={side: 0.1}).remote()

    def some(self):
        return self.random.sample(self.refs, min(len(self.refs), self.random.randint(0, 3)))

    def step(self):
        self.number += 1
        _, keeper = self.random.choice(self.keepers)
        box = [ref for ref, _ in self.some()]
        match self.random.randint(0, 7):
            case 0 | 1:
                self.refs.append((meshray.put(value(self.number, box)), self.number))
            case 2:
                side = {"resources": {self.random.choice(("left", "right")): 0.1}, "num_cpus": 0.5}
                self.refs.append((make.options(**side).remote(self.number, box), self.number))
            case 3:
                self.try_to(lambda: self.refs.append((meshray.get(keeper.put.remote(self.number, box), timeout=60)[0],
                                                      self.number)))
            case 4:
                keeper.keep.remote(box)
            case 5:
                self.try_to(lambda: meshray.get(keeper.give.remote(), timeout=60))
            case 6:
                self.try_to(self.read)
            case 7:
                del self.refs[: self.random.randint(0, 4)]

    def read(self):
        for ref, number in self.some()[:1]:
            check(meshray.get(ref, timeout=60), number)
            _, keeper = self.random.choice(self.keepers)
            assert meshray.get(keeper.read.remote([ref], number), timeout=60) == number % 251

    def try_to(self, action):
        try:
            action()
        except DEATHS:
            assert self.deaths, "nobody has died, so nothing may be lost"

    def kill(self):
        place = self.random.randrange(len(self.keepers))
        side, keeper = self.keepers[place]
        os.kill(meshray.get(keeper.pid.remote(), timeout=60), signal.SIGKILL)
        self.deaths += 1
        self.keepers[place] = self.born(side)

    def drop(self):
        self.refs.clear()
        meshray.get([keeper.clear.remote() for _, keeper in self.keepers], timeout=60)

    def left(self):
        gc.collect()
        session = current.session()
        objects = session.questions.ask(["objects"])["objects"]
        return len(session.references.holds.held) + len(objects) + sum(
            meshray.get([keeper.left.remote() for _, keeper in self.keepers], timeout=60))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cluster", ["two_nodes", "network"])
def test_nothing_reachable_is_lost_and_nothing_else_is_left(cluster, seed, request):
    request.getfixturevalue(cluster)
    storm = Storm(seed)
    meshray.get([keeper.pid.remote() for _, keeper in storm.keepers], timeout=60)
    for _ in range(150):
        storm.step()
    for _ in range(6):
        for _ in range(20):
            storm.step()
        storm.kill()
    storm.drop()
    wait_until(lambda: storm.left() == 0, FREED_S, what=f"seed {seed}: everything was dropped, and everything is freed")
