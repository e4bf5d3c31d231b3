"""Workers are killed by seed while a load runs; the results must equal those of a run without faults.

The killer counts events (lines in a journal), not seconds, so that a seed strikes at the same points of the work.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress

import numpy
import pytest
from integration.support import Journal, wait_until

import meshray

SEEDS = [1, 2, 3]
pytestmark = pytest.mark.limit_s(120)


@pytest.fixture(autouse=True)
def cluster(fresh):
    fresh(num_cpus=2)


class Killer:
    """Kills the writer of every n-th line of a journal of pids, n drawn by seed, at most ``kills_max`` of them."""

    def __init__(self, journal, seed, *, every, kills_max, number=signal.SIGKILL):
        self.journal, self.random, self.every, self.kills_max = journal, random.Random(seed), every, kills_max
        self.number, self.killed, self.over = number, [], threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        strike = 0
        while len(self.killed) < self.kills_max:
            strike += self.random.randint(1, self.every)
            wait_until(lambda at=strike: self.over.is_set() or len(self.journal.lines()) > at, 100)
            if self.over.is_set():
                return
            victim = int(self.journal.lines()[strike])
            with suppress(ProcessLookupError):
                os.kill(victim, self.number)
                self.killed.append(victim)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()


@pytest.mark.parametrize("seed", SEEDS)
def test_independent_tasks(tmp_path, seed):
    journal = Journal(tmp_path / "pids")

    @meshray.remote(max_retries=-1)
    def work(i):
        journal.write(os.getpid())
        return i * i

    with Killer(journal, seed, every=150, kills_max=6) as killer:
        results = meshray.get([work.remote(i) for i in range(1500)], timeout=100)
    assert results == [i * i for i in range(1500)]
    assert killer.killed


@pytest.mark.parametrize("seed", SEEDS)
def test_tree_of_nested_tasks(tmp_path, seed):
    journal = Journal(tmp_path / "pids")

    @meshray.remote(max_retries=-1)
    def tree(depth, label):
        journal.write(os.getpid())
        if depth == 0:
            return [label]
        left, right = meshray.get([tree.remote(depth - 1, 2 * label + side) for side in (0, 1)])
        return left + right

    with Killer(journal, seed, every=12, kills_max=3) as killer:
        assert meshray.get(tree.remote(4, 1), timeout=100) == list(range(16, 32))
    assert killer.killed


@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_with_large_objects(tmp_path, seed):
    journal = Journal(tmp_path / "pids")

    @meshray.remote(max_retries=-1)
    def step(array, i):
        journal.write(os.getpid())
        return array + i

    @meshray.remote(max_retries=-1)
    def merge(*arrays):
        journal.write(os.getpid())
        return sum(arrays)

    def rounds():
        state = meshray.put(numpy.zeros(100_000))
        for _ in range(8):
            state = merge.remote(*[step.remote(state, i) for i in range(3)])
        return meshray.get(state, timeout=100)

    with Killer(journal, seed, every=8, kills_max=3) as killer:
        result = rounds()
    expected = 0
    for _ in range(8):
        expected = 3 * expected + 3
    assert (result == expected).all()
    assert killer.killed


@pytest.mark.parametrize("seed", SEEDS)
def test_actor_that_is_killed_again_and_again(tmp_path, seed):
    journal = Journal(tmp_path / "pids")

    @meshray.remote(max_restarts=-1, max_task_retries=-1)
    class Squares:
        def square(self, i):
            journal.write(os.getpid())
            return i * i

    actor = Squares.remote()
    with Killer(journal, seed, every=60, kills_max=3) as killer:
        assert meshray.get([actor.square.remote(i) for i in range(6000)], timeout=100) == [i * i for i in range(6000)]
    assert killer.killed
    meshray.kill(actor)


def test_wait_loop_takes_every_result_once(tmp_path):
    journal = Journal(tmp_path / "pids")

    @meshray.remote(max_retries=-1)
    def work(i):
        journal.write(os.getpid())
        return i

    pending, seen, submitted = [], [], 0
    with Killer(journal, 4, every=60, kills_max=4) as killer:
        while len(seen) < 400:
            while submitted < 400 and len(pending) < 8:
                pending.append(work.remote(submitted))
                submitted += 1
            ready, pending = meshray.wait(pending, timeout=100)
            seen += meshray.get(ready)
    assert sorted(seen) == list(range(400))
    assert killer.killed
