"""Tasks out: queues per scheduling class, leases, batches, recall.

*Pure* but for the sends it asks of its session. Runs in drivers and workers; only the leader thread enters, except
``enqueue``.

1. A task is pushed to a worker only under a lease, and to one worker at a time.
2. A worker gets as many tasks as it can run in ``PIPELINE_NS``, at least one; it is refilled when half of that is left.
   A task that is tried again starts alone, so that a second death of its worker is rightly its own. Pushed one by one
   are tasks that must not run twice, as what a dying worker had finished but not sent would, and those to be spread.
3. A lease with nothing outstanding is fed at once; otherwise tasks gather into batches of ``BATCH_TASKS_MAX``.
4. Tasks that wait at a worker behind a longer one than expected are recalled when another worker is free, and such a
   worker gets no more until it answers.
5. Demand is declared, not counted out: the last word on a class replaces the earlier ones.
6. Tasks with large inputs belong to a part of their class, by the node where the inputs lie (see ``locality``).
7. What an answer costs does not depend on the number of leases.

Source: OSDI'18 s4.2.2; leases and direct pushes as in NSDI'21 s4; DESIGN s4.3-5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshray import config, failures
from meshray.messages.node import (
    DeclareDemand,
    Demand,
    DemandStuck,
    LeaseGranted,
    LeaseLost,
    LeaseReclaimed,
    ReassignLeases,
    ReturnLease,
)
from meshray.messages.tasks import CancelTask, PushTasks, RecallTasks, TaskEntry, TasksRecalled
from meshray.session import locality
from meshray.session.heirs import heirs
from meshray.session.piles import STALL_NS, Piles
from meshray.session.records import PUSHED, QUEUED, Lease, SchedulingClass, Task

if TYPE_CHECKING:
    from meshray.session.session import Session

_DEMAND_MAX = 1000
"""Leases asked for at once; a node answers with what it has."""

_SWEEP_NS = 2 * STALL_NS
"""Idle leases and stalled workers are looked for this often."""


class Submitter:
    """All scheduling classes and leases of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.classes: dict[int, SchedulingClass] = {}
        self.leases: dict[int, Lease] = {}
        self._piles = Piles()
        self._dirty: dict[int, SchedulingClass] = {}
        self._next_sweep_ns = 0

    # --- feeding -------------------------------------------------------------------------------------------------

    def depth(self, klass: SchedulingClass) -> int:
        """Return how many tasks may be outstanding at one worker."""
        if not klass.mean_ns or not klass.max_retries or klass.strategy.kind == "spread":
            return 1
        return max(1, min(config.PIPELINE_TASKS_MAX, config.PIPELINE_NS // klass.mean_ns))

    def near_inputs(self, klass: SchedulingClass, task: Task) -> SchedulingClass:
        """Return the class by which a task with inputs is scheduled; it is the task's from now on. Any thread."""
        if self._session.surroundings.locality:
            task.klass = klass = locality.class_near_inputs(self.classes, klass, task, self._session.next_seq)
        return klass

    def exported(self, klass: SchedulingClass) -> None:
        """Workers can fetch the function from now on. (leader)"""
        for part in [klass, *klass.parts.values()]:
            part.function = klass.function
            part.ready = True
            self.pump(part)

    def pump(self, klass: SchedulingClass) -> None:
        """Push what can be pushed to any lease, and declare the demand if it has changed."""
        if klass.queue and klass.ready:
            depth = self.depth(klass)
            if klass.hungry or depth > 1:
                leases = list(klass.leases.values())
                if klass.hungry and len(leases) > 1:
                    leases.sort(key=lambda lease: len(lease.outstanding))
                for lease in leases:
                    if not klass.queue:
                        break
                    self._refill(lease, depth)
        self._declare(klass)

    def _refill(self, lease: Lease, depth: int) -> None:
        """Push to one lease, if it accepts work and has at most half of what it may have."""
        klass, count = lease.klass, len(lease.outstanding)
        if not (lease.blocked or lease.reclaimed or lease.recalling or (count and (
                count * 2 > depth or lease.answered_ns < self._session.now_ns - STALL_NS))):
            self._feed(lease, (min(depth, klass.max_calls - lease.calls) if klass.max_calls else depth) - count)

    def _feed(self, lease: Lease, room: int) -> None:
        queue = lease.klass.queue
        while room > 0 and queue:
            first = queue.popleft()
            if first.state != QUEUED:
                continue
            if first.attempt:
                if lease.outstanding:
                    queue.appendleft(first)
                else:
                    self._push(lease, first, [first])
                return
            batch, limit = [first], min(room, config.BATCH_TASKS_MAX)
            while len(batch) < limit and queue:
                task = queue[0]
                if task.state == QUEUED:
                    if task.attempt or task.prefix != first.prefix:
                        break
                    batch.append(task)
                queue.popleft()
            room -= len(batch)
            self._push(lease, first, batch)

    def _push(self, lease: Lease, first: Task, batch: list[Task]) -> None:
        klass, outstanding = lease.klass, lease.outstanding
        if not outstanding:
            klass.hungry -= 1
            lease.answered_ns = self._session.now_ns
        entries = []
        for task in batch:
            task.state = PUSHED
            task.lease = lease
            outstanding[task.seq] = task
            if task.slots or task.refs or task.blob:
                entries.append(self._session.references.entry_of(task, lease.node))
            else:
                entries.append(TaskEntry(task.seq, task.index, task.args))
        if len(outstanding) > 1:
            self._piles.add(lease)
        self._session.send(lease.route, PushTasks(
            lease.number, klass.function, klass.name, first.prefix, klass.num_returns, entries,
            self._session.job, first.attempt, lease.gpus, klass.max_calls, self._session.endpoint,
            klass.retry_exceptions))

    # --- demand --------------------------------------------------------------------------------------------------

    def _wanted(self, klass: SchedulingClass) -> int:
        busy = len(klass.leases) - klass.hungry
        waiting = len(klass.queue)
        if not waiting:
            stalled = self._piles.stalled_of(klass, self._session.now_ns)
            extra = sum(len(lease.outstanding) - 1 for lease in stalled)
            return min(_DEMAND_MAX, busy + extra)
        if klass.mean_ns:
            worth = -(-waiting * klass.mean_ns // config.PIPELINE_NS)
            return min(_DEMAND_MAX, busy + waiting, busy + max(1, worth))
        return min(_DEMAND_MAX, busy + waiting)

    def _declare(self, klass: SchedulingClass) -> None:
        wanted = self._wanted(klass)
        held = len(klass.leases)
        if wanted <= held:
            if klass.declared <= held:
                return
            wanted = held
        elif klass.declared > held and klass.declared >= wanted > klass.declared // 2:
            return
        klass.declared = wanted
        self._session.to_node(DeclareDemand([Demand(
            klass.number, klass.resources, wanted, klass.name, klass.strategy, len(klass.queue), klass.mean_ns,
            klass.input_bytes)]))

    # --- what the node says --------------------------------------------------------------------------------------

    def granted(self, message: LeaseGranted) -> None:
        """A lease came: use it, or give it back if the class needs it no longer."""
        klass = self.classes.get(message.klass)
        if klass is None or self._session.closing:
            self._session.to_node(ReturnLease([message.lease]))
            return
        route = self._session.connect(message.worker, message.endpoint)
        lease = Lease(message.lease, klass, message.worker, route, message.node, message.pid, message.gpus,
                      outstanding={}, idle_since_ns=self._session.now_ns)
        klass.leases[lease.number] = self.leases[lease.number] = lease
        klass.declared = max(klass.declared, len(klass.leases))  # so much is the node's belief, whatever we said last
        klass.hungry += 1
        self._go_on(lease)
        if not lease.outstanding:
            self._dirty[klass.number] = klass
            self._recall_for(klass)

    def _go_on(self, lease: Lease) -> None:
        """A lease can take more: others are looked at only if some have nothing, so that the cost of an answer does not
        grow with the number of leases."""
        klass = lease.klass
        if klass.ready:
            self._refill(lease, self.depth(klass))
        if klass.hungry and klass.queue:
            self.pump(klass)
        else:
            self._declare(klass)

    def reclaimed(self, message: LeaseReclaimed) -> None:
        """Others wait for this worker: stop feeding it, take back what it has not started."""
        lease = self.leases.get(message.lease)
        if lease is None:
            self._session.to_node(ReturnLease([message.lease]))
            return
        if not lease.outstanding:
            if not _spent(lease):
                self._give_back([lease])
        elif not lease.reclaimed:
            lease.reclaimed = True
            if len(lease.outstanding) > 1:
                self._recall(lease)

    def lost(self, message: LeaseLost) -> None:
        """The worker died: what had not answered is retried, or fails with how it died."""
        lease = self.leases.pop(message.lease, None)
        if lease is None:
            return
        klass = lease.klass
        klass.leases.pop(lease.number, None)
        if not lease.outstanding:
            klass.hungry -= 1
        tasks = list(lease.outstanding.values())
        lease.outstanding.clear()
        self._session.forget_peer(lease.worker)
        for position, task in enumerate(tasks):
            self._session.outcomes.task_lost(task, message.death, started=position == 0)
        self.pump(klass)

    def stuck(self, message: DemandStuck) -> None:
        """No node can run this class now: tell the user and keep waiting, unless that is final."""
        klass, reason = self.classes.get(message.klass), message.reason
        if klass is None:
            return
        if message.final:
            error = failures.encode_system("unschedulable", f"{klass.name} cannot be scheduled: {reason}")
            tasks = [task for task in klass.queue if task.state == QUEUED]
            klass.queue.clear()
            for task in tasks:
                self._session.outcomes.pending.pop(task.seq, None)
                self._session.outcomes.fail(task, error)
            self.pump(klass)
        elif klass.stuck != reason:
            klass.stuck = reason
            if reason:
                self._session.warn(f"{klass.name} cannot be scheduled and stays pending: {reason}")

    # --- what workers say ----------------------------------------------------------------------------------------

    def answered(self, lease: Lease, tasks: int) -> None:
        """``tasks`` results came back under ``lease``: refill it, or let it rest."""
        klass = lease.klass
        lease.answered_ns = self._session.now_ns
        lease.blocked = False
        klass.used_ns = lease.answered_ns
        if klass.max_calls:
            lease.calls += tasks
        if not lease.outstanding:
            if lease.reclaimed and not _spent(lease):
                klass.hungry += 1
                self._give_back([lease])
            else:
                lease.idle_since_ns = lease.answered_ns
                klass.hungry += 1
        if klass.queue and lease.number in klass.leases:
            self._go_on(lease)
        elif klass.queue:
            self.pump(klass)
        elif not lease.outstanding:
            if klass.strategy.kind == "spread" and lease.number in klass.leases and not _spent(lease):
                self._give_back([lease])  # so that the next task goes to another node
            self._dirty[klass.number] = klass
            self._recall_for(klass)

    def recalled(self, message: TasksRecalled) -> None:
        """Tasks came back unstarted: they go to the front of the queue."""
        lease = self.leases.get(message.lease)
        if lease is None:
            return
        lease.recalling = False
        lease.blocked = lease.blocked or message.blocked
        klass = lease.klass
        # If its answers were faster than this, it has nothing any more and was counted as hungry then.
        busy = bool(lease.outstanding)
        for seq in reversed(message.seqs):
            task = lease.outstanding.pop(seq, None)
            if task is not None and task.state == PUSHED:
                task.state = QUEUED
                task.lease = None
                klass.queue.appendleft(task)
        if busy and not lease.outstanding:
            klass.hungry += 1
            lease.idle_since_ns = self._session.now_ns
            if lease.reclaimed:
                self._give_back([lease])
        self.pump(klass)

    def _recall(self, lease: Lease) -> None:
        if not lease.recalling:
            lease.recalling = True
            self._session.send(lease.route, RecallTasks(lease.number))

    def _recall_for(self, klass: SchedulingClass) -> None:
        if klass.queue or not klass.hungry:
            return
        for lease in self._piles.stalled_of(klass, self._session.now_ns):
            self._recall(lease)

    def dropped(self, klass: SchedulingClass) -> None:
        """A queued task was cancelled: when half of them may be, take these out and the demand back. In place, since
        other threads add to the queue."""
        klass.dropped += 1
        queue = klass.queue
        if klass.dropped * 2 > len(queue):
            klass.dropped = 0
            queue.extend([task for _ in range(len(queue)) if (task := queue.popleft()).state == QUEUED])
            self.pump(klass)

    def cancel(self, task: Task, *, force: bool, recursive: bool) -> None:
        """Ask the worker that has ``task`` to drop or interrupt it."""
        if task.lease is not None:
            self._session.send(task.lease.route, CancelTask(task.seq, force, recursive))

    # --- time ----------------------------------------------------------------------------------------------------

    def sweep(self, now_ns: int) -> None:
        """Return leases that were idle too long, recall from stalled workers. Called at ``deadline_ns``."""
        if now_ns < self._next_sweep_ns:
            return
        self._next_sweep_ns = now_ns + _SWEEP_NS
        # Where another class waits for workers, nobody keeps one for work that may come. Threads may add classes.
        waits = any(klass.queue and klass.ready and not klass.hungry for klass in list(self.classes.values()))
        for klass in list(self._dirty.values()):
            if not klass.queue and klass.hungry:
                self._rest(klass, now_ns - (0 if waits else config.LEASE_IDLE_NS))
            if not klass.leases and not klass.queue:
                self._declare(klass)
                self._dirty.pop(klass.number, None)
        for lease in self._piles.stalled(now_ns):
            self._dirty[lease.klass.number] = lease.klass
            if lease.klass.hungry and not lease.klass.queue:
                self._recall(lease)
            else:
                self._declare(lease.klass)

    def _rest(self, klass: SchedulingClass, since_ns: int) -> None:
        idle = [lease for lease in klass.leases.values()
                if not lease.outstanding and lease.idle_since_ns < since_ns and not _spent(lease)]
        for heir, leases in heirs(idle, list(self.classes.values()), self._wanted) if idle else ():
            self._hand_over(klass, leases, heir)
        if idle := [lease for lease in idle if lease.klass is klass]:
            self._give_back(idle)

    def _hand_over(self, klass: SchedulingClass, leases: list[Lease], heir: SchedulingClass) -> None:
        """Let idle leases serve another class, which waits; they are the session's own, so the node is only told."""
        for lease in leases:
            del klass.leases[lease.number]
            klass.hungry -= 1
            lease.klass = heir
            heir.leases[lease.number] = lease
            heir.hungry += 1
        klass.declared = len(klass.leases)
        moved = [lease.number for lease in leases]
        self._session.to_node(ReassignLeases(moved, heir.number, klass.number, klass.declared))
        self.pump(heir)

    def deadline_ns(self) -> int | None:
        """Return when ``sweep`` is due."""
        return self._next_sweep_ns if self.leases else None

    def _give_back(self, leases: list[Lease]) -> None:
        klass = leases[0].klass
        for lease in leases:
            self.leases.pop(lease.number, None)
            if klass.leases.pop(lease.number, None) is not None:
                klass.hungry -= 1
        self._dirty[klass.number] = klass
        self._declare(klass)
        self._session.to_node(ReturnLease([lease.number for lease in leases]))

    def return_all(self) -> None:
        """Give every lease back: the session ends."""
        if self.leases:
            self._session.to_node(ReturnLease(list(self.leases)))
        for klass in list(self.classes.values()):
            klass.leases.clear()
        self.leases.clear()


def _spent(lease: Lease) -> bool:
    """Whether the worker has run ``max_calls`` tasks and is about to end: it is not given back, for others to use."""
    return 0 < lease.klass.max_calls <= lease.calls
