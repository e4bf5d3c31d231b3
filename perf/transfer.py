"""How fast, how safely and how unnoticed objects move between nodes, each figure against its limit in the same run.

*Shell (processes, stdout).* ``python -m perf.transfer [--parts a,b] [--json]``, as root: hosts are network namespaces.

Rows::

    pull_of_link           verified pull between two hosts, as a share of their 1 Gbit/s link
    pull_of_tcp            verified pull over loopback, as a share of a raw TCP stream between two Python processes;
                           chunks travel readable (``bulk_encryption: off``), their digests do not
    pull_of_tcp_encrypted  the same with CURVE on the chunks too, as by default
    pull_of_unverified     the bulk plane with verification against itself without (``perf.bulk_pair``), encrypted, as
                           by default; ``pull_of_unverified_plain`` the same unencrypted
    resent_share           bytes moved for an object that shares 90 % of its chunks with one that is there
    lease_p99_under_pull   p99 of a lease round trip while 1 GiB is pulled over the link, against idle
    locality_10mb_vs_100kb time of 1000 tasks that each need one random 10 MB object of two nodes, against 100 KB

1. A limit and the figure that it limits are measured in turns, in one run; figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from perf import bulk_pair
from perf import hosts as hosts_module
from perf.host_cluster import Cluster, on_loopback, result_of
from perf.hosts import Hosts

PROGRAMS = "perf.transfer_programs"
LINK_MBIT = 1000
LINK_BYTES_PER_S = LINK_MBIT * 1e6 / 8
MIB = 1 << 20
TARGETS = {"pull_of_link": ">= 0.9", "pull_of_tcp": ">= 0.5", "pull_of_unverified": ">= 0.85",
           "resent_share": "<= 0.11", "lease_p99_under_pull": "<= 3", "t8_over_t1": "<= 1.6",
           "locality_10mb_vs_100kb": "<= 1.3"}


def row(name: str, value: float, unit: str, limit: float | None = None) -> dict[str, Any]:
    """Return one line of output; there is no peer here."""
    return {"row": name, "value": value, "unit": unit, "peer": None, "limit": limit}


def rate_of(cluster: Cluster, size_bytes: int, count: int) -> float:
    """Return bytes per second of pulls from the first node to the second: the median of ``count``."""
    source, target = cluster.places
    times = cluster.program(source, PROGRAMS, "pull", "--nodes", target.name, "--bytes", str(size_bytes),
                            "--count", str(count))
    return float(size_bytes / statistics.median(times))


def raw_tcp(size_bytes: int) -> float:
    """Return bytes per second of one TCP stream over loopback between two Python processes that only copy."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pid = os.fork()
        if pid == 0:
            with socket.create_connection(server.getsockname()) as client:
                piece = memoryview(bytearray(MIB))
                for _ in range(size_bytes // MIB):
                    client.sendall(piece)
            os._exit(0)
        stream, _ = server.accept()
        with stream:
            target = memoryview(bytearray(MIB))
            began = time.perf_counter()
            taken = 0
            while count := stream.recv_into(target):
                taken += count
            took = time.perf_counter() - began
    os.waitpid(pid, 0)
    return taken / took


def over_link() -> list[dict[str, Any]]:
    """Measure the rows of two hosts whose links are capped."""
    with Hosts(2, mbit=LINK_MBIT) as hosts, Cluster(hosts, list(hosts), store_bytes=1536 * MIB) as cluster:
        rate = rate_of(cluster, 256 * MIB, 5)
        rows = [row("pull_rate_link", rate / 1e6, "MB/s", LINK_BYTES_PER_S / 1e6),
                row("pull_of_link", rate / LINK_BYTES_PER_S, "share")]
        source, target = cluster.places
        meter = ("leases", "--nodes", target.name)
        cluster.program(target, PROGRAMS, *meter, "--seconds", "1")
        idle = cluster.program(target, PROGRAMS, *meter, "--seconds", "6")
        puller = cluster.start_program(source, PROGRAMS, "pull", "--nodes", target.name, "--bytes", str(1024 * MIB),
                                       "--count", "1")
        before = cluster.statistics(target)["bulk_received_bytes"]
        wait_for(lambda: cluster.statistics(target)["bulk_received_bytes"] > before + 16 * MIB)
        busy = cluster.program(target, PROGRAMS, *meter, "--seconds", "6")
        result_of(puller)
        for name, value in (("lease_p50_idle", idle["p50_ms"]), ("lease_p99_idle", idle["p99_ms"]),
                            ("lease_p50_pull", busy["p50_ms"]), ("lease_p99_pull", busy["p99_ms"])):
            rows.append(row(name, value, "ms"))
        return [*rows, row("lease_p99_under_pull", busy["p99_ms"] / idle["p99_ms"], "ratio")]


def wait_for(ready: Callable[[], bool]) -> None:
    """Wait until ``ready()``. Raise TimeoutError after a minute."""
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("what the measurement waits for did not happen within 60 s")
        time.sleep(0.02)


@contextlib.contextmanager
def loopback_pair(**options: Any) -> Iterator[Cluster]:
    """Two nodes that meet over loopback."""
    with Hosts(1) as hosts, Cluster(hosts, on_loopback(hosts, 2), **options) as cluster:
        yield cluster


def against_tcp() -> list[dict[str, Any]]:
    """Measure pulls over loopback beside a raw stream, in turns."""
    plain, sealed, raw = [], [], []
    for _ in range(3):
        raw.append(raw_tcp(1024 * MIB))
        with loopback_pair(bulk_encryption=False) as cluster:
            plain.append(rate_of(cluster, 256 * MIB, 5))
        raw.append(raw_tcp(1024 * MIB))
        with loopback_pair() as cluster:
            sealed.append(rate_of(cluster, 256 * MIB, 5))
    limit = statistics.median(raw)
    return [row("raw_tcp_rate", limit / 1e6, "MB/s"),
            row("pull_rate_plain", statistics.median(plain) / 1e6, "MB/s", limit / 1e6),
            row("pull_of_tcp", statistics.median(plain) / limit, "share"),
            row("pull_rate_encrypted", statistics.median(sealed) / 1e6, "MB/s", limit / 1e6),
            row("pull_of_tcp_encrypted", statistics.median(sealed) / limit, "share")]


def unverified() -> list[dict[str, Any]]:
    """Measure what verifying chunks costs, in the bulk plane alone."""
    rates = bulk_pair.measure(512 * MIB, 5)
    rows = []
    for kind, suffix in (("encrypted", ""), ("plain", "_plain")):
        with_, without = rates[f"{kind}_verified"], rates[f"{kind}_unverified"]
        rows += [row(f"bulk_rate{suffix}", with_ / 1e6, "MB/s", without / 1e6),
                 row(f"pull_of_unverified{suffix}", with_ / without, "share")]
    return rows


def resent() -> list[dict[str, Any]]:
    """Measure the bytes moved for the second of two objects that share 90 % of their chunks."""
    size_bytes = 200 * MIB
    with loopback_pair() as cluster:
        source, target = cluster.places
        command = cluster.start_program(source, PROGRAMS, "resend", "--nodes", target.name, "--bytes", str(size_bytes),
                                        stdin=subprocess.PIPE)
        assert command.stdin is not None and command.stdout is not None
        moved = []
        for _ in range(2):
            before = cluster.statistics(target)["bulk_received_bytes"]
            command.stdin.write("go\n")
            command.stdin.flush()
            if not command.stdout.readline():
                raise RuntimeError("the program that sends two objects has ended: see above")
            moved.append(cluster.statistics(target)["bulk_received_bytes"] - before)
        command.communicate("end\n", timeout=60)
    return [row("moved_share_first", moved[0] / size_bytes, "share"),
            row("resent_share", moved[1] / size_bytes, "share")]


def locality() -> list[dict[str, Any]]:
    """Measure tasks beside large and beside small inputs, and large ones with locality off."""
    with Hosts(2, mbit=LINK_MBIT) as hosts:
        times = {}
        for name, size_bytes, on in (("100kb", 100_000, True), ("10mb", 10_000_000, True), ("off", 10_000_000, False)):
            with Cluster(hosts, list(hosts), store_bytes=1024 * MIB, locality=on) as cluster:
                nodes = ",".join(place.name for place in cluster.places)
                ask = ("locality", "--nodes", nodes, "--bytes", str(size_bytes), "--count", "20")
                cluster.program(cluster.places[0], PROGRAMS, *ask, "--tasks", "100")
                times[name] = [cluster.program(cluster.places[0], PROGRAMS, *ask) for _ in range(3)]
    seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in times.items()}
    rows = [row(f"locality_{name}_s", value, "s") for name, value in seconds.items()]
    rows += [row(f"locality_{name}_beside", statistics.median(run["beside"] for run in runs), "share")
             for name, runs in times.items()]
    return [*rows, row("locality_10mb_vs_100kb", seconds["10mb"] / seconds["100kb"], "ratio"),
            row("locality_off_vs_on", seconds["off"] / seconds["10mb"], "ratio")]


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "link": over_link, "tcp": against_tcp, "unverified": unverified, "resent": resent, "locality": locality}


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows, with the project's targets beside those that have one."""
    for each in rows:
        limit = "" if each["limit"] is None else f"of {each['limit']:,.1f}"
        line = f"{each['row']:28} {each['value']:12,.3f} {each['unit']:6} {limit:14} {TARGETS.get(each['row'], '')}"
        print(json.dumps(each) if as_json else line.rstrip(), flush=True)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.transfer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--json", action="store_true", help="one object per line")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts.split(",") if name not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    reason = hosts_module.possible()
    if reason:
        sys.exit(f"hosts cannot be made here: {reason}")
    for name in arguments.parts.split(","):
        show(PARTS[name](), arguments.json)


if __name__ == "__main__":
    main()
