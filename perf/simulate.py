"""What does a scheduled task cost, and how good is the schedule, in clusters of up to a thousand nodes?

*Shell (clock, stdout).* ``python -m perf.simulate --nodes 100,300,1000 --tasks 1000000 [--json]``.

1. The machines that decide are those that ship (see ``perf.simulated_cluster``); time is virtual.
2. One driver in ten nodes runs three functions: one of 1 to 3 ms, one of 5 to 50 ms, and one with a heavy tail from 1
   ms to 10 s. One node in a hundred dies on the way; its tasks run again.
3. The ideal is greedy: the same tasks in the same order on the same CPUs, each at once where one is free, with nothing
   to decide and nothing to send. No schedule that starts them in that order ends much earlier (Graham's bound).
4. ``--tasks`` is what the largest cluster runs. The others run their share, so that every node has as much to do, and
   what differs is the number of nodes; with ``--same-tasks`` all run as many, and what the begin and the end of a run
   cost is spread over a hundred times as many tasks per node in the smallest cluster as in the largest.
5. Rows: ``cpu_us_per_task_N`` (CPU of all nodes, replicas and owners while they decide), ``bytecodes_per_task_N`` (of
   the same decisions), ``messages_per_task_N``, ``makespan_over_ideal_N``; and how the first three grow from the
   smallest cluster to the largest.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import random
import time
from typing import Any

from meshray import config
from meshray.sched.events import SessionJoined
from perf.journal import Journal
from perf.simulated_cluster import MS, Node, Owner, make_cluster

SMALLEST = 10
"""Nodes of the cluster that the others are compared with."""

CPUS = 4
REPLICAS = 2
NODES_PER_DRIVER = 10
NODES_PER_DEATH = 100
FUNCTIONS = 3
JOURNALS = 8
"""Processes of each kind whose decisions are taken again, to measure them; all replicas are."""

WINDOW = 6_000
"""Tasks that a driver has submitted and that have not been pushed."""

SETTLE_NS = 3 * config.SECOND_NS
"""Time in which nodes get to know each other and start workers, before the first task."""

LIMIT_NS = 100_000 * config.SECOND_NS


def run_times(rng: random.Random, count: int) -> list[int]:
    """Return how long each task takes: the three functions in turns, as ``Owner.function_of`` has them."""
    times = [0]
    for seq in range(1, count + 1):
        kind = seq % 3
        if kind == 0:
            times.append(rng.randrange(MS, 3 * MS))
        elif kind == 1:
            times.append(rng.randrange(5 * MS, 50 * MS))
        else:
            times.append(min(10_000 * MS, int(MS * (1 - rng.random()) ** (-1 / 0.6))))
    return times


def ideal_ns(owners: list[Owner], nodes: int, deaths: dict[int, int]) -> int:
    """Return the makespan of greedy scheduling without any cost; ``deaths`` maps nodes to when they die."""
    queues = [owner.run_ns for owner in owners]
    order = [times[position] for position in range(1, max(map(len, queues))) for times in queues
             if position < len(times)]
    order.reverse()
    free = [(0, node) for node in range(nodes) for _ in range(CPUS)]
    heapq.heapify(free)
    end_ns = 0
    while order:
        start_ns, node = heapq.heappop(free)
        task_ns = order.pop()
        died_ns = deaths.get(node)
        if died_ns is not None and start_ns + task_ns > died_ns:
            order.append(task_ns)
            continue
        end_ns = max(end_ns, start_ns + task_ns)
        heapq.heappush(free, (start_ns + task_ns, node))
    return end_ns


def simulate(nodes: int, tasks: int, seed: int) -> dict[str, Any]:
    """Run one cluster; return what was measured."""
    started = time.process_time()
    world, cluster = make_cluster(seed, nodes, CPUS, REPLICAS)
    drivers = max(1, nodes // NODES_PER_DRIVER)
    homes, others = cluster[::NODES_PER_DRIVER], [node for node in cluster if node not in cluster[::NODES_PER_DRIVER]]
    homes = homes[:drivers]
    owners = [Owner(world, number, home.name, FUNCTIONS, WINDOW) for number, home in enumerate(homes)]
    kinds: dict[str, tuple[list[Any], int]] = {
        "home node": (homes[:JOURNALS], len(homes)), "other node": (others[:JOURNALS], len(others)),
        "scheduler": ([world.parties[name] for name in world.schedulers], REPLICAS),
        "owner": (owners[:JOURNALS], drivers)}
    journaled = [process for processes, _ in kinds.values() for process in processes]
    for process in journaled:
        process.journal = Journal()
    world.run(lambda: False, world.now_ns + SETTLE_NS)
    for owner, home in zip(owners, homes, strict=True):
        home.handle(SessionJoined(owner.name, owner.name.encode(), "driver", 1, "sim://", owner.name))
        owner.run_ns = run_times(world.random, tasks // drivers)
        owner.left = len(owner.run_ns) - 1
    total = tasks // drivers * drivers
    work_ns = sum(sum(owner.run_ns) for owner in owners)
    deaths = dict.fromkeys(range(NODES_PER_DEATH - 1, nodes, NODES_PER_DEATH), work_ns // (nodes * CPUS) // 2)
    begun_ns = world.now_ns
    for process in journaled:
        process.journal.warm_up = len(process.journal.entries)
    world.messages.clear()
    for number, death_ns in deaths.items():
        world.at(begun_ns + death_ns, Node.crash, cluster[number])
    for owner in owners:
        owner.begin()
    waiting = list(owners)

    def done() -> bool:
        while waiting and not waiting[-1].left:
            waiting.pop()
        return not waiting

    if not world.run(done, begun_ns + LIMIT_NS):
        raise SystemExit(f"{sum(owner.left for owner in owners)} of {total} tasks did not run")
    makespan_ns = world.now_ns - begun_ns
    best_ns = ideal_ns(owners, nodes, deaths)
    cpu_ns, bytecodes = {}, {}
    for kind, (processes, count) in kinds.items():
        if processes:
            costs = [process.journal.cost(process.fresh()) for process in processes]
            cpu_ns[kind], bytecodes[kind] = (sum(each) / len(processes) * count for each in zip(*costs, strict=True))
    return {
        "nodes": nodes, "tasks": total, "makespan_s": makespan_ns / config.SECOND_NS,
        "ideal_s": best_ns / config.SECOND_NS, "makespan_over_ideal": makespan_ns / best_ns,
        "work_s_per_cpu": work_ns / (nodes * CPUS) / config.SECOND_NS,
        "cpu_us_per_task": sum(cpu_ns.values()) / total / 1000,
        "cpu_us_per_task_of": {kind: cpu / total / 1000 for kind, cpu in cpu_ns.items()},
        "bytecodes_per_task": sum(bytecodes.values()) / total,
        "bytecodes_per_task_of": {kind: count / total for kind, count in bytecodes.items()},
        "busy_share_of": {kind: cpu / kinds[kind][1] / makespan_ns for kind, cpu in cpu_ns.items()},
        "messages_per_task": sum(world.messages.values()) / total,
        "messages_per_task_of": {kind: count / total for kind, count in sorted(world.messages.items())},
        "tasks_retried": sum(owner.retried for owner in owners), "took_s": time.process_time() - started,
    }


def rows(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures by name, with the growth of the costs from the smallest cluster to the largest."""
    named = {f"{figure}_{result['nodes']}": round(result[figure], 4) for result in results
             for figure in ("cpu_us_per_task", "bytecodes_per_task", "makespan_over_ideal", "messages_per_task")}
    for figure in ("cpu_us_per_task", "bytecodes_per_task", "messages_per_task"):
        named[f"{figure}_growth"] = round(results[-1][figure] / results[0][figure], 4)
    return named


def report(result: dict[str, Any]) -> None:
    """Print one cluster's figures."""
    print(f"{result['nodes']} nodes, {result['tasks']:,} tasks: makespan {result['makespan_s']:.2f} s, ideal "
          f"{result['ideal_s']:.2f} s, work {result['work_s_per_cpu']:.2f} s per CPU, {result['tasks_retried']} tasks "
          f"retried ({result['took_s']:.0f} s to simulate)")
    for kind, cpu_us in result["cpu_us_per_task_of"].items():
        bytecodes = result["bytecodes_per_task_of"][kind]
        print(f"  {kind:<10} {cpu_us:8.2f} us of CPU and {bytecodes:6.0f} bytecodes per task, "
              f"each busy {result['busy_share_of'][kind]:7.2%}")
    for kind, count in result["messages_per_task_of"].items():
        print(f"  {kind:<22} {count:9.5f} per task")


def main() -> None:
    """Run the clusters that were asked for, the smallest one first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", default="100,300,1000", help="sizes of clusters, with commas between")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="tasks in the largest cluster")
    parser.add_argument("--same-tasks", action="store_true", help="as many tasks in every cluster")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    sizes = sorted({SMALLEST, *(int(size) for size in options.nodes.split(","))})
    results = []
    # Each process has a heap of its own; here all are in one, which a collection would walk again and again.
    gc.disable()
    for nodes in sizes:
        tasks = options.tasks if options.same_tasks else options.tasks * nodes // sizes[-1]
        results.append(simulate(nodes, max(tasks, nodes), options.seed))
        if not options.json:
            report(results[-1])
        gc.collect()
    figures = rows(results)
    print(json.dumps(figures) if options.json else "\n".join(f"{name:<30} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
