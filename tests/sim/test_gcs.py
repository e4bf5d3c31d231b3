"""The control store under loss, delay, repetition, reordering and crashes, seed by seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gcs_checkers import Violation, exactly_once, linearizable, watched
from gcs_world import World

from meshray.config import MILLISECOND_NS, SECOND_NS
from meshray.gcs.chain import ChainMember
from meshray.gcs.log import Persist
from meshray.gcs.requests import Answered
from meshray.gcs.watches import Watches
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, PUT, PUT_IF_ABSENT, Op

HOT = [b"a", b"ab", b"b", b"c"]
COLD = [b"a%d" % i for i in range(40)]
"""Written rarely: a change that a watcher missed is not made good by the next one."""
SEEDS = range(30)


def scenario(seed: int, **world: Any) -> World:
    """Four clients write, read, count and watch for 20 s of bad weather; then 20 s of calm."""
    w = World(seed, **world)
    counted = {"done": 0}
    for index in range(4):
        name = f"client-{index}"
        w.add_client(name)
        w.watch(name, "kv", b"a", prefix=True)
        w.at(w.random.randrange(SECOND_NS), lambda name=name: _act(w, name))
        w.at(w.random.randrange(SECOND_NS), lambda name=name: _count(w, name, counted))
    for _ in range(3):
        w.at(w.random.randrange(20 * SECOND_NS), w.crash)
    w.run(20 * SECOND_NS)
    w.heal()
    w.run(20 * SECOND_NS)
    found = w.disk.get("job", b"counter")
    if (int(found[1]) if found else 0) != counted["done"]:
        raise Violation(f"counter is {found}, but {counted['done']} additions were done")
    return w


def _act(w: World, name: str) -> None:
    """A random call, then another one."""
    chance = w.random.random()
    if chance < 0.3:
        w.read(name, [("kv", key) for key in w.random.sample(HOT, 2)])
    else:
        ops = []
        for _ in range(w.random.randrange(1, 4)):
            kind = w.random.choice((PUT, PUT_IF_ABSENT, COMPARE_AND_SET, DELETE))
            value = b"" if kind == DELETE else f"{name}@{w.now_ns}".encode()
            key = w.random.choice(HOT if w.random.random() < 0.7 else COLD)
            found = w.disk.get("kv", key)
            expected = found[0] if found and kind == COMPARE_AND_SET else 0
            ops.append(Op("kv", key, value, kind, expected))
        w.write(name, ops)
    if w.loss:
        w.at(w.random.randrange(300 * MILLISECOND_NS), lambda: _act(w, name))


def _count(w: World, name: str, counted: dict[str, int]) -> None:
    """Add one to a shared counter by compare-and-set, again and again."""

    def again() -> None:
        if w.loss:
            w.at(w.random.randrange(100 * MILLISECOND_NS), lambda: _count(w, name, counted))

    def written(answer: Answered) -> None:
        assert answer.error is None
        counted["done"] += answer.results[0].ok
        again()

    def read(answer: Answered) -> None:
        row = answer.results[0]
        value = b"%d" % (int(row.value or b"0") + 1)
        w.write(name, [Op("job", b"counter", value, COMPARE_AND_SET, row.version)], written)

    w.read(name, [("job", b"counter")], read)


def check(w: World) -> None:
    exactly_once(w)
    linearizable(w)
    watched(w, "kv", b"a", prefix=True)
    assert all(call.answer is not None and call.answer.error is None for call in w.calls)


@pytest.mark.parametrize("seed", SEEDS)
def test_promises_hold_in_bad_weather(seed: int) -> None:
    w = scenario(seed)
    check(w)
    assert w.crashes >= 1
    assert len(w.calls) > 100
    assert sum(map(len, w.told.values())) > 100


def test_a_seed_is_a_schedule() -> None:
    assert scenario(3).disk.log == scenario(3).disk.log


class AnswersEarly(ChainMember):
    """Broken: answers before its turn is persisted."""

    def _append(self, entry: Any, route: bytes) -> list[Any]:
        effects = super()._append(entry, route)
        early = super()._persisted(1)
        return [effect for effect in effects if isinstance(effect, Persist)] + early

    def _persisted(self, count: int) -> list[Any]:
        return []


class DropsChanges(ChainMember):
    """Broken: thins out what watchers are told, without a gap in the numbers."""

    def _commit(self, entry: Any, route: bytes) -> list[Any]:
        kept = Watches.feed
        feed: Callable[[Any, Any], Any] = lambda watches, rows: kept(watches, rows[1:])  # noqa: E731
        try:
            Watches.feed = feed  # type: ignore[method-assign]
            return super()._commit(entry, route)
        finally:
            Watches.feed = kept  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "broken", [{"forgets_clients": True}, {"member": AnswersEarly}, {"member": DropsChanges}],
    ids=["forgets the dedup table", "answers before persist", "drops changes"],
)
def test_checkers_catch_broken_members(broken: dict[str, Any]) -> None:
    caught = 0
    for seed in SEEDS:
        try:
            check(scenario(seed, **broken))
        except Violation:
            caught += 1
    assert caught >= len(SEEDS) // 3
