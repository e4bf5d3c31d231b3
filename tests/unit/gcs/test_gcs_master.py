"""Masters, message by message."""

from __future__ import annotations

from typing import Any

import msgspec

from meshray.gcs import limits
from meshray.gcs.log import KeepVote, Vote
from meshray.gcs.master import Master
from meshray.gcs.register import Acceptor
from meshray.machine import Received, Send, Tick
from meshray.messages.chain import (
    Accept,
    AskRegister,
    Chain,
    Configure,
    Place,
    Prepare,
    RegisterKnown,
    ServerAlive,
    ServerDied,
    Wedge,
    Wedged,
)
from meshray.messages.node import Shard

NAMES = ("a", "b", "c")
A, B, C = PLACES = [Place(name, f"ipc://{name}", f"{number}-{number}-x") for number, name in enumerate(NAMES, 1)]


class Bench:
    """Masters and their register. ``sent`` is what a master has sent to servers, beside votes."""

    def __init__(self, masters: str) -> None:
        self.now_ns = 0
        self.masters = {name: self.master(name) for name in masters}
        self.acceptors = {name: Acceptor(name, Vote(votes=True)) for name in NAMES}
        self.sent: list[tuple[str, Any]] = []
        for place in PLACES:
            self.says(place, "idle", Chain(0, []))
        self.now_ns = limits.STAGGER_NS
        self.says(A, "idle", Chain(0, []))
        self.sent.clear()

    def master(self, name: str) -> Master:
        shards = [Shard(1, [(place.name, place.endpoint) for place in PLACES])]
        return Master(name, "9-x", shards=shards, acceptors=NAMES, replicas=3, rank=0, now_ns=self.now_ns)

    def says(self, place: Place, role: str, chain: Chain, to: str = "", joiner: str = "") -> None:
        alive = ServerAlive(0, place.name, place.endpoint, place.life, role, chain.epoch, 0, joiner=joiner,
                            chain=chain if chain.places else None)
        for master in to or self.masters:
            self.hear(master, place.name.encode(), alive)

    def hear(self, master: str, route: bytes, message: Any) -> None:
        self.act(master, self.masters[master].handle(Received(route, message), self.now_ns))

    def tick(self, master: str) -> None:
        self.act(master, self.masters[master].handle(Tick(), self.now_ns))

    def act(self, master: str, effects: list[Any]) -> None:
        for effect in effects:
            assert isinstance(effect, Send)
            if isinstance(effect.message, Prepare | Accept):
                acceptor = self.acceptors.get(effect.to.decode())
                for answer in acceptor.handle(master.encode(), effect.message) if acceptor is not None else ():
                    if not isinstance(answer, KeepVote):
                        self.hear(master, effect.to, answer.message)
            else:
                self.sent.append((effect.to.decode(), effect.message))

    def take(self, kind: type) -> list[Any]:
        found = [message for _, message in self.sent if isinstance(message, kind)]
        self.sent.clear()
        return found


def test_a_plan_is_void_once_another_master_has_changed_the_chain() -> None:
    bench = Bench("mn")
    bench.hear("m", b"node", ServerDied("c", 3))
    shorter = bench.take(Configure)[-1].chain
    joining = Place("c", "ipc://c", "4-4-x")
    assert shorter == Chain(2, [A, B])
    for place in (A, B):
        bench.says(place, "member", shorter)
    bench.says(joining, "whole", shorter)
    bench.take(Configure)
    bench.says(B, "member", shorter, joiner=joining.life)
    assert bench.take(Wedge) == [Wedge(2)] * 4
    bench.hear("n", b"b", Wedged("b", B.life, 2, 0, 0, joining.life))
    longer = bench.take(Configure)[-1].chain
    assert longer == Chain(3, [A, B, joining])
    bench.says(A, "member", longer, to="m")
    bench.hear("m", b"node", ServerDied("c", 4))
    assert bench.take(Configure)[-1].chain == Chain(4, [A, B])


def test_a_server_is_asked_to_join_in_this_life() -> None:
    bench = Bench("m")
    bench.hear("m", b"node", ServerDied("c", 3))
    shorter = bench.take(Configure)[-1].chain
    bench.says(B, "member", shorter)
    bench.says(Place("c", "ipc://c", "4-4-x"), "idle", Chain(0, []))
    assert bench.take(Configure) == [Configure(shorter, True, "4-4-x")]


def test_a_master_wakes_when_a_server_becomes_suspect() -> None:
    bench = Bench("m")
    master = bench.masters["m"]
    assert master.configuration is not None
    chain = master.configuration.chains[0]
    for place in (A, B):
        bench.says(place, "member", chain)
    while not (wedges := bench.take(Wedge)):
        bench.now_ns = master.deadline_ns()
        for place in (A, B):
            bench.says(place, "member", chain)
        bench.tick("m")
    assert wedges == [Wedge(1)] * 3
    assert bench.now_ns == limits.SUSPECT_NS + 1


def test_a_chain_is_not_left_to_members_that_were_never_heard() -> None:
    bench = Bench("m")
    bench.masters["n"] = bench.master("n")
    returned = [Place("a", "ipc://a", "11-11-x"), Place("b", "ipc://b", "12-12-x")]
    begun_ns = bench.now_ns
    while not (chains := [message.chain for message in bench.take(Configure) if message.chain.epoch > 1]):
        for place in returned:
            bench.says(place, "idle", Chain(0, []), to="n")
        bench.tick("n")
        bench.now_ns += limits.HEARTBEAT_NS
    assert chains[0] == Chain(2, returned[:1])
    assert bench.now_ns - begun_ns > limits.SUSPECT_NS + limits.RESTART_PATIENCE_NS


def test_a_master_whose_acceptors_are_gone_asks_servers_for_those_that_are_there() -> None:
    bench = Bench("m")
    value = bench.acceptors["a"].vote.value
    assert value is not None
    later = msgspec.structs.replace(value, change=value.change + 6, acceptors=("d", "e", "f"))
    bench.acceptors = {name: Acceptor(name, Vote((1, "x"), (1, "x"), later, True)) for name in "def"}
    late = bench.masters["n"] = bench.master("n")
    bench.tick("n")
    assert late.configuration is None and late.deadline_ns() > bench.now_ns
    bench.says(A, "member", value.chains[0], to="n")
    assert not bench.take(AskRegister), "they may just be slow"
    bench.now_ns += limits.SUSPECT_NS + 1
    bench.says(A, "member", value.chains[0], to="n")
    assert bench.take(AskRegister) == [AskRegister()]
    bench.hear("n", b"a", RegisterKnown(later.change, later.acceptors))
    bench.tick("n")
    assert late.configuration == later


def test_any_master_exchanges_a_lost_acceptor_after_a_while() -> None:
    bench = Bench("m")
    master = bench.masters["m"]
    master._rank = 1
    spare = Place("d", "ipc://d", "4-4-x")
    bench.acceptors["d"] = Acceptor("d", Vote())
    begun_ns = bench.now_ns
    while master.configuration is not None and "d" not in master.configuration.acceptors:
        bench.now_ns += limits.HEARTBEAT_NS
        assert bench.now_ns - begun_ns < 4 * limits.ACCEPTOR_SILENT_NS
        chain = master.configuration.chains[0]
        for place in (A, B, spare):
            bench.says(place, "member" if place in chain.places else "idle", chain)
        bench.tick("m")
    assert bench.now_ns - begun_ns > 2 * limits.ACCEPTOR_SILENT_NS, "the first master goes first"
    assert master.configuration is not None and set(master.configuration.acceptors) == {"a", "b", "d"}
