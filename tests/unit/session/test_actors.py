"""The caller's side of actors, message by message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from meshray.messages.node import ActorChanged, WatchActor
from meshray.messages.tasks import CallActor, CallsRefused
from meshray.session.actors import ActorLink, Actors
from meshray.session.outcomes import Outcomes
from meshray.session.records import Task


class FakeSession:
    """Records what is sent; has no socket."""

    job = "job"
    endpoint = "ipc://caller"

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.told: list[Any] = []
        self.outcomes = Outcomes(self)  # type: ignore[arg-type]
        self.references: Any = None
        self.objects = SimpleNamespace(free_at=lambda objects, node: self.freed.append((objects, node)))
        self.freed: list[tuple[list[bytes], str]] = []

    def send(self, route: bytes, message: Any) -> bool:
        self.sent.append(message)
        return True

    def to_node(self, message: Any) -> None:
        self.told.append(message)

    def connect(self, name: str, endpoint: str) -> bytes:
        return name.encode()

    def forget_peer(self, name: str) -> None:
        self.sent.append(f"forget {name}")


def alive(incarnation: int) -> ActorChanged:
    return ActorChanged(b"actor", "alive", incarnation, f"worker-{incarnation}", "ipc://worker")


def bench(calls: int) -> tuple[FakeSession, Actors, ActorLink]:
    session = FakeSession()
    actors = Actors(session)  # type: ignore[arg-type]
    link = actors.expect(b"actor", "Actor", 0)
    for seq in range(1, calls + 1):
        task = Task(seq, link, b"p", seq, [])
        session.outcomes.pending[seq] = task
        link.queue.append(task)
    actors.changed(alive(0))
    return session, actors, link


def called(session: FakeSession) -> list[int]:
    return [call.seq for message in session.sent if isinstance(message, CallActor) for call in message.calls]


def test_refused_calls_go_to_the_next_incarnation_in_order() -> None:
    session, actors, _ = bench(6)
    assert called(session) == [1, 2, 3, 4, 5, 6]
    session.sent.clear()
    for seqs in ([3, 4], [5, 6]):
        actors.refused(CallsRefused(b"actor", 0, seqs, "ended"))
    assert session.told == [WatchActor(b"actor")] * 2
    actors.changed(alive(0))
    assert called(session) == [], "the incarnation that refused is not asked again"
    actors.changed(alive(1))
    assert called(session) == [3, 4, 5, 6]
    assert [call.order for message in session.sent if isinstance(message, CallActor)
            for call in message.calls] == [1, 2, 3, 4]


def test_calls_without_retries_fail_with_the_incarnation_that_had_them() -> None:
    session, actors, link = bench(2)
    actors.changed(ActorChanged(b"actor", "restarting", 1))
    assert not session.outcomes.pending
    assert link.state == "restarting"
    actors.changed(ActorChanged(b"actor", "alive", 0, "worker-0", "ipc://worker"))
    assert link.state == "restarting", "late news of the incarnation that died change nothing"


def test_an_actor_that_is_made_while_the_others_are_looked_at_does_no_harm() -> None:
    _, actors, link = bench(0)

    class Meddling(ActorLink):
        """Somebody makes another actor while this one is looked at."""

        @property
        def state(self) -> str:
            actors.expect(b"another", "Actor", 0)
            return "alive"

        @state.setter
        def state(self, state: str) -> None: ...

    actors.links[b"actor"] = Meddling(link.actor, link.name)
    actors.recheck(10**12)
    assert set(actors.links) == {b"actor", b"another"}
