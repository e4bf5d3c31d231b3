"""Scenarios: what goes wrong, to whom and when, all of one seed.

*Pure.* Runs in simulation tests and in ``gcs_seeds``.

A scenario is a list of faults, each put somewhere into the first two seconds; the seed chooses them, the weather, and
how inner crashes and freezes fall. Then everything is mended, and what was promised must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshray.config import MILLISECOND_NS, SECOND_NS
from tests.sim.gcs_sim.judgement import judge
from tests.sim.gcs_sim.network import CALM, Weather
from tests.sim.gcs_sim.process import Process
from tests.sim.gcs_sim.workload import Counting, RandomCalls
from tests.sim.gcs_sim.world import World

CLIENTS = 3
CALLS = 14
TROUBLE_NS = 1_500 * MILLISECOND_NS
"""Faults begin within this."""
REST_NS = 90 * SECOND_NS
"""A mended world must have answered everything after this."""

WEATHERS = {
    "calm": CALM,
    "slow": Weather(slow=0.1),
    "bad": Weather(loss=0.03, twice=0.05, slow=0.1),
    "storm": Weather(loss=0.15, twice=0.15, slow=0.3, slow_ns=60 * MILLISECOND_NS),
}


def victim(world: World) -> Process:
    """Choose a member."""
    return world.random.choice(list(world.members.values()))


def crash(world: World) -> None:
    """A member dies; its disk stays."""
    victim(world).crash()


def crash_inside(world: World) -> None:
    """For a while, members die in the middle of turns."""
    for member in world.members.values():
        member.crash_chance = 0.1


def freeze(world: World) -> None:
    """A member stands still, shortly or for longer than any lease."""
    victim(world).freeze(world.random.choice((20, 200, 2_000)) * MILLISECOND_NS)


def freeze_inside(world: World) -> None:
    """For a while, members stand still between deciding and sending."""
    for member in world.members.values():
        member.freeze_chance, member.freeze_max_ns = 0.05, 500 * MILLISECOND_NS


def divide(world: World) -> None:
    """A member is cut off from some others, perhaps in one direction only, for a while."""
    one = victim(world).name
    others = set(world.network.processes) - {one}
    some = {name for name in sorted(others) if world.random.random() < 0.7}
    one_way = world.random.random() < 0.5
    if one_way and world.random.random() < 0.5:
        world.network.divide(some, {one}, one_way=True)
    else:
        world.network.divide({one}, some, one_way=one_way)
    world.schedule.after(world.random.randrange(SECOND_NS), world.network.join)


def fill_disk(world: World) -> None:
    """A member's disk is full for a while."""
    disk = world.disks[victim(world).name]
    disk.full = True
    world.schedule.after(world.random.randrange(SECOND_NS), _empty, disk)


def _empty(disk: Any) -> None:
    disk.full = False


FAULTS: dict[str, Callable[[World], None]] = {
    each.__name__: each for each in (crash, crash_inside, freeze, freeze_inside, divide, fill_disk)
}


def calm_down(world: World) -> None:
    """Mend everything."""
    world.network.weather = CALM
    world.network.join()
    for disk in world.disks.values():
        disk.full = False
    for member in world.members.values():
        member.crash_chance = member.freeze_chance = 0.0


def run(seed: int, faults: list[str] | None = None, weather: str | None = None, **changes: Any) -> World:
    """Run one seed and judge it; return the world. ``faults`` and ``weather`` may be fixed, ``changes`` break the
    system."""
    world = World(seed, CALM, **changes)
    source = world.random
    world.network.weather = WEATHERS[weather or source.choice(list(WEATHERS))]
    chosen = faults if faults is not None else source.choices(list(FAULTS), k=source.randrange(4))
    counting = []
    for index in range(CLIENTS):
        name = f"client-{index}"
        world.add_client(name)
        world.watch(name, "kv", b"a", prefix=True)
        if index:
            RandomCalls(world, name, CALLS)
        else:
            counting.append(Counting(world, name, 5))
    world.add_client("counter")
    counting.append(Counting(world, "counter", 5))
    for fault in chosen:
        world.schedule.after(source.randrange(TROUBLE_NS), FAULTS[fault], world)
    world.schedule.run(TROUBLE_NS + 2 * SECOND_NS)
    calm_down(world)
    world.schedule.run(REST_NS, lambda: not world.history.unanswered)
    world.schedule.run(5 * SECOND_NS)
    judge(world, counting)
    return world
