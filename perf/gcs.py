"""How fast is the control store, beside a bare loop of the same parts?

*Shell (zmq, processes, clock, stdout).* ``python -m perf.gcs [--rows ROWS] [--rounds N] [--json]``.

1. Throughput: 100-row frames of 200-byte rows, eight frames on the way, against a chain of Python processes that only
   decode, put in one transaction and forward. Both get frames that were encoded before.
2. Latency: one write or read at a time by a real client, against a ping to a process that answers at once, over the
   same kind of socket; and a write against one row through a bare chain.
3. Tasks: the one-machine benchmark of tasks that do nothing, on a cluster of one node with three replicas against one
   with one. Both clusters are up all the time, each with a driver of its own.
4. Every sample of one lies beside a sample of the other; the value is the median of the samples' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from meshray.messages.gcs import Op, Write, Written
from meshray.transport.codec import decode, encode
from perf import gcs_bare
from perf.compare import number
from perf.gcs_caller import Caller, ShardProcess
from perf.gcs_cluster import gcs_cluster
from perf.limits import echo_process
from perf.orchestra import Player

ROWS_IN_FRAME = 100
VALUE_BYTES = 200
KEYS = 100_000
WINDOW = 8
FRAMES = 600
CALLS = 1_000
WRITE_KEY_BYTES, WRITE_VALUE_BYTES = 25, 512
TASK_CPUS = 2
TASKS_S = 1.0
"""Length of a sample of the task benchmark."""
ROUNDS = 5

Sample = Callable[[], float]
"""Returns rows or tasks per second, or seconds per call."""


def batches(count: int) -> list[list[tuple[bytes, bytes]]]:
    """Return frames of rows with keys in random order, the same at every call."""
    source = random.Random(1)
    keys = [b"%016x%04x" % (source.getrandbits(64), index % 65536) for index in range(KEYS)]
    value = bytes(VALUE_BYTES)
    return [[(source.choice(keys), value) for _ in range(ROWS_IN_FRAME)] for _ in range(count)]


@contextmanager
def bare_pour(length: int, durability: str) -> Iterator[Sample]:
    """Pour frames into a bare chain."""
    frames = [msgspec.msgpack.encode([("kv", key, value) for key, value in rows]) for rows in batches(FRAMES)]
    with tempfile.TemporaryDirectory() as directory, gcs_bare.chain(length, directory, durability) as ends:
        gcs_bare.pour(ends, frames[:50], WINDOW)
        yield lambda: rate(lambda: gcs_bare.pour(ends, frames, WINDOW))


@contextmanager
def shard_pour(length: int, durability: str) -> Iterator[Sample]:
    """Pour frames into a shard's chain, as WINDOW clients that have one Write on the way each."""
    with shard(length, durability) as caller:
        load = Load(caller)
        load.pour(load.frames(50))
        prepared: list[bytes] = []

        def sample() -> float:
            prepared[:] = load.frames(FRAMES)
            return rate(lambda: load.pour(prepared))

        yield sample


@contextmanager
def shard(length: int, durability: str) -> Iterator[Caller]:
    """Yield a client of a shard with a chain of so many members."""
    if length > 1:
        with gcs_cluster(length, durability) as cluster:
            caller = cluster.caller()
            try:
                caller.until(lambda: caller.write(Op("kv", b"first", b"")).error is None
                             and len(caller.client.shards[0].members) == length)
                yield caller
            finally:
                caller.close()
        return
    with tempfile.TemporaryDirectory() as directory:
        process = ShardProcess("shard-0-0", directory, durability)
        caller = Caller("perf", directory, [process.shard])
        try:
            caller.write(Op("kv", b"first", b""))
            yield caller
        finally:
            caller.close()
            process.stop()


class Load:
    """Writes that are encoded ahead, straight on the caller's socket."""

    def __init__(self, caller: Caller) -> None:
        self._peers = caller.peers
        self._shard = caller.client.shards[0]
        self._sequence = 0
        self._route = b">" + self._shard.members[0][0].encode()

    def frames(self, count: int) -> list[bytes]:
        """Return Writes of the WINDOW clients in turn."""
        frames = []
        for index, rows in enumerate(batches(count)):
            ops = [Op("kv", key, value) for key, value in rows]
            sequence = self._sequence + index // WINDOW + 1
            frames.append(encode(Write(f"load-{index % WINDOW}", sequence, self._shard.epoch, ops)))
        self._sequence += -(-count // WINDOW)
        return frames

    def pour(self, frames: list[bytes]) -> None:
        """Send all, at most WINDOW of them unanswered. They are answered in their order, so a client's next Write
        leaves only when its last one is answered."""
        peers, route = self._peers, self._route
        sent = answered = 0
        while answered < len(frames):
            while sent < len(frames) and sent - answered < WINDOW:
                assert peers.send(route, frames[sent])
                sent += 1
            if not peers.wait(60_000):
                raise TimeoutError("the shard does not answer")
            for parts in peers.receive(WINDOW, ready=True):
                message = decode(parts[1])
                assert isinstance(message, Written), message
                answered += 1


def rate(pour: Callable[[], None]) -> float:
    """Return rows per second."""
    began = time.perf_counter()
    pour()
    return FRAMES * ROWS_IN_FRAME / (time.perf_counter() - began)


@contextmanager
def ping(_: int, __: str) -> Iterator[Sample]:
    """One message there and back."""
    with echo_process() as socket:

        def call() -> None:
            socket.send(b"\x91\x01")
            socket.recv()

        yield lambda: p50_s(call)


@contextmanager
def one_write(length: int, durability: str) -> Iterator[Sample]:
    """One write at a time."""
    with shard(length, durability) as caller:
        keys = [os.urandom(WRITE_KEY_BYTES) for _ in range(CALLS)]
        value, turn = bytes(WRITE_VALUE_BYTES), iter(range(1 << 40))
        yield lambda: p50_s(lambda: caller.write(Op("kv", keys[next(turn) % CALLS], value)))


@contextmanager
def bare_write(length: int, durability: str) -> Iterator[Sample]:
    """One row at a time through a bare chain."""
    with tempfile.TemporaryDirectory() as directory, gcs_bare.chain(length, directory, durability) as ends:
        keys = [os.urandom(WRITE_KEY_BYTES) for _ in range(CALLS)]
        value, turn = bytes(WRITE_VALUE_BYTES), iter(range(1 << 40))

        def call() -> None:
            gcs_bare.pour(ends, [msgspec.msgpack.encode([("kv", keys[next(turn) % CALLS], value)])], 1)

        yield lambda: p50_s(call)


@contextmanager
def one_read(length: int, durability: str) -> Iterator[Sample]:
    """One read at a time."""
    with shard(length, durability) as caller:
        key = os.urandom(WRITE_KEY_BYTES)
        caller.write(Op("kv", key, bytes(WRITE_VALUE_BYTES)))
        yield lambda: p50_s(lambda: caller.read(("kv", key)))


@contextmanager
def tasks(replicas: int, _: str) -> Iterator[Sample]:
    """Run the one-machine benchmark on a cluster with so many replicas."""
    with Player(f"meshray_r{replicas}", sys.executable) as player:
        player.tell("start", cpus=TASK_CPUS)
        player.tell("open", row="task_batch")
        yield lambda: player.tell("sample", seconds=TASKS_S) or 0.0
        player.tell("close")
        player.tell("stop")


def unreplicated_tasks(_: int, durability: str) -> AbstractContextManager[Sample]:
    """Run it on a cluster whose control store has one server."""
    return tasks(1, durability)


def p50_s(call: Callable[[], Any]) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class Row(msgspec.Struct, frozen=True):
    """One line: ``subject`` beside ``limit``, both opened with the chain's length and the durability."""

    text: str
    asked: str
    subject: Callable[[int, str], Any]
    limit: Callable[[int, str], Any]
    length: int
    durability: str
    unit: str


def _pour(length: int, durability: str) -> Row:
    text = f"100-row frames, chain of {length}, {durability}: share of a bare chain"
    return Row(text, ">= 0.5", shard_pour, bare_pour, length, durability, "rows/s")


ROWS = {
    **{f"chain{length}_of_bare": _pour(length, "relaxed") for length in (1, 2, 3)},
    **{f"chain{length}_of_bare_fsync": _pour(length, "fsync") for length in (1, 2, 3)},
    "write_p50_over_ping": Row("one write, chain of 2, in pings", "<= 2.5", one_write, ping, 2, "relaxed", "s"),
    "write_p50_over_bare": Row("one write, beside a bare chain of 2", "-", one_write, bare_write, 2, "relaxed", "s"),
    "read_p50_over_ping": Row("one read, chain of 2, in pings", "<= 1.3", one_read, ping, 2, "relaxed", "s"),
    "tasks_r3_over_r1": Row("2000 no-op tasks, 3 replicas: share of 1 replica", ">= 0.8", tasks, unreplicated_tasks, 3,
                            "relaxed", "tasks/s"),
}


def measure(row: Row, rounds: int) -> tuple[float, float, float]:
    """Return the median ratio, and the medians of the subject and of its limit."""
    with row.subject(row.length, row.durability) as subject, row.limit(row.length, row.durability) as limit:
        pairs = [(subject(), limit()) for _ in range(rounds)]
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    return ratio, statistics.median(mine for mine, _ in pairs), statistics.median(theirs for _, theirs in pairs)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.gcs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="all", help=f"comma-separated: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"samples per row (default {ROUNDS})")
    parser.add_argument("--json", action="store_true", help="one object per line instead of the table")
    arguments = parser.parse_args()
    names = list(ROWS) if arguments.rows == "all" else arguments.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(ROWS)}")
    for name in names:
        row = ROWS[name]
        ratio, mine, bare = measure(row, arguments.rounds)
        if arguments.json:
            print(json.dumps({"row": name, "value": ratio, "unit": "ratio", "peer": None, "limit": None,
                              "subject": mine, "bare": bare, "of": row.unit}), flush=True)
        else:
            scale, unit = (1e6, "us") if row.unit == "s" else (1, row.unit)
            print(f"{name:24} {ratio:7.2f} (asked {row.asked})   {number(mine * scale)} beside {number(bare * scale)} "
                  f"{unit}   {row.text}", flush=True)


if __name__ == "__main__":
    main()
