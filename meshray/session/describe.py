"""A session's answer to ``status``, ``list`` and ``timeline``.

*Pure.* Runs in drivers and workers, in the leader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshray.messages.state import DescribeSession
from meshray.object_ref import STORED
from meshray.session.records import PUSHED, SchedulingClass, Task

if TYPE_CHECKING:
    from meshray.session.session import Session


def describe(session: Session, request: DescribeSession, offset_ns: int) -> bytes:
    """Return JSON: topic -> rows. ``offset_ns`` is what the wall clock is ahead of the monotonic one."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for topic in request.topics:
        match topic:
            case "tasks":
                rows[topic] = _tasks(session, request.limit)
            case "objects":
                rows[topic] = _objects(session, request.limit)
            case "timeline":
                rows[topic] = _timeline(session, request.limit, offset_ns)
    return msgspec.json.encode(rows)


def _tasks(session: Session, limit: int) -> list[dict[str, Any]]:
    rows = []
    for task in list(session.outcomes.pending.values())[:limit]:
        rows.append(_task_row(session, task))
    executor = session.executor
    if executor is not None:
        ended = list(executor.events)
        for name, _started_ns, spent_ns, _kind, task, failed in ended[max(0, len(ended) + len(rows) - limit):]:
            rows.append({"task": task.hex(), "name": name, "state": "failed" if failed else "finished",
                         "job": session.job, "worker": session.name, "node": session.node,
                         "duration_ms": round(spent_ns / 1e6, 3)})
    return rows


def _task_row(session: Session, task: Task) -> dict[str, Any]:
    klass = task.klass
    call = not isinstance(klass, SchedulingClass)
    lease = task.lease
    place = klass if call else lease
    first = task.returns if not isinstance(task.returns, list) else (task.returns[0] if task.returns else None)
    return {
        "task": first.task_id().hex() if first is not None else "",
        "name": f"{klass.name}.{task.method}" if call else klass.name,
        "state": "running" if task.state == PUSHED else "pending",
        "job": session.job, "worker": place.worker if place is not None else "",
        "node": place.node if place is not None else "", "duration_ms": None,
    }


def _objects(session: Session, limit: int) -> list[dict[str, Any]]:
    rows = []
    for identity, known in list(session.references.known.items())[:limit]:
        ref = known()
        if ref is not None and ref._owner is None and ref._state == STORED:
            location = ref._value.location
            rows.append({"object": identity.hex(), "node": location.node, "size_bytes": location.size_bytes,
                         "owner": session.name})
    return rows


def _timeline(session: Session, limit: int, offset_ns: int) -> list[dict[str, Any]]:
    executor = session.executor
    if executor is None:
        return []
    node = session.surroundings.node_name
    return [{"name": name, "cat": kind, "ph": "X", "ts": (started_ns + offset_ns) / 1e3, "dur": spent_ns / 1e3,
             "pid": node, "tid": session.name, "args": {"task": task.hex(), "failed": failed}}
            for name, started_ns, spent_ns, kind, task, failed in list(executor.events)[-limit:]]
