"""Everything that must hold of a world when it has come to rest.

*Pure.* Runs in simulation tests.
"""

from __future__ import annotations

from tests.sim.gcs_sim import chain_order, linearizability, versions, watching
from tests.sim.gcs_sim.history import Violation
from tests.sim.gcs_sim.workload import COUNTER, Counting, counted
from tests.sim.gcs_sim.world import World


def judge(world: World, counting: list[Counting]) -> None:
    """Raise Violation for a promise that was broken in this world, which must be quiet and whole."""
    everyone_was_answered(world)
    the_chain_is_whole(world)
    world.history.close()
    versions.check(world.history)
    linearizability.check(world.history)
    replicas_agree(world)
    world.commits.answers_are_there(world.history)
    watchers_know(world)
    nothing_was_counted_twice(world, counting)


def everyone_was_answered(world: World) -> None:
    """Liveness: a world that is whole again answers."""
    if world.history.unanswered:
        raise Violation(f"{world.history.unanswered} calls were never answered; ends: {world.ends}")


def the_chain_is_whole(world: World) -> None:
    """Liveness: in a world that is whole again, every server finds its place."""
    if not world.is_whole():
        known = {name: f"{server.machine.role} of {server.machine.shard}" if server.is_up else "down"
                 for name, server in world.servers.items()}
        raise Violation(f"the chain is not whole: {known}; ends: {world.ends}")


def replicas_agree(world: World) -> None:
    """All members hold the same, and what was committed, in the order of the chain."""
    names = [name for name, _ in world.chain().members]
    chain_order.prefixes([(name, world.disks[name].log) for name in names])
    chain_order.equal({name: world.disks[name].state() for name in names})
    for name in names:
        world.commits.agree_with(name, world.disks[name].log, whole=True)
        chain_order.once(world.disks[name].log)


def watchers_know(world: World, table: str = "kv", key: bytes = b"a") -> None:
    """Watchers of the prefix were told in order, and know the rows as they are."""
    committed = world.committed_rows()
    rows = world.disks[world.chain().members[-1][0]].tables.get(table, {})
    present = {name: row for name, row in rows.items() if name.startswith(key)}
    for watcher, told in world.told.items():
        watching.in_order(str(watcher), told, committed)
        watching.complete(str(watcher), told, present)


def nothing_was_counted_twice(world: World, counting: list[Counting]) -> None:
    """The counter is what was added to it."""
    row = world.disks[world.chain().members[-1][0]].get(*COUNTER)
    value = counted(row[1] if row else None)
    done = sum(each.done for each in counting)
    if not done <= value <= done + sum(each.perhaps for each in counting):
        raise Violation(f"the counter says {value}, but {done} additions were done")
