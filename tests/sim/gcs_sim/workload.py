"""What clients do: random calls on few rows, counting by compare-and-set, watching.

*Pure.* Runs in simulation tests. Every value names its writer and number, so no value is written twice.
"""

from __future__ import annotations

from typing import Any

from meshray.config import MILLISECOND_NS
from meshray.gcs.requests import Answered
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, PUT, PUT_IF_ABSENT, Op
from tests.sim.gcs_sim.world import World

ROWS = [b"a", b"ab", b"b"]
"""Few, so that clients meet on them; the prefix ``a`` covers two."""
COUNTER = ("job", b"counter")
RARE = [b"a%d" % index for index in range(20)]
"""Written once or never: a change that a watcher missed is not made good by the next one."""


class RandomCalls:
    """A client that does ``count`` calls, one after the other."""

    def __init__(self, world: World, name: str, count: int, pause_ns: int = 30 * MILLISECOND_NS) -> None:
        self._world, self._name, self._left, self._pause_ns = world, name, count, pause_ns
        self._known: dict[bytes, int] = {}
        self._made = 0
        world.schedule.after(world.random.randrange(pause_ns), self._next)

    def _next(self) -> None:
        self._left -= 1
        if self._left < 0:
            return
        world, chance = self._world, self._world.random.random()
        if chance < 0.4:
            keys = [("kv", key) for key in world.random.sample(ROWS, 2)]
            world.read(self._name, keys, self._seen)
        else:
            ops = [self._op() for _ in range(1 if chance < 0.8 else 3)]
            world.write(self._name, ops, lambda answer: self._wrote(ops, answer))

    def _op(self) -> Op:
        source = self._world.random
        kind = source.choice((PUT, PUT, PUT_IF_ABSENT, COMPARE_AND_SET, COMPARE_AND_SET, DELETE))
        key = source.choice(ROWS if source.random() < 0.8 else RARE)
        self._made += 1
        value = b"" if kind == DELETE else b"%s.%d" % (self._name.encode(), self._made)
        expected = self._known.get(key, 0) if kind == COMPARE_AND_SET else 0
        return Op("kv", key, value, kind, expected)

    def _seen(self, answer: Answered) -> None:
        for row in answer.results:
            self._known[row.key] = row.version
        self._again()

    def _wrote(self, ops: list[Op], answer: Answered) -> None:
        for op, outcome in zip(ops, answer.results, strict=bool(answer.results)):
            self._known[op.key] = outcome.version if op.kind != DELETE else 0
        self._again()

    def _again(self) -> None:
        self._world.schedule.after(self._world.random.randrange(self._pause_ns), self._next)


class Looking:
    """A client that only reads, so that nothing keeps it from seeing what is old."""

    def __init__(self, world: World, name: str, until_ns: int) -> None:
        self._world, self._name, self._until_ns = world, name, until_ns
        self._look(None)

    def _look(self, _: Any) -> None:
        world = self._world
        if world.now_ns < self._until_ns:
            keys = [("kv", world.random.choice(ROWS)), COUNTER]
            delay_ns = world.random.randrange(60 * MILLISECOND_NS)
            world.schedule.after(delay_ns, world.read, self._name, keys, self._look)


class Counting:
    """A client that adds one to a row that others count on too, ``count`` times, by compare-and-set."""

    def __init__(self, world: World, name: str, count: int) -> None:
        self._world, self._name, self._left = world, name, count
        self._attempts = 0
        self.done = self.perhaps = 0
        """Additions that were done for certain, and those whose end is not known."""
        world.schedule.after(world.random.randrange(20 * MILLISECOND_NS), self._read, None)

    def _read(self, _: Any) -> None:
        if self._left:
            self._world.read(self._name, [COUNTER], self._add)

    def _add(self, answer: Answered) -> None:
        if answer.error is not None:
            self._read(None)
            return
        row = answer.results[0]
        self._attempts += 1
        value = b"%d %s.%d" % (counted(row.value) + 1, self._name.encode(), self._attempts)
        self._world.write(self._name, [Op(*COUNTER, value, COMPARE_AND_SET, row.version)], self._added)

    def _added(self, answer: Answered) -> None:
        if answer.error is not None:
            self.perhaps += 1
        elif answer.results[0].ok:
            self.done += 1
            self._left -= 1
        self._world.schedule.after(self._world.random.randrange(10 * MILLISECOND_NS), self._read, None)


def counted(value: bytes | None) -> int:
    """Return what a counter's row says."""
    return int(value.split()[0]) if value else 0
