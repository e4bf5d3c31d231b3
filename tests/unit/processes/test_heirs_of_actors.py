"""The row by which a node starts an actor again whose nodes are gone, and what is said of it meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from meshray.gcs import tables
from meshray.gcs.requests import Answered
from meshray.gcs.tables import ActorRow
from meshray.machine import Received
from meshray.messages.gcs import Row
from meshray.messages.node import ActorSpec, KillActor
from meshray.messages.tasks import TaskEntry
from meshray.processes.detached_actors import heir_of
from meshray.processes.node_actors import NodeActors

SPEC = ActorSpec(b"x", "o", "ipc://o", "j", b"c", "C", TaskEntry(1, 0, b"", None, []), {}, {}, detached=True)


def row(state: str, *, max_restarts: int, restarts: int = 0, detached: bool = True) -> ActorRow:
    spec = msgspec.structs.replace(SPEC, max_restarts=max_restarts, detached=detached)
    return ActorRow(spec, state, 4, "node-a", "worker-1", "ipc://w", 7, restarts, home="node-b")


@pytest.mark.parametrize(("max_restarts", "restarts"), [(1, 0), (-1, 99)])
def test_the_heir_is_home_and_has_the_next_incarnation_at_the_cost_of_a_restart(max_restarts: int,
                                                                               restarts: int) -> None:
    heir = heir_of(row("alive", max_restarts=max_restarts, restarts=restarts), "node-c")
    assert (heir.state, heir.incarnation, heir.restarts) == ("restarting", 5, restarts + 1)
    assert (heir.node, heir.home, heir.worker, heir.pid) == ("node-c", "node-c", "", 0)
    assert heir.death is not None and heir.death.reason == "node node-a is gone"


def test_an_actor_that_never_lived_costs_no_restart() -> None:
    heir = heir_of(row("pending", max_restarts=0), "node-c")
    assert (heir.state, heir.incarnation, heir.restarts) == ("restarting", 5, 0)


@pytest.mark.parametrize("before", [row("alive", max_restarts=2, restarts=2), row("restarting", max_restarts=0),
                                    row("pending", max_restarts=-1, detached=False),
                                    row("alive", max_restarts=-1, detached=False)])
def test_without_restarts_or_without_its_creator_it_is_dead(before: ActorRow) -> None:
    heir = heir_of(before, "node-c")
    assert (heir.state, heir.incarnation, heir.node) == ("dead", 4, "node-a")
    assert heir.death is not None and (heir.death.worker, heir.death.pid) == ("worker-1", 7)


def test_who_kills_an_actor_between_two_homes_is_heard_when_it_has_one_again() -> None:
    """The row names a node that is gone; the kill is repeated until the row names one that can be reached."""
    rows = [row("alive", max_restarts=1), heir_of(row("alive", max_restarts=1), "node-c")]
    sent: list[tuple[str, Any]] = []

    def read(table: str, key: bytes, now_ns: int, done: Any) -> list[Any]:
        return list(done(Answered(1, [Row(key, 1, tables.encode(rows[0]))]), now_ns))

    node: Any = SimpleNamespace(node="node-d", peers={"node-c": "ipc://c"}, read=read)
    node.to_peer = lambda name, message: sent.append((name, message)) or []
    actors = NodeActors(node)
    kill = KillActor(b"x", True, "enough")
    actors.kill(Received(b"driver", kill), 0)
    due_ns = actors.deadline_ns()
    assert due_ns is not None
    rows.pop(0)
    actors.tick(due_ns)
    assert sent[-1] == ("node-c", kill) and actors.deadline_ns() is None
