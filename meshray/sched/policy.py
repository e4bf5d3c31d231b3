"""Every judgement of the schedulers: who is served first, whom to ask back, when to spill, where to place.

*Pure.* Functions without state, used by the local and the global scheduler. To try another policy, replace this file.

1. Resources are dicts of name to 1/10 000 units; a name that is absent counts as 0.
2. No owner starves another: whoever holds least is served first, whoever holds more than its share is asked to return.
3. A large claim is not starved by small ones: every other ``STARVED_NS`` the resources it needs are kept free for it,
   though never against nested tasks, on which it may itself be waiting.

Source: OSDI'18 s4.2.2 (lowest estimated waiting time); Blumofe and Leiserson for the bound that greedy placement meets.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import msgspec

from meshray import config, labels
from meshray.messages.node import Strategy

Resources = dict[str, int]

UNIT = 10_000

SPILL_WAIT_NS = 10 * config.MILLISECOND_NS
"""Work that would wait less than this stays: finding another node costs a few round trips."""

MEAN_UNKNOWN_NS = 10 * config.MILLISECOND_NS
"""Run time assumed of a class that has not run yet."""

BANDWIDTH_UNKNOWN = 1_000_000_000
"""Bytes per second assumed between nodes that have not exchanged anything yet."""

AWAY_NS = 2 * config.MILLISECOND_NS
"""Inputs that need longer than this to arrive make a node a strange place for a task: others come first there."""

AWAY_PATIENCE_NS = 200 * config.MILLISECOND_NS
"""Work that found no place near its inputs for this long, beside the time that they travel, runs wherever it can."""

SLICE_NS = 50 * config.MILLISECOND_NS
"""A lease held this long goes round when somebody with nothing waits for its resources."""

OWN_SLICE_NS = 200 * config.MILLISECOND_NS
"""The same between classes of one owner, which wait for each other's results rather than for their share."""

STARVED_NS = 1 * config.SECOND_NS
"""A claim that waited this long has its resources kept free for it, in alternate windows of this length."""

VICTIMS_MAX = 64
"""Leases asked back for one waiter in one pass."""


class Waiter(msgspec.Struct, eq=False):
    """A claim or actor that lacks ``short`` times ``need``. ``away``: its inputs lie elsewhere, so that it gets here
    only what nobody else has a use for."""

    key: Any
    owner: str
    owner_held: int
    held: int
    since_ns: int
    need: Resources
    short: int
    nested: bool = False
    away: bool = False


class Holding(msgspec.Struct, eq=False):
    """A lease in use. ``idle``: its owner has nothing more waiting for it. ``away``: its inputs lie elsewhere."""

    lease: int
    key: Any
    owner: str
    need: Resources
    since_ns: int
    idle: bool
    away: bool = False


class Candidate(msgspec.Struct, eq=False):
    """A node as the global scheduler believes it to be; ``place`` books what it gives out (``booked``, until the node's
    next word). ``turn`` grows each time."""

    node: str
    name: str
    endpoint: str
    total: Resources
    available: Resources
    queued: int = 0
    mean_task_ns: int = 0
    bytes_per_s: int = 0
    labels: dict[str, str] = {}
    turn: int = 0
    booked: bool = False


class Placement(msgspec.Struct, frozen=True):
    """Where leases go: (node, endpoint, count). Not ``feasible``: no node can ever run it, for ``reason``."""

    places: list[tuple[str, str, int]]
    feasible: bool = True
    reason: str = ""


# --- arithmetic --------------------------------------------------------------------------------------------------


def covers(room: Mapping[str, int], need: Mapping[str, int]) -> bool:
    """Whether ``need`` fits into ``room``."""
    for name, amount in need.items():  # noqa: SIM110  the innermost question, and a generator costs twice as much
        if room.get(name, 0) < amount:
            return False
    return True


def subtract(room: Resources, need: Mapping[str, int], times: int = 1) -> None:
    """Take ``need`` out of ``room``."""
    for name, amount in need.items():
        room[name] = room.get(name, 0) - amount * times


def slots(room: Mapping[str, int], need: Mapping[str, int], limit: int) -> int:
    """Return how many times ``need`` fits into ``room``, at most ``limit``."""
    for name, amount in need.items():
        limit = min(limit, room.get(name, 0) // amount)
    return max(0, limit)


def average(old: int, sample: int) -> int:
    """Return the exponential average with weight 1/4 on ``sample``; the first sample counts wholly."""
    return sample if not old else (3 * old + sample) // 4


def estimated_wait_ns(queued: int, mean_ns: int, running: int) -> int:
    """Return how long a task would wait: queue length x average duration / slots."""
    return queued * (mean_ns or MEAN_UNKNOWN_NS) // max(1, running)


def transfer_ns(input_bytes: Mapping[str, int], node: str, bytes_per_s: int) -> int:
    """Return how long the inputs that are not on ``node`` take to get there: their size / average bandwidth."""
    away_bytes = sum(size for holder, size in input_bytes.items() if holder != node)
    return away_bytes * config.SECOND_NS // (bytes_per_s or BANDWIDTH_UNKNOWN)


# --- the local scheduler's judgements ----------------------------------------------------------------------------


def turn(owner_held: int, held: int, since_ns: int) -> tuple[int, int, int]:
    """Return the sort key of a claim: the owner with the fewest leases first, then first come, first served."""
    return owner_held, held, since_ns


def keeps_free(waited_ns: int) -> bool:
    """Whether a claim that does not fit has its resources kept free for it now."""
    return (waited_ns // STARVED_NS) % 2 == 1


def is_here(strategy: Strategy, node: str, name: str) -> bool:
    """Whether a node-affine strategy means this node."""
    return strategy.node in (node, name)


def spill_count(short: int, *, backlog: int, mean_ns: int, running: int, waited_ns: int = 0, travel_ns: int = 0,
                away: bool = False) -> int:
    """Return how many of ``short`` leases to seek elsewhere: all when the inputs lie elsewhere (``away``); none when
    the wait here is short, or shorter than the way of the inputs to another node (``travel_ns``). What has waited for
    ``waited_ns`` already waits for that long, whatever its like took; with inputs here, some patience comes first."""
    waited_ns -= AWAY_PATIENCE_NS if travel_ns else 0
    wait_ns = max(waited_ns, estimated_wait_ns(max(backlog, short), mean_ns, running))
    return short if away or wait_ns > SPILL_WAIT_NS + travel_ns else 0


def may_run_away(waited_ns: int, *, backlog: int, mean_ns: int, running: int, travel_ns: int) -> bool:
    """Whether work whose inputs lie elsewhere may run here: they travel faster than it would wait where they are, where
    it has ``running`` slots; and it has waited for as long as they travel (delay scheduling, EuroSys'10)."""
    if not running and waited_ns >= AWAY_PATIENCE_NS + travel_ns:
        return True
    return waited_ns >= travel_ns and estimated_wait_ns(backlog, mean_ns, running) > travel_ns


def victims(waiters: list[Waiter], holdings: list[Holding], room: Resources, now_ns: int) -> list[int]:
    """Return the leases to ask back so that ``waiters`` get their share.

    In this order: leases that their owner no longer needs; leases of those that hold at least two more than the waiter;
    and, for a waiter with nothing at all, leases that are older than a slice. ``room`` is what is free or coming back.
    """
    room = dict(room)
    free = list(holdings)
    owners: dict[str, int] = {}
    claims: dict[Any, int] = {}
    for holding in free:
        owners[holding.owner] = owners.get(holding.owner, 0) + 1
        claims[holding.key] = claims.get(holding.key, 0) + 1
    chosen: list[int] = []
    for waiter in sorted(waiters, key=lambda w: turn(w.owner_held, w.held, w.since_ns)):
        for _ in range(min(waiter.short, VICTIMS_MAX)):
            picked: list[Holding] = []
            while not covers(room, waiter.need):
                victim = _victim(waiter, free, owners, claims, room, now_ns)
                if victim is None:
                    break
                free.remove(victim)
                picked.append(victim)
                owners[victim.owner] -= 1
                claims[victim.key] -= 1
                subtract(room, victim.need, -1)
            if not covers(room, waiter.need):
                break
            chosen += [holding.lease for holding in picked]
            subtract(room, waiter.need)
            owners[waiter.owner] = owners.get(waiter.owner, 0) + 1
            claims[waiter.key] = claims.get(waiter.key, 0) + 1
    return chosen


def _victim(waiter: Waiter, free: list[Holding], owners: dict[str, int], claims: dict[Any, int], room: Resources,
            now_ns: int) -> Holding | None:
    lacking = {name for name, amount in waiter.need.items() if room.get(name, 0) < amount}
    best: tuple[tuple[int, int, int], Holding] | None = None
    for holding in free:
        if holding.key == waiter.key or lacking.isdisjoint(holding.need):
            continue
        if holding.owner == waiter.owner:
            surplus = claims[holding.key] - claims.get(waiter.key, 0)
        else:
            surplus = owners[holding.owner] - owners.get(waiter.owner, 0)
        if holding.idle or (holding.away and not waiter.away):
            rank = 0
        elif waiter.away:
            continue
        elif surplus > 1:
            rank = 1
        elif not claims.get(waiter.key) and now_ns - holding.since_ns >= (
                SLICE_NS if holding.owner != waiter.owner else OWN_SLICE_NS):
            rank = 2
        else:
            continue
        key = (rank, -surplus, holding.since_ns)
        if best is None or key < best[0]:
            best = (key, holding)
    return best[1] if best else None


# --- the global scheduler's judgement ----------------------------------------------------------------------------


def suits(total: Mapping[str, int], node_labels: Mapping[str, str], need: Mapping[str, int],
          strategy: Strategy) -> bool:
    """Whether a node of this size with these labels may ever run it; node affinity aside."""
    return covers(total, need) and (not strategy.labels or labels.matches(strategy.labels, node_labels))


def place(need: Mapping[str, int], count: int, able: list[Candidate], *, asker: str = "", spread: bool = False,
          mean_ns: int = 0, backlog: int = 0, input_bytes: Mapping[str, int] | None = None,
          asker_able: bool = True) -> Placement:
    """Choose nodes for ``count`` leases among those that suit, and book them. If the asker cannot run them itself
    (``asker_able``), what finds no room queues where the estimated wait is lowest."""
    given = dict.fromkeys((node.node for node in able), 0)
    sizes = input_bytes or {}
    if spread:
        _level(given, able, need, count)
    else:
        _fill(given, able, need, count, mean_ns, max(backlog, count), sizes)
        left = count - sum(given.values())
        if left and sizes:
            left -= _near(given, able, need, left, mean_ns, sizes, asker)
        if left and not asker_able:
            _queue(given, able, need, left, mean_ns, sizes)
    return _deal(given, able, need)


def put(need: Mapping[str, int], count: int, node: Candidate) -> Placement:
    """Book ``count`` leases on one node, whether it has room or not."""
    return _deal({node.node: count}, [node], need)


def _level(given: dict[str, int], able: list[Candidate], need: Mapping[str, int], count: int) -> None:
    """Spread: the node with room and the fewest of these leases gets the next one; among equals the one where least is
    in use, then the one whose turn is longest ago, since what is spread often comes one by one."""
    room = {node.node: slots(node.available, need, count) for node in able}
    heap = [(room[node.node] <= 0, 0, (_used(node, need), node.queued, node.turn), node.node) for node in able]
    heapq.heapify(heap)
    for _ in range(count if heap else 0):
        _, _, rank, name = heap[0]
        given[name] += 1
        heapq.heapreplace(heap, (given[name] >= room[name], given[name], rank, name))


def _used(node: Candidate, need: Mapping[str, int]) -> float:
    """Return which share of what the node has of these resources is in use, of the one that is used most."""
    return max((1 - node.available.get(name, 0) / node.total[name] for name in need if name in node.total), default=0)


def _fill(given: dict[str, int], able: list[Candidate], need: Mapping[str, int], count: int, mean_ns: int,
          backlog: int, sizes: Mapping[str, int]) -> None:
    """Use free slots, those with the lowest estimated waiting time first; none to which the inputs would travel longer
    than the work would wait for the slots that were chosen before it."""
    ranked = []
    for node in able:
        free = slots(node.available, need, count)
        if free:
            travel_ns = transfer_ns(sizes, node.node, node.bytes_per_s) if sizes else 0
            ranked.append((node.queued * (node.mean_task_ns or MEAN_UNKNOWN_NS) + travel_ns, -free, node.node,
                           travel_ns))
    ranked.sort()
    chosen = 0
    for _, free, name, travel_ns in ranked:
        if chosen >= count:
            break
        if travel_ns >= AWAY_NS and chosen and travel_ns > estimated_wait_ns(backlog, mean_ns, chosen):
            break
        given[name] = min(-free, count - chosen)
        chosen += given[name]


def _near(given: dict[str, int], able: list[Candidate], need: Mapping[str, int], left: int, mean_ns: int,
          sizes: Mapping[str, int], asker: str) -> int:
    """Queue at a node that holds the inputs, if the wait there is shorter than their way elsewhere."""
    queued = 0
    for node in able:
        if node.node == asker or node.node not in sizes or given[node.node]:
            continue
        travel_ns = transfer_ns(sizes, "", node.bytes_per_s)
        size = slots(node.total, need, left - queued)
        if size and travel_ns >= AWAY_NS and estimated_wait_ns(
                node.queued, node.mean_task_ns or mean_ns, slots(node.total, need, 1 << 30)) <= travel_ns:
            given[node.node] = size
            queued += size
    return queued


def _queue(given: dict[str, int], able: list[Candidate], need: Mapping[str, int], count: int, mean_ns: int,
           sizes: Mapping[str, int]) -> None:
    """Nobody has room and the asker cannot run it: queue where the estimated wait is lowest."""
    def wait(node: Candidate) -> int:
        return estimated_wait_ns(node.queued + given[node.node] + 1, node.mean_task_ns or mean_ns,
                                 slots(node.total, need, count)) + transfer_ns(sizes, node.node, node.bytes_per_s)

    by_name = {node.node: node for node in able}
    heap = [(wait(node), node.node) for node in able]
    heapq.heapify(heap)
    for _ in range(count if heap else 0):
        name = heap[0][1]
        given[name] += 1
        heapq.heapreplace(heap, (wait(by_name[name]), name))


def _deal(given: dict[str, int], nodes: list[Candidate], need: Mapping[str, int]) -> Placement:
    places = []
    for node in nodes:
        count = given.get(node.node, 0)
        if count:
            fitting = slots(node.available, need, count)
            subtract(node.available, need, fitting)
            node.queued += count - fitting
            places.append((node.node, node.endpoint, count))
    return Placement(places)
