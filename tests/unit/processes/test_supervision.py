"""When services start again, and when their node gives up."""

from __future__ import annotations

from meshray import config
from meshray.machine import Stop
from meshray.processes.node_events import ServiceExited, StartService
from meshray.processes.supervision import (
    PAUSE_MAX_NS,
    PAUSE_NS,
    RESTART_WINDOW_NS,
    RESTARTS_MAX,
    SOUND_NS,
    Supervisor,
)


def ended(name="shard-0-0"):
    return ServiceExited(name, "pid 7 was ended by SIGKILL")


def test_the_first_end_is_mended_at_once():
    supervisor = Supervisor()
    assert supervisor.exited(ended(), 5) == [StartService("shard-0-0")]
    assert supervisor.deadline_ns() is None


def test_pauses_double_for_each_service_of_its_own():
    supervisor = Supervisor()
    supervisor.exited(ended(), 0)
    for end, pause_ns in enumerate((PAUSE_NS, 2 * PAUSE_NS, 4 * PAUSE_NS)):
        now_ns = (end + 1) * config.SECOND_NS
        assert supervisor.exited(ended(), now_ns) == []
        assert supervisor.deadline_ns() == now_ns + pause_ns
        assert supervisor.tick(now_ns + pause_ns - 1) == []
        assert supervisor.tick(now_ns + pause_ns) == [StartService("shard-0-0")]
    assert supervisor.exited(ended("zygote"), 5 * config.SECOND_NS) == [StartService("zygote")]


def test_too_many_ends_stop_the_node_and_name_the_last():
    supervisor = Supervisor()
    for end in range(RESTARTS_MAX):
        assert not any(type(effect) is Stop for effect in supervisor.exited(ended(), end * config.SECOND_NS))
    [stop] = supervisor.exited(ended("zygote"), RESTARTS_MAX * config.SECOND_NS)
    assert isinstance(stop, Stop)
    assert stop.reason == "6 services ended within 60 s, zygote the last: pid 7 was ended by SIGKILL"


def test_what_has_replicas_never_ends_its_node():
    supervisor = Supervisor(["scheduler-0"])
    for end in range(1, 10 * RESTARTS_MAX):
        effects = supervisor.exited(ended("scheduler-0"), end * config.SECOND_NS)
        assert not any(type(effect) is Stop for effect in effects)
        assert supervisor.tick(end * config.SECOND_NS + PAUSE_MAX_NS) or effects == [StartService("scheduler-0")]
    for end in range(RESTARTS_MAX):
        assert not any(type(effect) is Stop for effect in supervisor.exited(ended(), 50 * config.SECOND_NS + end))
    [stop] = supervisor.exited(ended(), 51 * config.SECOND_NS)
    assert isinstance(stop, Stop)
    assert stop.reason.startswith("6 services ended"), "those that do not count are not counted"


def test_ends_are_forgotten_after_the_window():
    supervisor = Supervisor()
    for end in range(3 * RESTARTS_MAX):
        now_ns = end * (RESTART_WINDOW_NS + 1)
        assert supervisor.exited(ended(), now_ns) == [StartService("shard-0-0")]


def test_what_has_replicas_starts_again_for_ever_and_never_at_once():
    supervisor = Supervisor(lasting=["shard-0-0"])
    pauses_ns = []
    for end in range(2 * RESTARTS_MAX):
        now_ns = end * config.SECOND_NS
        assert supervisor.exited(ended(), now_ns) == []
        due_ns = supervisor.deadline_ns()
        assert supervisor.tick(due_ns) == [StartService("shard-0-0")]
        pauses_ns.append(due_ns - now_ns)
    assert pauses_ns[:4] == [PAUSE_NS, 2 * PAUSE_NS, 4 * PAUSE_NS, 8 * PAUSE_NS]
    assert max(pauses_ns) == PAUSE_MAX_NS


def test_pauses_grow_only_for_what_ends_soon_after_its_start():
    supervisor = Supervisor(lasting=["shard-0-0"])
    lives_ns = [SOUND_NS, SOUND_NS, SOUND_NS - 1, 0, SOUND_NS, 0]
    now_ns, pauses_ns = SOUND_NS, []
    for life_ns in lives_ns:
        supervisor.exited(ended(), now_ns)
        due_ns = supervisor.deadline_ns()
        pauses_ns.append(due_ns - now_ns)
        supervisor.tick(due_ns)
        now_ns = due_ns + life_ns
    assert pauses_ns == [PAUSE_NS, PAUSE_NS, PAUSE_NS, 2 * PAUSE_NS, 4 * PAUSE_NS, PAUSE_NS]
