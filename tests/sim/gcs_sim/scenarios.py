"""Scenarios: what goes wrong, to whom and when, all of one seed.

*Pure.* Runs in simulation tests and in ``gcs_seeds``.

A scenario is a list of faults, each put somewhere into the first two seconds; the seed chooses them, the weather, and
how inner crashes and freezes fall. Then everything is mended, and what was promised must hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from meshray.config import MILLISECOND_NS, SECOND_NS
from meshray.messages.node import Shard
from tests.sim.gcs_sim.judgement import judge
from tests.sim.gcs_sim.network import CALM, Weather
from tests.sim.gcs_sim.process import Process
from tests.sim.gcs_sim.workload import Counting, Looking, RandomCalls
from tests.sim.gcs_sim.world import World

CLIENTS = 3
CALLS = 14
TROUBLE_NS = 1_000 * MILLISECOND_NS
"""Faults begin within this."""
REST_NS = 90 * SECOND_NS
"""A mended world must have answered everything after this."""

WEATHERS = {
    "calm": CALM,
    "slow": Weather(slow=0.1),
    "lossy": Weather(loss=0.05, slow=0.1),
    "bad": Weather(loss=0.03, twice=0.05, slow=0.1, reorders=True),
    "storm": Weather(loss=0.15, twice=0.15, slow=0.3, slow_ns=60 * MILLISECOND_NS, reorders=True),
}


def victim(world: World) -> Process:
    """Choose a server, or seldom a master."""
    among = world.servers if not world.masters or world.random.random() < 0.8 else world.masters
    return world.random.choice(list(among.values()))


def of_role(world: World, place: int) -> Process:
    """Return the server at this place of the chain, among those that are not lost for good."""
    members = [name for name, _ in world.chain().members if name in world.servers] or sorted(world.servers)
    return world.servers[members[place % len(members)]]


def crash(world: World) -> None:
    """A member dies; its disk stays."""
    victim(world).crash()


def crash_inside(world: World) -> None:
    """For a while, members die in the middle of turns."""
    for member in world.servers.values():
        member.crash_chance = 0.1


def crash_two(world: World) -> None:
    """Two servers die at once."""
    for server in world.random.sample(list(world.servers.values()), min(2, len(world.servers))):
        server.crash()


def crash_all(world: World) -> None:
    """Every process but the clients dies at once."""
    for process in (*world.servers.values(), *world.masters.values()):
        process.crash()


def crash_all_one_stays_away(world: World) -> None:
    """Every process but the clients dies at once, and one server comes back much later than the others."""
    one = world.random.choice(list(world.servers.values()))
    world.away_ns[one.name] = world.random.randrange(6) * SECOND_NS
    crash_all(world)


def crash_in_turn(world: World) -> None:
    """Head, middle and tail die, one shortly after the other."""
    for place in range(3):
        world.schedule.after(world.random.randrange(400 * MILLISECOND_NS), _crash_role, world, place)


def _crash_role(world: World, place: int) -> None:
    of_role(world, place).crash()


def crash_masters(world: World) -> None:
    """Masters die every few milliseconds for a while: also between wedging a chain and publishing the next."""
    for _ in range(10):
        delay_ns = world.random.randrange(800 * MILLISECOND_NS)
        master = world.random.choice(list(world.masters.values()) or [victim(world)])
        world.schedule.after(delay_ns, master.crash)


def crash_joiner(world: World) -> None:
    """A server dies, and dies again while it joins."""
    one = victim(world)
    one.crash()
    for _ in range(3):
        world.schedule.after(world.random.randrange(600 * MILLISECOND_NS), one.crash)


def strike_new_chains(world: World) -> None:
    """For a while, whenever a chain is new, one of its members dies at once: most often the one before the tail, who
    has what a tail that has just joined may lack."""

    def strike(shard: Shard) -> None:
        if world.random.random() < 0.7:
            place = world.random.choice((-2, -2, -1, 0))
            delay_ns = world.random.randrange(3 * MILLISECOND_NS)
            world.schedule.after(delay_ns, _crash_role, world, place)

    world.new_chain = strike


def wipe(world: World) -> None:
    """A server dies and its disk is lost, at a moment when the others have everything."""
    one = world.random.choice(list(world.servers.values()))
    if world.may_lose_a_disk():
        one.crash()
        world.disks[one.name].wipe()


def replace_one(world: World) -> None:
    """A node is lost for good, when the others have everything and can go on without it; another one, whose disk is
    empty, takes its place."""
    _replace(world, 1)


def replace_everybody(world: World) -> None:
    """Every server and master of the beginning is lost for good, one after the other, and replaced."""
    _replace(world, len(world.servers) + len(world.masters))


def _replace(world: World, count: int) -> None:
    """Losses for good come after the other faults: with two more members dead before the loss is noticed, the chain may
    have been left to the one that does not come back."""
    if world.replicas >= 3 and not world.replacing:
        first = [*world.servers, *world.masters]
        world.random.shuffle(first)
        world.replacing = count
        _replace_next(world, first[:count])


def _replace_next(world: World, left: list[str]) -> None:
    if world.is_calm and world.may_lose_a_disk():
        world.replace(left.pop())
        world.replacing = len(left)
    if left:
        world.schedule.after(world.random.randrange(400 * MILLISECOND_NS), _replace_next, world, left)


def freeze_role(world: World) -> None:
    """The head, a middle or the tail stands still for longer than its lease, and wakes up with old plans."""
    of_role(world, world.random.randrange(3)).freeze(world.random.randrange(300, 2_500) * MILLISECOND_NS)


def freeze(world: World) -> None:
    """A member stands still, shortly or for longer than any lease."""
    victim(world).freeze(world.random.choice((20, 200, 2_000)) * MILLISECOND_NS)


def freeze_inside(world: World) -> None:
    """For a while, members stand still between deciding and sending."""
    for member in world.servers.values():
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


def estrange(world: World) -> None:
    """The masters, and perhaps the other servers, no longer hear a member, and replace it; but some clients hear only
    this one, and do not learn that it was replaced."""
    one = of_role(world, world.random.choice((0, -1, -1))).name
    rest = set(world.servers) - {one}
    world.network.divide({one}, set(world.masters))
    if world.random.random() < 0.5:
        world.network.divide({one}, rest)
    for client in sorted(world.clients):
        if client == "reader" or world.random.random() < 0.2:
            world.network.divide({client}, rest)
    world.schedule.after(world.random.randrange(SECOND_NS, 3 * SECOND_NS), world.network.join)


def echo(world: World) -> None:
    """For a while, much of what is said comes again when it is long out of date; meanwhile, one server dies repeatedly,
    so that its words outlive it."""
    world.network.weather = msgspec.structs.replace(world.network.weather, echo=0.2)
    one = world.random.choice(list(world.servers.values()))
    for _ in range(4):
        world.schedule.after(world.random.randrange(TROUBLE_NS), one.crash)


def fill_disk(world: World) -> None:
    """A member's disk is full for a while."""
    disk = world.random.choice(list(world.disks.values()))
    disk.full = True
    world.schedule.after(SECOND_NS // 4 + world.random.randrange(SECOND_NS), _empty, disk)


def _empty(disk: Any) -> None:
    disk.full = False


FAULTS: dict[str, Callable[[World], None]] = {
    each.__name__: each for each in (
        crash, crash_two, crash_all, crash_all_one_stays_away, crash_in_turn, crash_masters, crash_joiner,
        crash_inside, wipe, strike_new_chains, freeze, freeze_role, freeze_inside, divide, estrange, echo, fill_disk,
        replace_one, replace_everybody)
}


def calm_down(world: World) -> None:
    """Mend everything."""
    world.is_calm = True
    world.network.weather = CALM
    world.network.join()
    world.new_chain = lambda shard: None
    for disk in world.disks.values():
        disk.full = False
    for member in world.servers.values():
        member.crash_chance = member.freeze_chance = 0.0


def run(seed: int, faults: list[str] | None = None, weather: str | None = None, *, replicas: int = 0) -> World:
    """Run one seed and judge it; return the world. ``faults``, ``weather`` and ``replicas`` may be fixed."""
    choices = random.Random(seed)
    world = World(seed, CALM, replicas=replicas or choices.choice((1, 2, 3, 3, 3)), masters=choices.choice((1, 2, 3)))
    source = world.random
    world.network.weather = WEATHERS[weather or source.choice(list(WEATHERS))]
    chosen = faults if faults is not None else source.choices(list(FAULTS), k=source.randrange(5))
    counting = []
    for index in range(CLIENTS):
        name = f"client-{index}"
        world.add_client(name)
        world.watch(name, "kv", b"a", prefix=True)
        if index:
            RandomCalls(world, name, CALLS)
        else:
            counting.append(Counting(world, name, 5))
    world.add_client("reader")
    Looking(world, "reader", TROUBLE_NS + 2 * SECOND_NS)
    world.add_client("counter")
    counting.append(Counting(world, "counter", 5))
    for fault in chosen:
        world.schedule.after(source.randrange(TROUBLE_NS), FAULTS[fault], world)
    world.schedule.run(TROUBLE_NS + 2 * SECOND_NS)
    calm_down(world)
    world.schedule.run(REST_NS, lambda: not (world.history.unanswered or world.replacing) and world.has_recovered())
    world.schedule.run(3 * SECOND_NS)
    world.schedule.run(REST_NS, world.is_whole)  # a master that was not asked for long may just learn what there is
    judge(world, counting)
    return world
