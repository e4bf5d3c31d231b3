"""What runs on the hosts while transfers are measured: programs of one node each, with their figures as JSON.

*Shell (clock, stdout).* ``python -m perf.transfer_programs NAME ...``, started by ``perf.transfer`` and
``perf.broadcast`` on a host of a measured cluster.

1. The time of a pull is taken where the object is needed, around ``get``.
2. Every array that is sent is random, so no two chunks are equal by chance, and its sum is compared when it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from typing import Any

import numpy as np

import meshray
from meshray import config
from meshray.ids import process_name
from meshray.messages.node import DeclareDemand, Demand, LeaseGranted, Register, Registered, ReturnLease
from meshray.resources import UNITS_PER_ONE
from meshray.transport.codec import decode, encode
from meshray.transport.endpoints import NODE_PROCESS
from meshray.transport.sockets import Peers, process_endpoint

PATIENCE_S = 120.0


@meshray.remote(num_cpus=0)
class Receiver:
    """Gets what it is told to get."""

    def pull(self, wrapped: list[Any]) -> float:
        """Return the seconds that ``get`` took."""
        began = time.perf_counter()
        self.value = meshray.get(wrapped[0], timeout=PATIENCE_S)
        return time.perf_counter() - began

    def total(self) -> int:
        """Return the sum of the array that was pulled, and let it go."""
        total = int(self.value.sum(dtype=np.uint64))
        del self.value
        return total


def receivers(names: list[str]) -> list[Any]:
    """Return a receiver on each of the named nodes, ready."""
    actors = [Receiver.options(resources={name: 1}).remote() for name in names]
    small = meshray.put(np.zeros(1, np.uint8))
    meshray.get([actor.pull.remote([small]) for actor in actors], timeout=PATIENCE_S)
    check(actors, np.zeros(1, np.uint8))
    return actors


def payload(size_bytes: int) -> Any:
    """Return a random array of that size, a multiple of 8."""
    return np.random.default_rng().integers(0, 1 << 64, size_bytes // 8, np.uint64)


def check(actors: list[Any], value: Any) -> None:
    """The array must have arrived at each of the receivers."""
    totals = meshray.get([actor.total.remote() for actor in actors], timeout=PATIENCE_S)
    assert totals == [int(value.sum(dtype=np.uint64))] * len(actors), "what arrived is not what was sent"


def pull(target: str, size_bytes: int, count: int) -> list[float]:
    """Return the seconds of ``count`` pulls from this node to ``target``, one after another."""
    (receiver,) = receivers([target])
    times = []
    for _ in range(count):
        value = payload(size_bytes)
        times.append(meshray.get(receiver.pull.remote([meshray.put(value)]), timeout=PATIENCE_S))
        check([receiver], value)
    return times


def resend(target: str, size_bytes: int, shared: float) -> None:
    """Send an object, then one that shares that part of its bytes; tell after each, and go on at a line of input."""
    (receiver,) = receivers([target])
    first = payload(size_bytes)
    second = first.copy()
    second[int(len(second) * shared):] = payload(second[int(len(second) * shared):].nbytes)
    kept = []
    for value in (first, second):
        input()
        kept.append(meshray.put(value))
        took = meshray.get(receiver.pull.remote([kept[-1]]), timeout=PATIENCE_S)
        check([receiver], value)
        print(json.dumps(took), flush=True)
    input()


def broadcast(targets: list[str], size_bytes: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds until one, and until all, of the targets have an object of this node."""
    actors = receivers(targets)
    times: dict[str, list[float]] = {"one": [], "all": []}
    for number in range(rounds):
        for name, chosen in (("one", [actors[number % len(actors)]]), ("all", actors)):
            value = payload(size_bytes)
            ref = meshray.put(value)
            began = time.perf_counter()
            meshray.get([actor.pull.remote([ref]) for actor in chosen], timeout=PATIENCE_S)
            times[name].append(time.perf_counter() - began)
            check(chosen, value)
            del ref
    return times


@meshray.remote
def make(size_bytes: int) -> Any:
    """Return an array that lies where this runs."""
    return payload(size_bytes)


@meshray.remote
def first_of(value: Any) -> tuple[str, int]:
    """Return where this ran, and a word of its input."""
    return meshray.get_runtime_context().get_node_id(), int(value[0])


def locality(nodes: list[str], size_bytes: int, objects: int, tasks: int) -> dict[str, float]:
    """Return the seconds for tasks that each need one random object of the nodes, and how many ran beside theirs."""
    refs = [(name, make.options(resources={name: 1}).remote(size_bytes)) for name in nodes for _ in range(objects)]
    meshray.wait([ref for _, ref in refs], num_returns=len(refs), timeout=PATIENCE_S, fetch_local=False)
    ids = {row["NodeName"]: row["NodeID"] for row in meshray.nodes()}
    chosen = random.Random(1).choices(refs, k=tasks)
    began = time.perf_counter()
    answers = meshray.get([first_of.remote(ref) for _, ref in chosen], timeout=PATIENCE_S)
    took = time.perf_counter() - began
    beside = sum(ids[name] == node for (name, _), (node, _) in zip(chosen, answers, strict=True))
    return {"seconds": took, "beside": beside / tasks}


def leases(resource: str, seconds: float) -> dict[str, float]:
    """Return percentiles of the time from a demand to its lease at this node, in milliseconds."""
    endpoint = os.environ["MESHRAY_ADDRESS"]
    run_dir = os.path.dirname(endpoint.removeprefix("ipc://"))
    name = process_name("driver", os.urandom(8))
    peers = Peers(name, process_endpoint(run_dir, name))
    try:
        node = peers.connect(NODE_PROCESS, endpoint)
        peers.send(node, encode(Register(name, "driver", os.getpid(), peers.endpoint)))
        await_message(peers, Registered)
        times = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            peers.send(node, encode(DeclareDemand([Demand(1, {resource: UNITS_PER_ONE}, 1)])))
            granted = await_message(peers, LeaseGranted)
            times.append(time.perf_counter() - began)
            peers.send(node, encode(DeclareDemand([Demand(1, {resource: UNITS_PER_ONE}, 0)])))
            peers.send(node, encode(ReturnLease([granted.lease])))
        cuts = statistics.quantiles(times, n=100)
        return {"count": len(times), "p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}
    finally:
        peers.close()


def await_message(peers: Peers, kind: type[Any]) -> Any:
    """Return the next message of that kind. Raise TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        peers.wait(1000)
        for parts in peers.receive(config.TURN_MESSAGES_MAX):
            message = decode(parts[1])
            if type(message) is kind:
                return message
    raise TimeoutError(f"no {kind.__name__} within {PATIENCE_S:g} s")


def main() -> None:
    """Run the program that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m perf.transfer_programs")
    parser.add_argument("name", choices=["pull", "resend", "broadcast", "locality", "leases"])
    parser.add_argument("--nodes", default="")
    parser.add_argument("--bytes", type=int, default=256 << 20)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--part", type=float, default=0.9)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    nodes = given.nodes.split(",")
    if given.name == "leases":
        print(json.dumps(leases(nodes[0], given.seconds)))
        return
    with meshray.init():
        if given.name == "pull":
            print(json.dumps(pull(nodes[0], given.bytes, given.count)))
        elif given.name == "resend":
            resend(nodes[0], given.bytes, given.part)
        elif given.name == "broadcast":
            print(json.dumps(broadcast(nodes, given.bytes, given.count)))
        else:
            print(json.dumps(locality(nodes, given.bytes, given.count, given.tasks)))


if __name__ == "__main__":
    main()
