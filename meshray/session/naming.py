"""Names of actors, in the name table.

*Pure* but for the control store requests of its session. Runs in drivers and workers.

1. A name is claimed by a conditional write, so two claims can never both succeed.
2. The claim of a dead actor counts for nothing: it is replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshray import errors
from meshray.gcs import tables
from meshray.messages.gcs import COMPARE_AND_SET, PUT_IF_ABSENT, Op
from meshray.messages.node import ActorSpec

if TYPE_CHECKING:
    from meshray.gcs.requests import Answered
    from meshray.session.session import Session


def namespace_of(session: Session) -> str:
    """Return the namespace of the job that the calling code works for; a worker reads it from the job's row."""
    if not session.namespace:
        job = session.context().job.encode()
        rows: list[bytes | None] = []

        def known() -> bool:
            answer = session.tables.ask(lambda done: session.tables.read(tables.JOB, job, done))
            rows[:] = [None if answer.error is not None else answer.results[0].value]
            return rows[0] is not None

        session.patiently(known, f"job {job.decode()} to appear in the job table")
        if rows[0] is None:
            raise errors.MeshraySystemError(f"job {job.decode()!r} has no row, so its namespace is not known")
        session.namespace = tables.decode(rows[0], tables.JobRow).namespace
    return session.namespace


def claim_name(session: Session, namespace: str, name: str, actor: bytes) -> bool:
    """Claim ``name`` for ``actor``; return False if a living actor has it."""
    key = tables.name_key(namespace, name)
    answer = _write(session, Op(tables.NAME, key, actor, PUT_IF_ABSENT))
    while not (outcome := answer.results[0]).ok:
        if outcome.value is not None and _lives(session, outcome.value):
            return False
        answer = _write(session, Op(tables.NAME, key, actor, COMPARE_AND_SET, outcome.version))
    return True


def _write(session: Session, op: Op) -> Answered:
    answer = session.tables.ask(lambda done: session.tables.write([op], done))
    if answer.error is not None:
        raise errors.MeshraySystemError(f"the control store could not write: {answer.error.reason}")
    return answer


def _lives(session: Session, actor: bytes) -> bool:
    row = read_actor(session, actor)
    return row is None or row.state != "dead"


def read_actor(session: Session, actor: bytes) -> tables.ActorRow | None:
    """Return the row of an actor, or None if it has none (yet)."""
    answer = session.tables.ask(lambda done: session.tables.read(tables.ACTOR, actor, done))
    if answer.error is not None:
        raise errors.MeshraySystemError(f"the control store could not be read: {answer.error.reason}")
    value = answer.results[0].value
    return None if value is None else tables.decode(value, tables.ActorRow)


def find_actor(session: Session, namespace: str, name: str) -> ActorSpec:
    """Return how the living actor with that name was made. Raise ValueError if there is none."""
    key = tables.name_key(namespace, name)
    answer = session.tables.ask(lambda done: session.tables.read(tables.NAME, key, done))
    actor = None if answer.error is not None else answer.results[0].value
    if actor is not None:
        rows: list[tables.ActorRow | None] = []

        def known() -> bool:
            rows[:] = [read_actor(session, actor)]
            return rows[0] is not None

        session.patiently(known, f"actor {name!r} to appear in the actor table")
        row = rows[0]
        if row is not None and row.state != "dead":
            return row.spec
    raise ValueError(f"there is no living actor named {name!r} in namespace {namespace!r}: "
                     "check the name and the namespace (get_actor(name, namespace=...))")


def list_names(session: Session, namespace: str | None) -> list[tuple[str, str]]:
    """Return (namespace, name) of all named actors, of one namespace or of all."""
    prefix = b"" if namespace is None else tables.name_key(namespace, "")
    answer = session.tables.ask(lambda done: session.tables.scan(tables.NAME, prefix, done))
    names = []
    for row in answer.results:
        if row.value is not None and _lives(session, row.value):
            names.append(tables.split_name_key(row.key))
    return names
