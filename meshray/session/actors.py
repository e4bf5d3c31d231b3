"""Actors as their callers see them.

*Pure* but for the sends of its session. Runs in drivers and workers; only the leader enters, except ``enqueue``.

1. Calls of one caller reach the actor in the order in which they were made: one connection, dense order numbers.
2. A call that was sent and not answered when the actor died is sent again only if ``max_task_retries`` allows it; calls
   not yet sent wait for the next incarnation.
3. An actor ends when the last handle is gone; calls made before that are still run.

States of a link::

    pending --ActorChanged alive--> alive --restarting--> restarting --alive--> alive
    any --dead--> dead: queued and later calls fail with the cause
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from meshray import config, failures
from meshray.messages.node import ActorChanged, ActorSpec, CreateActor, Death, KillActor, WatchActor
from meshray.messages.tasks import CallActor, CallEntry, CallsRefused, CancelTask, EndActor, TasksFinished
from meshray.object_ref import ObjectRef
from meshray.session.records import CANCELLED, PUSHED, QUEUED, Task

if TYPE_CHECKING:
    from meshray.session.session import Session

_RECHECK_NS = config.SECOND_NS


class ActorLink(msgspec.Struct, eq=False):
    """One actor and the calls that this session has made on it."""

    actor: bytes
    name: str
    state: str = "pending"
    incarnation: int = -1
    worker: str = ""
    route: bytes = b""
    node: str = ""
    queue: deque[Task] = msgspec.field(default_factory=deque)
    outstanding: dict[int, Task] = {}
    order: int = 0
    error: bytes = b""
    max_task_retries: int = 0
    calls_max: int = -1
    """``max_pending_calls``; without limit if not positive."""
    ending: bool = False
    creation: Task | None = None
    """The creation task: pins the constructor's arguments while the actor may be restarted."""
    checked_ns: int = 0
    retry_exceptions: object = False


class Actors:
    """All actors that one session has handles of."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.links: dict[bytes, ActorLink] = {}
        self._by_worker: dict[str, ActorLink] = {}
        self.fresh: deque[ActorLink] = deque()
        self.ended: deque[bytes] = deque()
        """Actors whose last handle died (appended by ``ActorGuard.__del__``)."""

    def link(self, actor: bytes, name: str, max_task_retries: int = 0) -> ActorLink:
        """Return the link to an actor, watching it from now on. Any thread."""
        link = self.links.get(actor)
        if link is None:
            link = self.links.setdefault(actor, ActorLink(actor, name, max_task_retries=max_task_retries,
                                                          outstanding={}))
            self._session.call(lambda: self._session.to_node(WatchActor(actor)))
        return link

    def create(self, spec: ActorSpec, task: Task) -> None:
        """Ask for a new actor; ``task`` is its creation, whose arguments have values. (leader)"""
        link = self.links[spec.actor]
        link.creation = task
        self._session.to_node(CreateActor(spec))

    def expect(self, actor: bytes, name: str, max_task_retries: int) -> ActorLink:
        """Return the link of an actor that this session is about to create. Any thread."""
        return self.links.setdefault(actor, ActorLink(actor, name, max_task_retries=max_task_retries, outstanding={}))

    # --- calls ---------------------------------------------------------------------------------------------------

    def enqueue(self, link: ActorLink, task: Task) -> None:
        """Take a call whose arguments have values. Any thread."""
        session = self._session
        session.outcomes.pending[task.seq] = task
        link.queue.append(task)
        waiting = len(link.queue)
        if not link.outstanding or waiting % config.BATCH_TASKS_MAX == 0 or link.state == "dead":
            self.fresh.append(link)
            session.driving.try_hand_out()
        elif waiting == 1:
            self.fresh.append(link)

    def hand_out(self) -> None:
        """Send what is queued, end what nobody refers to. (leader)"""
        while self.fresh:
            self.pump(self.fresh.popleft())
        while self.ended:
            link = self.links.get(self.ended.popleft())
            if link is not None and not link.ending:
                link.ending = True
                self._end(link)

    def pump(self, link: ActorLink) -> None:
        """Send the queued calls of a living actor, fail those of a dead one."""
        if link.state == "dead":
            while link.queue:
                self._fail(link.queue.popleft(), link.error)
            return
        if link.state != "alive":
            return
        while link.queue:
            batch: list[Task] = []
            while link.queue and len(batch) < config.BATCH_TASKS_MAX:
                task = link.queue[0]
                if task.waits_for:
                    break
                if task.state != QUEUED:
                    link.queue.popleft()
                    continue
                if batch and batch[0].prefix != task.prefix:
                    break
                batch.append(link.queue.popleft())
            if not batch:
                break
            self._send(link, batch)
        if link.ending and not link.queue:
            self._session.send(link.route, EndActor(link.actor, link.incarnation, "all handles are gone"))

    def _send(self, link: ActorLink, batch: list[Task]) -> None:
        entries = []
        references = self._session.references
        for task in batch:
            task.state = PUSHED
            link.order += 1
            link.outstanding[task.seq] = task
            if task.slots or task.refs or task.blob:
                entry = references.entry_of(task, link.node)
                entries.append(CallEntry(task.seq, task.index, link.order, task.method, task.args, entry.arguments,
                                         task.refs, task.num_returns, entry.args_location, task.group,
                                         task.retry_exceptions))
            else:
                entries.append(CallEntry(task.seq, task.index, link.order, task.method, task.args, None, None,
                                         task.num_returns, None, task.group, task.retry_exceptions))
        self._session.send(link.route, CallActor(link.actor, link.incarnation, batch[0].prefix, entries,
                                                 self._session.job, self._session.endpoint))

    def answered(self, worker: str, message: TasksFinished) -> None:
        """Calls came back. (leader)"""
        link = self._by_worker.get(worker)
        if link is not None:
            for result in message.results:
                link.outstanding.pop(result.seq, None)
            if link.queue:
                self.pump(link)

    def resend(self, task: Task) -> None:
        """Run a call again whose exception the user wants retried. (leader)"""
        task.state = QUEUED
        task.klass.queue.append(task)
        self.fresh.append(task.klass)

    def refused(self, message: CallsRefused) -> None:
        """The actor did not run these: it is ending, or was reborn. They go back to the queue, in order. (leader)"""
        link = self.links.get(message.actor)
        if link is None:
            return
        back = [task for seq in message.seqs if (task := link.outstanding.pop(seq, None)) is not None]
        for task in back:
            task.state = QUEUED
        # Refusals come in several messages. Other threads append to the queue meanwhile, so it stays the same object.
        while back and link.queue and link.queue[0].seq < message.seqs[-1]:
            back.append(link.queue.popleft())
        back.sort(key=lambda task: task.seq)
        link.queue.extendleft(reversed(back))
        if link.state == "alive" and message.incarnation == link.incarnation:
            link.state = "restarting"
        self._session.to_node(WatchActor(link.actor))

    def cancel(self, task: Task) -> None:
        """Ask the actor to drop or cancel a call. (leader)"""
        link: ActorLink = task.klass
        if link.route:
            self._session.send(link.route, CancelTask(task.seq))

    # --- changes -------------------------------------------------------------------------------------------------

    def changed(self, message: ActorChanged) -> None:
        """The actor's node reports its state. (leader)"""
        link = self.links.get(message.actor)
        if link is None or link.state == "dead" or message.incarnation < link.incarnation:
            return
        link.node = message.node or link.node
        if message.state == "alive" and (message.incarnation > link.incarnation or link.state != "restarting"):
            if message.incarnation > link.incarnation:
                self._leave_worker(link, None)
                link.incarnation = message.incarnation
                link.order = 0
                link.worker = message.worker
                link.route = self._session.connect(message.worker, message.endpoint)
                self._by_worker[message.worker] = link
            link.state = "alive"
            self.pump(link)
        elif message.state == "restarting":
            link.state = "restarting"
            self._leave_worker(link, message.death)
        elif message.state == "dead":
            self._die(link, message)

    def _leave_worker(self, link: ActorLink, death: Death | None) -> None:
        if link.worker:
            self._by_worker.pop(link.worker, None)
            self._session.forget_peer(link.worker)
            link.worker, link.route = "", b""
        lost = list(link.outstanding.values())
        link.outstanding.clear()
        kept = []
        for task in lost:
            self._session.outcomes.lost_at(task, link.node)
            if task.state == CANCELLED or task.retries_left == 0:
                self._fail(task, failures.encode_death("actor_unavailable", f"{link.name}.{task.method}",
                                                       death, task.attempt))
            else:
                task.retries_left -= 1 if task.retries_left > 0 else 0
                task.attempt += 1
                task.state = QUEUED
                kept.append(task)
        link.queue.extendleft(reversed(kept))

    def _die(self, link: ActorLink, message: ActorChanged) -> None:
        link.state = "dead"
        link.creation = None
        link.error = (failures.encode_constructor(message.error, link.name) if message.error is not None
                      else failures.encode_death("actor_died", link.name, message.death, 0))
        if link.worker:
            self._by_worker.pop(link.worker, None)
            self._session.forget_peer(link.worker)
            link.worker, link.route = "", b""
        for task in list(link.outstanding.values()):
            self._session.outcomes.lost_at(task, link.node)
            self._fail(task, link.error)
        link.outstanding.clear()
        self.pump(link)

    def _fail(self, task: Task, error: bytes) -> None:
        if self._session.outcomes.pending.pop(task.seq, None) is not None:
            self._session.outcomes.fail(task, error)

    def _end(self, link: ActorLink) -> None:
        if link.state == "alive":
            self.pump(link)
        elif link.state in ("pending", "restarting") and not link.queue:
            self._session.to_node(KillActor(link.actor, True, "all handles are gone"))

    def kill(self, actor: bytes, *, no_restart: bool) -> None:
        """End an actor's process now; calls made from here on are not run by it. (leader)"""
        link = self.links.get(actor)
        if link is not None and link.state == "alive":
            link.state = "restarting"
        self._session.to_node(KillActor(actor, no_restart))

    def recheck(self, now_ns: int) -> None:
        """Re-read the state of actors that calls wait for: no push is relied on alone. (leader)"""
        for link in list(self.links.values()):  # at one stroke: a thread may make an actor meanwhile
            if link.state in ("pending", "restarting") and now_ns - link.checked_ns > _RECHECK_NS:
                link.checked_ns = now_ns
                if link.queue:
                    self._session.to_node(WatchActor(link.actor))


class ActorGuard:
    """Hangs on the reference that all handles of an actor share, at the owner: its death ends the actor."""

    __slots__ = ("actor", "ended")

    def __init__(self, actor: bytes, ended: deque[bytes]) -> None:
        self.actor = actor
        self.ended = ended

    def __del__(self) -> None:
        self.ended.append(self.actor)


def guard(ref: ObjectRef, actor: bytes, actors: Actors) -> None:
    """Let the life of ``ref`` be the actor's."""
    ref._task = ActorGuard(actor, actors.ended)
