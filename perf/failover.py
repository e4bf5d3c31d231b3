"""How long does a client wait when a replica of the control store dies, and is anything lost?

*Shell (processes, signals, clock, stdout).* ``python -m perf.failover [--kills N] [--rows N] [--json]``.

1. One client with one request in flight: a write of a 25-byte key and a 512-byte value, then a read of it, and so on.
   The gap is the longest that one of these took from the kill until the chain is whole again.
2. Roles are those of the moment: each kill waits until the chain has all its members, looks who is head, middle or tail
   and strikes there, at a random moment of a request.
3. ``gap_ms_join`` is the longest wait while a replica comes back into a shard of a million rows, counted from the
   moment when the shortened chain serves.
4. In the end every key must have the value that was acknowledged last: ``lost_writes``.

Source: OSDI'18 figure 10a (30 ms).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from meshray.gcs import limits
from meshray.messages.gcs import Op
from perf.compare import number
from perf.gcs_caller import Caller, Unanswered
from perf.gcs_cluster import GcsCluster, gcs_cluster

KEY_BYTES, VALUE_BYTES = 25, 512
KILLS = 20
ROWS = 1_000_000
FRAME = 1_000
WHOLE_S = 120.0
"""A chain that is not whole again after this is an error."""
ROLES = {"head": 0, "middle": 1, "tail": -1}


class Gap(msgspec.Struct, frozen=True):
    """One strike: the longest wait until the shorter chain served, and from then until the chain was whole."""

    role: str
    failover_ms: float
    join_ms: float
    whole_s: float


class Client:
    """One request in flight, each timed."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.acknowledged: dict[bytes, bytes] = {}
        self.duplicated = self.calls = 0
        self._random = random.Random(1)
        self._versions: dict[bytes, int] = {}

    @property
    def members(self) -> list[str]:
        """The chain as this client knows it, head first."""
        return [name for name, _ in self.caller.client.shards[0].members]

    def call(self) -> float:
        """Write and read one row; return the longer of the two times in milliseconds."""
        key = b"%025d" % self._random.randrange(1000)
        value = os.urandom(VALUE_BYTES)
        began = time.perf_counter()
        written = self.caller.write(Op("kv", key, value))
        middle = time.perf_counter()
        if written.error is not None:
            raise Unanswered(str(written.error))
        self.acknowledged[key] = value
        self.duplicated += written.results[0].version <= self._versions.get(key, 0)
        self._versions[key] = written.results[0].version
        found = self.caller.read(("kv", key))
        ended = time.perf_counter()
        if found.error is not None or found.results[0].value != value:
            raise AssertionError(f"read {found} after {value[:8]!r}... was acknowledged")
        self.calls += 2
        return 1000 * max(middle - began, ended - middle)

    def lost(self) -> int:
        """Return how many rows do not have what was acknowledged last."""
        keys = list(self.acknowledged)
        found = self.caller.read(*(("kv", key) for key in keys)).results
        return sum(row.value != self.acknowledged[key] for key, row in zip(keys, found, strict=True))


def strike(cluster: GcsCluster, client: Client, role: str, number: signal.Signals) -> Gap:
    """Strike the member of this role, go on until the chain is whole, and return the gaps."""
    wait_whole(cluster, client)
    before = client.members
    victim = before[ROLES[role]]
    for _ in range(random.randrange(50)):
        client.call()
    began = time.perf_counter()
    pid = cluster.signal(victim, number)
    failover_ms = join_ms = 0.0
    shorter = False
    try:
        while True:
            took_ms = client.call()
            if not shorter:
                failover_ms = max(failover_ms, took_ms)
                shorter = client.members != before
                if shorter and number == signal.SIGSTOP:
                    os.kill(pid, signal.SIGCONT)
            else:
                join_ms = max(join_ms, took_ms)
                if len(client.members) == cluster.replicas:
                    return Gap(role, failover_ms, join_ms, time.perf_counter() - began)
            if time.perf_counter() - began > WHOLE_S:
                raise Unanswered(f"the chain is {client.members} {WHOLE_S:g} s after {victim} got {number.name}")
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)


def wait_whole(cluster: GcsCluster, client: Client) -> None:
    """Go on until the chain has all its members."""
    end = time.monotonic() + WHOLE_S
    while len(client.members) < cluster.replicas:
        client.call()
        if time.monotonic() > end:
            raise Unanswered(f"the chain is {client.members}, not {cluster.replicas} members")


def fill(caller: Caller, rows: int) -> None:
    """Write so many rows of 200 bytes."""
    value = bytes(175)
    for first in range(0, rows, FRAME):
        answer = caller.write(*(Op("kv", b"filler-%018d" % index, value) for index in range(first, first + FRAME)))
        if answer.error is not None:
            raise Unanswered(str(answer.error))


def measure(replicas: int, kills: int, rows: int) -> Iterator[dict[str, Any]]:
    """Yield one line after the other."""
    roles = [role for role in ROLES if replicas > 2 or role != "middle"]
    with gcs_cluster(replicas) as cluster:
        client = Client(cluster.caller())
        for role in roles:
            gaps = [strike(cluster, client, role, signal.SIGKILL) for _ in range(kills)]
            yield line(f"gap_ms_{role}", [gap.failover_ms for gap in gaps], "ms", "<= 30, aim 10")
        for role in roles:
            gaps = [strike(cluster, client, role, signal.SIGSTOP) for _ in range(max(1, kills // 5))]
            heartbeats = [gap.failover_ms * 1e6 / limits.HEARTBEAT_NS for gap in gaps]
            yield line(f"gap_heartbeats_{role}", heartbeats, "heartbeats", "<= 3")
        if rows:
            fill(client.caller, rows)
            gaps = [strike(cluster, client, random.choice(roles), signal.SIGKILL) for _ in range(kills)]
            yield line("gap_ms_join", [gap.join_ms for gap in gaps], "ms", "<= 30, aim 10")
            yield line("join_s", [gap.whole_s for gap in gaps], "s", "-")
        yield count("lost_writes", client.lost(), client.calls)
        yield count("duplicated_writes", client.duplicated, client.calls)
        client.caller.close()


def line(row: str, values: list[float], unit: str, asked: str) -> dict[str, Any]:
    """Return one line of output: the largest, and beside it the median; there is no peer and no limit here."""
    return {"row": row, "value": max(values), "unit": unit, "peer": None, "limit": None, "asked": asked,
            "of": len(values), "median": statistics.median(values)}


def count(row: str, rows: int, calls: int) -> dict[str, Any]:
    """Return one line of output for rows with which something is wrong."""
    return {"row": row, "value": rows, "unit": "rows", "peer": None, "limit": None, "asked": "0", "of": calls}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.failover", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--kills", type=int, default=KILLS, help=f"of each role (default {KILLS})")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"in the shard of gap_ms_join (default {ROWS})")
    parser.add_argument("--json", action="store_true", help="one object per line instead of the table")
    arguments = parser.parse_args()
    for each in measure(arguments.replicas, arguments.kills, arguments.rows):
        print(json.dumps(each) if arguments.json else
              f"{each['row']:24} {number(each['value']):>8} {each['unit']:10} (asked {each['asked']}; of {each['of']}"
              + (f", median {number(each['median'])})" if "median" in each else ")"), flush=True)


if __name__ == "__main__":
    main()
