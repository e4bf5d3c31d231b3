"""The configuration register: compare-and-set over acceptors of which some are silent, and their exchange."""

from __future__ import annotations

import random

import pytest

from meshray.gcs import configuration, limits
from meshray.gcs.log import KeepVote, Vote
from meshray.gcs.register import Acceptor, Decided, Proposer
from meshray.machine import Send
from meshray.messages.chain import Chain, Configuration

FIRST = Configuration(1, "first", [Chain(1, [])], ("a", "b", "c"))


class Bench:
    """Acceptors with their disks; what is sent to those in ``silent`` is lost."""

    def __init__(self) -> None:
        self.acceptors = {name: Acceptor(name, Vote(votes=True)) for name in "abc"}
        self.acceptors["d"] = Acceptor("d", Vote())
        self.silent: set[str] = set()
        self.now_ns = 0

    def propose(self, proposer: Proposer, change: object) -> Decided | None:
        """Carry messages until the change is decided; None if it is not within ten ballots."""
        sends = proposer.propose(change, self.now_ns)  # type: ignore[arg-type]
        result: Decided | None = None
        for _ in range(10):
            while sends:
                send = sends.pop(0)
                name = send.to.decode()
                if name in self.silent:
                    continue
                effects = self.acceptors[name].handle(b"p", send.message)
                assert not effects or isinstance(effects[-1], Send)
                assert all(isinstance(effect, KeepVote) for effect in effects[:-1])
                for answer in effects[-1:]:
                    more, decided = proposer.handle(answer.message, self.now_ns)
                    result = decided or result
                    sends += more
            if result is not None:
                return result
            self.now_ns += limits.PROPOSE_NS
            sends = proposer.tick(self.now_ns)
        return None


def grow(author: str) -> object:
    """A change that adds one."""
    return lambda before: FIRST if before is None else Configuration(
        before.change + 1, author, before.chains, before.acceptors, before.acceptors_next)


def test_a_minority_of_acceptors_may_be_silent_and_no_more() -> None:
    bench, proposer = Bench(), Proposer("p", ("a", "b", "c"), 0)
    bench.silent = {"b"}
    assert bench.propose(proposer, grow("p/1")) == Decided(FIRST, True)
    bench.silent = {"b", "c"}
    assert bench.propose(proposer, grow("p/2")) is None


@pytest.mark.parametrize("seed", range(20))
def test_no_change_is_lost_between_proposers_that_come_and_go(seed: int) -> None:
    source, bench = random.Random(seed), Bench()
    proposers = [Proposer(f"p{index}", ("a", "b", "c"), index) for index in range(3)]
    for done in range(1, 30):
        bench.silent = {source.choice("abc")}
        index = source.randrange(3)
        if source.random() < 0.2:
            proposers[index] = Proposer(f"p{index}/{done}", ("a", "b", "c"), index)
        decided = bench.propose(proposers[index], grow(str(done)))
        assert decided is not None and decided.value is not None
        assert decided.value.change == done


def test_acceptors_are_exchanged_and_old_proposers_find_the_new_ones() -> None:
    bench, proposer, late = Bench(), Proposer("p", ("a", "b", "c"), 0), Proposer("late", ("a", "b", "c"), 1)
    bench.propose(proposer, grow("p/1"))
    bench.silent = {"c"}
    bench.propose(proposer, lambda before: configuration.exchanging(before, ("a", "b", "d"), "p/2"))
    decided = bench.propose(proposer, lambda before: configuration.exchanged(before, "p/3"))
    assert decided is not None and decided.value is not None
    assert (decided.value.acceptors, decided.value.acceptors_next) == (("a", "b", "d"), ())
    bench.silent = {"c", "b"}
    found = bench.propose(proposer, grow("p/4"))
    assert found is not None and found.value is not None and found.value.change == 4
    bench.silent = {"b"}
    found = bench.propose(late, grow("late/1"))
    assert found is not None and found.value is not None and found.value.change == 5


def test_an_acceptor_with_a_new_disk_is_silent_until_it_is_brought_in() -> None:
    bench, proposer = Bench(), Proposer("p", ("a", "b", "c"), 0)
    bench.propose(proposer, grow("p/1"))
    bench.acceptors["b"] = Acceptor("b", Vote())
    bench.silent = {"c"}
    assert bench.propose(proposer, grow("p/2")) is None
