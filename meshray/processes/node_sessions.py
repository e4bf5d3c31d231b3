"""The sessions of one node: workers and drivers from their registration to their end.

*Pure.* Runs in the node process.

1. A session is known by its name and its route; what it sends before it has registered is dropped.
2. Only workers that this node has started may register as such; one that does not within ``WORKER_START_TIMEOUT_NS`` is
   killed.
3. When a process ends, every part is told, then the processes that may hold something of it, in this order: leases,
   store, other sessions.
4. A driver is answered when its job's row is written, so that whoever runs its tasks finds the row.
5. An embedded cluster ends with its driver's process, also when that never registered.
6. What a session reads in place stays in place until its process has ended: a driver that has left may still read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered
from meshray.machine import Received, Send, Stop
from meshray.messages.gcs import Op
from meshray.messages.node import Death, Register, Registered, RegisterRefused, Unregistered
from meshray.processes.node_actors import cause_of
from meshray.processes.node_events import (
    DriverExited,
    KillWorker,
    WatchDriver,
    WorkerExited,
    WorkerForkFailed,
)
from meshray.sched import events as sched_events
from meshray.store.events import SessionGone
from meshray.transport.endpoints import Via
from meshray.transport.sockets import name_of

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine


class PinSlots(Protocol):
    """What the node asks of ``store.pins.PinBoard``."""

    def give_slot(self) -> int:
        """Return a slot for a new session, 0 if there is none."""
        ...

    def leave_slot(self, slot: int) -> None:
        """The session is gone, but its process may still read."""
        ...

    def clear_slot(self, slot: int) -> None:
        """The process is gone."""
        ...


class Member(msgspec.Struct):
    """A registered session."""

    name: str
    route: bytes
    kind: str
    pid: int
    endpoint: str
    job: str
    namespace: str
    label: str = ""
    leaving: str = ""
    serving: str = ""
    """The job whose output this worker writes now."""
    row: tables.JobRow | None = None
    """A driver's row in the job table."""
    pin_slot: int = 0
    """Where this process counts what it reads (``store.pins``)."""
    joining: bool = False
    """The row is not written yet, so the driver has no answer yet."""


class NodeSessions:
    """Who is registered, and which workers are about to."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self._jobs = 0
        self.members: dict[str, Member] = {}
        self._left: dict[int, list[int]] = {}
        """Pin slots of drivers that left, by the process that lives on."""
        self._starting: dict[str, int] = {}
        """Workers forked or about to be that have not registered: name -> deadline."""

    def expect(self, name: str, now_ns: int) -> None:
        """A worker of that name will be forked."""
        self._starting[name] = now_ns + config.WORKER_START_TIMEOUT_NS

    def is_expected(self, name: str) -> bool:
        """Whether a process lives here, or is about to."""
        return name in self.members or name in self._starting

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return min(self._starting.values(), default=None)

    def tick(self, now_ns: int) -> list[Any]:
        """Kill workers that take too long to register."""
        late = [name for name, deadline_ns in self._starting.items() if deadline_ns <= now_ns]
        for name in late:
            self.expect(name, now_ns)
        return [KillWorker(name) for name in late]

    def check(self) -> None:
        """Assert that nobody is both."""
        assert not self.members.keys() & self._starting.keys(), "a registered worker is not starting"

    # --- birth ---------------------------------------------------------------------------------------------------

    def register(self, event: Received, now_ns: int) -> list[Any]:
        """A process wants to be a session of this node."""
        request: Register = event.message
        member = self.members.get(request.name)
        if member is not None:
            return [] if member.joining else [self._welcome(member)]
        if request.kind == "worker" and self._starting.pop(request.name, None) is None:
            return [Send(event.route, RegisterRefused("this node has not started such a worker"))]
        slot = self._node.pins.give_slot()
        if not slot:
            return [Send(event.route, RegisterRefused(
                f"{config.PIN_SLOTS_MAX} processes use this node's object store already, as many as it can have"))]
        job = self._next_job() if request.kind == "driver" else ""
        namespace = request.namespace or f"anonymous-{job}"
        endpoint = str(Via(self._node.node, request.name)) if self._node.settings.network else request.endpoint
        member = Member(request.name, event.route, request.kind, request.pid, endpoint, job, namespace, serving=job,
                        pin_slot=slot)
        self.members[request.name] = member
        joined = self._node.schedule(sched_events.SessionJoined(
            request.name, event.route, request.kind, request.pid, endpoint, job), now_ns)
        if request.kind != "driver":
            return [self._welcome(member), *joined]
        member.row = tables.JobRow(job, request.name, namespace, request.entrypoint, node=self._node.node,
                                   pid=request.pid, python_path=request.python_path,
                                   life=self._node.settings.life)
        member.joining = True
        return [*joined, WatchDriver(request.pid), *self._write_job(
            member.row, now_ns, lambda answer, later_ns: self._job_written(member, answer, later_ns))]

    def _job_written(self, member: Member, answer: Answered, now_ns: int) -> list[Any]:
        member.joining = False
        if answer.error is not None:
            return [Send(member.route, RegisterRefused(f"its job cannot be written: {answer.error.reason}"))]
        self._node.events.note("info", "job started", f"{member.job}, pid {member.pid}: "
                               f"{member.row.entrypoint if member.row is not None else ''}", now_ns)
        return [self._welcome(member)]

    def _next_job(self) -> str:
        self._jobs += 1
        return f"{self._node.node.removeprefix('node-')}-{self._jobs}"

    def _welcome(self, member: Member) -> Send:
        node, settings = self._node, self._node.settings
        return Send(member.route, Registered(
            node.node, settings.node_name, member.job, member.namespace, settings.arena_path,
            settings.object_store_bytes, node.gcs.shards, settings.run_dir, settings.cluster, node.total,
            bool(settings.embedded_pid), node.pid, node.endpoint if settings.network else "", member.pin_slot,
            settings.locality))

    def _write_job(self, row: tables.JobRow, now_ns: int,
                   done: Callable[[Answered, int], list[Any]] | None = None) -> list[Any]:
        return self._node.write([Op(tables.JOB, row.job.encode(), tables.encode(row))], now_ns, done)

    # --- end -----------------------------------------------------------------------------------------------------

    def unregister(self, event: Received, now_ns: int) -> list[Any]:
        """A session ends of its own will."""
        name = name_of(event.route)
        member = self.members.get(name)
        if member is not None and member.kind == "driver":
            return self._node.logs.flush_for(name, now_ns, stop_cluster=event.message.stop_cluster)
        effects: list[Any] = []
        if member is not None:
            member.leaving = event.message.reason or "left"
            effects += self._node.schedule(sched_events.WorkerLeft(name, member.leaving), now_ns)
        return [*effects, Send(event.route, Unregistered())]

    def driver_left(self, name: str, now_ns: int, *, stop_cluster: bool) -> list[Any]:
        """A driver that leaves has heard all that its tasks wrote."""
        member = self.members.get(name)
        if member is None:
            return []
        effects = [*self._driver_gone(member, "finished", "finished", now_ns), Send(member.route, Unregistered())]
        return [*effects, Stop("its driver shut it down")] if stop_cluster else effects

    def worker_exited(self, event: WorkerExited, now_ns: int) -> list[Any]:
        """A worker's process is gone."""
        self._starting.pop(event.name, None)
        member = self.members.pop(event.name, None)
        if member is None:
            self._node.events.note("warning", "worker failed", death_text(event), now_ns)
            return self._node.schedule(sched_events.WorkerStartFailed(1, death_text(event)), now_ns)
        self._node.pins.clear_slot(member.pin_slot)
        death = Death(event.name, event.pid, self._node.settings.node_name, event.code, event.signal, event.stderr,
                      member.leaving)
        if not member.leaving:
            self._node.events.note("warning", "worker died", f"{cause_of(death)}, running {member.label or 'nothing'}",
                                   now_ns, source=event.name)
        effects = self._node.schedule(sched_events.WorkerDied(event.name, death), now_ns)
        return effects + self._process_gone(member, now_ns)

    def fork_failed(self, event: WorkerForkFailed, now_ns: int) -> list[Any]:
        """A worker could not be started."""
        self._starting.pop(event.name, None)
        return self._node.schedule(sched_events.WorkerStartFailed(1, event.reason), now_ns)

    def driver_exited(self, event: DriverExited, now_ns: int) -> list[Any]:
        """A driver's process is gone, without a word if it is still registered."""
        drivers = [member for member in self.members.values() if member.kind == "driver" and member.pid == event.pid]
        effects = [effect for member in drivers
                   for effect in self._driver_gone(member, "failed", "its process is gone", now_ns)]
        for slot in self._left.pop(event.pid, ()):
            self._node.pins.clear_slot(slot)
        if self._node.settings.embedded_pid == event.pid:
            effects.append(Stop("its driver is gone"))
        return effects

    def _driver_gone(self, member: Member, state: str, reason: str, now_ns: int) -> list[Any]:
        del self.members[member.name]
        self._node.pins.leave_slot(member.pin_slot)
        self._left.setdefault(member.pid, []).append(member.pin_slot)
        effects = self._node.schedule(sched_events.DriverGone(member.name), now_ns)
        effects += self._process_gone(member, now_ns)
        assert member.row is not None, "every driver has a job"
        self._node.events.note("info" if state == "finished" else "warning", f"job {state}",
                               f"{member.job}: {reason}", now_ns)
        return effects + self._write_job(msgspec.structs.replace(member.row, state=state, reason=reason), now_ns)

    def _process_gone(self, member: Member, now_ns: int) -> list[Any]:
        node = self._node
        effects = node.store.handle(SessionGone(member.name, member.route), now_ns)
        effects += node.describer.gone(member.name)
        node.actors.forget(member.route)
        return effects + node.lifetimes.process_gone(member.name, now_ns)


def death_text(event: WorkerExited) -> str:
    """Say how a worker ended that never registered."""
    how = f"signal {event.signal}" if event.signal else f"exit code {event.code}"
    return f"worker {event.name} (pid {event.pid}) ended with {how} before it was ready\n{event.stderr}".rstrip()

