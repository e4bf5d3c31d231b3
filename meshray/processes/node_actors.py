"""The actor table as one node sees it: rows of its own actors, news for its sessions about any.

*Pure.* Runs in the node process.

1. The node that runs an actor writes its row at every change, and frees its name when it is dead. Rows of detached
   actors are written by ``detached_actors``.
2. Sessions hear of an actor from their own node: at once if it lives here, by a watch on its row otherwise.
3. A request about an actor that lives elsewhere is passed on to the node in its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered, RowChanged
from meshray.machine import Received, Send
from meshray.messages.gcs import DELETE, PUT, PUT_IF_ABSENT, Op
from meshray.messages.node import ActorChanged, ActorSpec, Death, KillActor
from meshray.sched.events import ActorStateChanged

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine


class NodeActors:
    """What a node knows of actors."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self._here: dict[bytes, ActorChanged] = {}
        """Last known state of actors that this node runs or ran."""
        self._watchers: dict[bytes, set[bytes]] = {}
        self._following: dict[bytes, int] = {}
        """Actors of other nodes whose rows are watched: the watch of each."""
        self._unknown: dict[bytes, int] = {}
        """Actors that somebody asked for and that have no row: when to look again."""
        self._kills: list[tuple[int, Received]] = []
        """Actors that should be killed on nodes that cannot be reached: when to look again where they are."""

    def changed(self, change: ActorStateChanged, now_ns: int) -> list[Any]:
        """An actor of this node changed: write its row, tell who watches."""
        spec = change.spec
        news = ActorChanged(spec.actor, change.state, change.incarnation, change.worker, change.endpoint,
                            self._node.node, change.pid, change.death, change.error, change.restarts_left)
        self._here[spec.actor] = news
        self._watchers.setdefault(spec.actor, set()).update(self._route_of(spec.owner))
        self._note(change, now_ns)
        restarts = change.incarnation if spec.max_restarts < 0 else spec.max_restarts - change.restarts_left
        row = tables.ActorRow(spec, change.state, change.incarnation, self._node.node, change.worker, change.endpoint,
                              change.pid, restarts, change.death, change.error, home=change.home)
        effects = self._write(row, now_ns)
        if change.state == "pending":
            del self._here[spec.actor]
        effects += [Send(route, news) for route in self._watchers[spec.actor]]
        if change.state == "dead":
            self._watchers.pop(spec.actor, None)
            self._here.pop(spec.actor, None)
            if spec.name and not spec.detached:
                effects += self.free_name(spec, now_ns)
        return effects

    def _write(self, row: tables.ActorRow, now_ns: int) -> list[Any]:
        if row.spec.detached:
            return self._node.detached.changed(row, now_ns)
        # Where the actor is placed may be another node, whose word on it must not be overwritten by ours.
        kind = PUT_IF_ABSENT if row.state == "pending" else PUT
        return self._node.write([Op(tables.ACTOR, row.spec.actor, tables.encode(row), kind)], now_ns)

    def passed(self, actor: bytes, row: tables.ActorRow, now_ns: int) -> list[Any]:
        """An actor that was here lives elsewhere: who asks hears of it by its row from now on."""
        self._here.pop(actor, None)
        news = self._news(row)
        return [*(Send(route, news) for route in self._watchers.get(actor, ())), *self._follow(actor, now_ns)]

    def _note(self, change: ActorStateChanged, now_ns: int) -> None:
        spec, death = change.spec, change.death
        what = f"{spec.class_name} {spec.name or spec.actor.hex()} of job {spec.job}"
        if change.state == "alive":
            self._node.events.note("info", "actor runs", f"{what}, pid {change.pid}, incarnation {change.incarnation}",
                                   now_ns)
        elif death is not None:
            broken = change.error is not None or death.signal or death.code or change.state != "dead"
            left = "" if change.state == "dead" else f"; {change.restarts_left} restarts left" \
                if change.restarts_left >= 0 else "; it is always restarted"
            self._node.events.note("warning" if broken else "info",
                                   "actor died" if change.state == "dead" else "actor restarts",
                                   f"{what}: {cause_of(death)}{left}", now_ns)

    def _route_of(self, owner: str) -> set[bytes]:
        member = self._node.members.get(owner)
        return set() if member is None else {member.route}

    def free_name(self, spec: ActorSpec, now_ns: int) -> list[Any]:
        """The actor that has this name is dead."""
        key = tables.name_key(spec.namespace, spec.name)

        def remove(answer: Answered, later_ns: int) -> list[Any]:
            if answer.error is not None or answer.results[0].value != spec.actor:
                return []
            return self._node.write([Op(tables.NAME, key, b"", DELETE, answer.results[0].version)], later_ns)

        return self._node.read(tables.NAME, key, now_ns, remove)

    def watch(self, event: Received, now_ns: int) -> list[Any]:
        """A session wants to know about an actor, now and from now on."""
        actor = event.message.actor
        self._watchers.setdefault(actor, set()).add(event.route)
        here = self._here.get(actor)
        if here is not None:
            return [Send(event.route, here)]

        def answer(found: Answered, later_ns: int) -> list[Any]:
            if found.error is not None or found.results[0].value is None:
                self._unknown.setdefault(actor, later_ns + config.ACTOR_ROW_WAIT_NS)
                return []
            return [Send(event.route, self._news(tables.decode(found.results[0].value, tables.ActorRow)))]

        return self._node.read(tables.ACTOR, actor, now_ns, answer) + self._follow(actor, now_ns)

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        if not self._unknown and not self._kills:
            return None
        return min((*self._unknown.values(), *(due_ns for due_ns, _ in self._kills)))

    def tick(self, now_ns: int) -> list[Any]:
        """Look again for actors without a row, and for those that should be killed where they are next. A row may be
        late; one that does not come was removed as history."""
        kills = [event for due_ns, event in self._kills if due_ns <= now_ns]
        self._kills = [kill for kill in self._kills if kill[0] > now_ns]
        effects = [effect for event in kills for effect in self.kill(event, now_ns)]
        due = [actor for actor, due_ns in self._unknown.items() if due_ns <= now_ns]
        for actor in due:
            del self._unknown[actor]
        return effects + [effect for actor in due for effect in self._look_again(actor, now_ns)]

    def _look_again(self, actor: bytes, now_ns: int) -> list[Any]:
        def answer(found: Answered, later_ns: int) -> list[Any]:
            if found.error is not None:
                self._unknown[actor] = later_ns + config.ACTOR_ROW_WAIT_NS
                return []
            if found.results[0].value is not None or actor in self._here:
                return []
            death = Death("", 0, "", reason="it died so long ago that nothing more is known of it")
            effects: list[Any] = [Send(route, ActorChanged(actor, "dead", death=death))
                                  for route in self._watchers.pop(actor, ())]
            watch = self._following.pop(actor, None)
            return effects + (self._node.unwatch(watch) if watch is not None else [])

        return self._node.read(tables.ACTOR, actor, now_ns, answer)

    def spilled(self, actor: bytes, now_ns: int) -> list[Any]:
        """An actor asked for here goes to another node: its creator hears of it by its row."""
        self._here.pop(actor, None)
        return self._follow(actor, now_ns)

    def _follow(self, actor: bytes, now_ns: int) -> list[Any]:
        if actor in self._following:
            return []
        self._following[actor], effects = self._node.watch(tables.ACTOR, actor, now_ns, self._row_changed)
        return effects

    def _news(self, row: tables.ActorRow) -> ActorChanged:
        left = -1 if row.spec.max_restarts < 0 else max(0, row.spec.max_restarts - row.restarts)
        return ActorChanged(row.spec.actor, row.state, row.incarnation, row.worker, row.endpoint, row.node, row.pid,
                            row.death, row.error, left)

    def _row_changed(self, change: RowChanged, now_ns: int) -> list[Any]:
        if change.value is None or change.key in self._here:
            return []
        news = self._news(tables.decode(change.value, tables.ActorRow))
        effects: list[Any] = [Send(route, news) for route in self._watchers.get(change.key, ())]
        if news.state == "dead":
            self._watchers.pop(change.key, None)
            watch = self._following.pop(change.key, None)
            if watch is not None:
                effects += self._node.unwatch(watch)
        return effects

    def kill(self, event: Received, now_ns: int) -> list[Any]:
        """End an actor: here, or pass it on to where it is."""
        message: KillActor = event.message
        if message.actor in self._here:
            return self._node.schedule(event, now_ns)

        def forward(found: Answered, later_ns: int) -> list[Any]:
            if found.error is not None or found.results[0].value is None:
                return self._node.schedule(event, later_ns)
            row = tables.decode(found.results[0].value, tables.ActorRow)
            if row.node == self._node.node:
                return self._node.schedule(event, later_ns)
            if row.state == "dead":
                return []
            if row.node not in self._node.peers:  # it is gone, or not known yet: the row will say who has the actor
                self._kills.append((later_ns + config.ACTOR_CLAIM_NS, event))
            return self._node.to_peer(row.node, message)

        return self._node.read(tables.ACTOR, message.actor, now_ns, forward)

    def forget(self, route: bytes) -> None:
        """A session is gone."""
        for actor, watchers in list(self._watchers.items()):
            watchers.discard(route)
            if not watchers and actor not in self._here:
                del self._watchers[actor]


def cause_of(death: Death) -> str:
    """Say in a line why a process or what was in it ended."""
    how = f"signal {death.signal}" if death.signal else f"exit code {death.code}" if death.code else ""
    who = f"pid {death.pid} on {death.node}" if death.pid else ""
    return ", ".join(part for part in (who, how, death.reason) if part)
