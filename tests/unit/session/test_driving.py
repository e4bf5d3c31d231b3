"""Leaders and followers: real threads that meet at events; no thread sleeps for a time."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshray.session import driving
from meshray.session.driving import Driving

PATIENCE_S = 10.0
"""How long a test waits for what must happen at once, before it fails."""


class Network:
    """A turn that waits for ``wake_fd`` or for what a test lets happen."""

    def __init__(self) -> None:
        self.driving = Driving(self.step, self.hand_out)
        self.happens: deque[Callable[[], object]] = deque()
        self.leaders: list[int] = []
        self.led = threading.Condition()
        self.handed_out = 0
        self.sleeping = threading.Event()
        """Set when a leader is about to sleep."""

    def step(self, timeout_ms: int) -> None:
        with self.led:
            self.leaders.append(threading.get_ident())
            self.led.notify_all()
        if timeout_ms and not self.happens:
            self.sleeping.set()
            assert select.select([self.driving.wake_fd], [], [], PATIENCE_S)[0], "nobody woke the leader"
        self.driving.drain_wakes()
        self.sleeping.clear()
        while self.happens:
            self.happens.popleft()()

    def hand_out(self) -> None:
        self.handed_out += 1

    def bring(self, event: Callable[[], object]) -> None:
        """Let something arrive at a sleeping leader."""
        self.happens.append(event)
        os.eventfd_write(self.driving.wake_fd, 1)
        self.driving._woken = True


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setattr(driving, "_FOLLOWER_RECHECK_S", 2 * PATIENCE_S)  # followers are woken, they do not look
    network = Network()
    yield network
    network.driving.stop()
    network.driving.close()


class Waiter(threading.Thread):
    """A thread that waits until its flag is set; ``result`` is what ``until`` returned."""

    def __init__(self, driving: Driving) -> None:
        super().__init__(daemon=True)
        self.driving = driving
        self.flag = False
        self.looked = threading.Event()
        self.result: Any = None
        self.start()

    def done(self) -> bool:
        self.looked.set()
        return self.flag

    def run(self) -> None:
        self.result = self.driving.until(self.done)

    def finish(self) -> Any:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the waiter was not woken"
        return self.result


def following(network: Network) -> Waiter:
    """Return a waiter that follows another one."""
    follower = Waiter(network.driving)
    while not network.driving._followers:
        assert follower.looked.wait(PATIENCE_S)
    return follower


def test_who_waits_leads_and_returns_when_its_condition_holds(network: Network) -> None:
    seen: list[int] = []
    network.happens.append(lambda: seen.append(1))
    assert network.driving.until(lambda: bool(seen))
    assert network.leaders == [threading.get_ident()]
    assert not network.driving.lock.locked()


def test_a_condition_that_holds_costs_no_turn(network: Network) -> None:
    assert network.driving.until(lambda: True)
    assert network.leaders == []


def test_a_deadline_that_has_passed_costs_no_turn(network: Network) -> None:
    assert not network.driving.until(lambda: False, deadline_ns=0)
    assert network.leaders == []


def test_a_leader_wakes_a_follower_whose_condition_came_true(network: Network) -> None:
    leader = Waiter(network.driving)
    assert network.sleeping.wait(PATIENCE_S)
    follower = following(network)
    network.bring(lambda: setattr(follower, "flag", True))
    assert follower.finish()
    assert leader.is_alive()
    assert set(network.leaders) == {leader.ident}, "the follower never touched the socket"
    network.bring(lambda: setattr(leader, "flag", True))
    assert leader.finish()


def test_a_leader_that_leaves_hands_over_to_a_follower(network: Network) -> None:
    leader = Waiter(network.driving)
    assert network.sleeping.wait(PATIENCE_S)
    follower = following(network)
    network.bring(lambda: setattr(leader, "flag", True))
    assert leader.finish()
    assert network.sleeping.wait(PATIENCE_S)
    network.bring(lambda: setattr(follower, "flag", True))
    assert follower.finish()
    assert follower.ident in network.leaders


def test_two_threads_are_never_in_a_turn_at_once(network: Network) -> None:
    inside: list[int] = []

    def enter() -> None:
        inside.append(1)
        assert len(inside) == 1
        assert not network.driving.try_step(), "somebody leads"
        inside.pop()

    leader = Waiter(network.driving)
    assert network.sleeping.wait(PATIENCE_S)
    network.bring(enter)
    network.bring(lambda: setattr(leader, "flag", True))
    assert leader.finish()


def test_wake_makes_a_sleeping_leader_look_at_its_queues(network: Network) -> None:
    leader = Waiter(network.driving)
    assert network.sleeping.wait(PATIENCE_S)
    network.happens.append(lambda: setattr(leader, "flag", True))
    network.driving.wake()
    assert leader.finish()


def test_many_wake_ups_are_written_once_and_forgotten_by_the_turn(network: Network) -> None:
    network.driving._polling = True
    for _ in range(3):
        network.driving.wake()
    assert os.eventfd_read(network.driving.wake_fd) == 1
    os.eventfd_write(network.driving.wake_fd, 1)
    network.driving.drain_wakes()
    assert not select.select([network.driving.wake_fd], [], [], 0)[0]
    network.driving.wake()
    assert select.select([network.driving.wake_fd], [], [], 0)[0], "after the turn a wake-up is written again"


def test_rouse_makes_somebody_lead_only_if_nobody_does(network: Network) -> None:
    nudged: list[int] = []
    network.driving.nudge = lambda: nudged.append(1)
    network.driving.rouse()
    assert nudged == [1]
    leader = Waiter(network.driving)
    assert network.sleeping.wait(PATIENCE_S)
    network.happens.append(lambda: setattr(leader, "flag", True))
    network.driving.rouse()
    assert leader.finish()
    assert nudged == [1]


def test_the_background_thread_leads_when_nobody_else_does_and_gives_way(network: Network) -> None:
    network.driving.start()
    assert network.sleeping.wait(PATIENCE_S)
    background = network.leaders[0]
    assert background != threading.get_ident()
    seen: list[int] = []
    network.bring(lambda: seen.append(1))
    waiter = Waiter(network.driving)
    with network.led:
        assert network.led.wait_for(lambda: waiter.ident in network.leaders, PATIENCE_S), "the thread gave no way"
    assert seen == [1]
    network.bring(lambda: setattr(waiter, "flag", True))
    assert waiter.finish()


def test_sending_is_half_a_turn(network: Network) -> None:
    network.driving.try_hand_out()
    assert (network.handed_out, network.leaders) == (1, [])
    assert not network.driving.lock.locked()


def test_ctrl_c_in_a_turn_is_raised_after_it(network: Network) -> None:
    order: list[str] = []

    def turn() -> None:
        assert network.driving.note_interrupt(), "this thread is in a turn"
        order.append("the turn went on")

    network.happens.append(turn)
    with pytest.raises(KeyboardInterrupt):
        network.driving.until(lambda: False)
    assert order == ["the turn went on"]
    assert not network.driving.lock.locked()
    assert not network.driving.interrupted
    assert not network.driving.note_interrupt(), "outside a turn Ctrl-C is Python's"


def test_ctrl_c_in_a_single_turn_is_raised_after_it(network: Network) -> None:
    network.happens.append(network.driving.note_interrupt)
    with pytest.raises(KeyboardInterrupt):
        network.driving.try_step()
    assert not network.driving.lock.locked()


def test_ctrl_c_is_not_lost_when_another_thread_is_in_a_turn(network: Network) -> None:
    leader = Waiter(network.driving)
    assert network.sleeping.wait(PATIENCE_S)
    assert not network.driving.note_interrupt()
    network.bring(lambda: setattr(leader, "flag", True))
    assert leader.finish()


def test_stopping_ends_a_wait(network: Network) -> None:
    leader = Waiter(network.driving)
    assert network.sleeping.wait(PATIENCE_S)
    network.driving.stop()
    assert leader.finish() is False
