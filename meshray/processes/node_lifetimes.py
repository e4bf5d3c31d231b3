"""Lifetimes as one node sees them: who has died, whose objects are free, and where copies of them lie.

*Pure.* Runs in the node process.

1. A death is told to the own sessions and to every other node, which tells its own; the death of a node is told by each
   node that hears of it.
2. What a dead process owned stays as long as a session of this node reads it (``orphans``).
3. Copies of a freed object are freed where they lie. Only the node that served a copy knows who took it; if that is
   gone, or turns out to have been gone, every node is told.

Source: DESIGN s6 Lifetime, s8; decision 0015.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from meshray import config
from meshray.machine import Received, Send
from meshray.messages import objects
from meshray.processes.orphans import Orphans
from meshray.transport.endpoints import home_of
from meshray.transport.sockets import name_of

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine


class Lifetimes:
    """Deaths and frees of one node."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self._orphans = Orphans(node.store.directory)
        self._known_ns = 0
        """From when on a node that this one does not know counts as gone."""
        self._freed: deque[tuple[int, str, list[bytes]]] = deque()
        """What which node was told to free lately: it may have been gone by then."""

    def begin(self, now_ns: int) -> None:
        """The node starts now, and knows nobody yet."""
        self._known_ns = now_ns + config.SUSPICION_NS

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return self._orphans.deadline_ns()

    def tick(self, now_ns: int) -> list[Any]:
        """Look again for what dead processes owned."""
        return [effect for message in self._orphans.tick(now_ns) for effect in self._tell_died(message, now_ns)]

    # --- deaths --------------------------------------------------------------------------------------------------

    def process_gone(self, name: str, now_ns: int) -> list[Any]:
        """A process of this node has ended."""
        node, gone = self._node, objects.HoldersDied([name])
        effects = self._free(self._orphans.session_gone(name), now_ns) + self._died(gone, now_ns)
        return effects + [effect for peer in node.peers for effect in node.to_peer(peer, gone)]

    def node_gone(self, node: str, homes: tuple[str, ...], now_ns: int) -> list[Any]:
        """Another node was given up, with all its processes."""
        effects = self._died(objects.HoldersDied([], homes), now_ns)
        for _, told, freed in self._freed:
            if told == node:
                effects += self._free_everywhere(freed)
        return effects

    def holders_died(self, event: Received, now_ns: int) -> list[Any]:
        """Another node tells of deaths among its processes."""
        message: objects.HoldersDied = event.message
        effects = self._died(objects.HoldersDied(message.processes, message.homes), now_ns)
        return effects + self._node.schedule(event, now_ns)

    def _died(self, message: objects.HoldersDied, now_ns: int) -> list[Any]:
        return self._tell_died(self._orphans.died(message, now_ns), now_ns)

    def _tell_died(self, message: objects.HoldersDied, now_ns: int) -> list[Any]:
        members = self._node.members
        effects: list[Any] = [Send(member.route, message) for member in members.values()]
        return effects + self._free(self._orphans.asked(message, list(members)), now_ns)

    def orphans_read(self, event: Received, now_ns: int) -> list[Any]:
        """A session says what it still reads of the objects of dead owners."""
        message: objects.OrphansRead = event.message
        return self._free(self._orphans.answered(name_of(event.route), message.cookie, message.objects), now_ns)

    def check_living(self, event: Received, now_ns: int) -> list[Any]:
        """Somebody hears nothing from these processes: say which of them are gone, or ask their nodes."""
        node = self._node
        dead: list[str] = []
        elsewhere: dict[str, list[tuple[str, str]]] = {}
        for name, endpoint in event.message.processes:
            home = home_of(endpoint)
            if home in node.homes(node.node):
                if not node.sessions.is_expected(name):
                    dead.append(name)
                continue
            peer = next((peer for peer in node.peers if home in node.homes(peer)), None)
            if peer is not None:
                elsewhere.setdefault(peer, []).append((name, endpoint))
            elif now_ns >= self._known_ns:
                dead.append(name)
        effects = [effect for peer, processes in elsewhere.items()
                   for effect in node.to_peer(peer, objects.CheckProcesses(processes))]
        return [*effects, Send(event.route, objects.HoldersDied(dead))] if dead else effects

    # --- frees ---------------------------------------------------------------------------------------------------

    def objects_freed(self, event: Received, now_ns: int) -> list[Any]:
        """A session or another node frees objects."""
        message: objects.ObjectsFreed = event.message
        effects = self._free(self._orphans.may_free(name_of(event.route), message.objects), now_ns, event.route)
        if message.node and message.node != self._node.node:
            effects += self._tell_freed(message.node, message.objects, now_ns)
        return effects

    def _free(self, freed: list[bytes], now_ns: int, route: bytes = b"") -> list[Any]:
        if not freed:
            return []
        effects: list[Any] = []
        for effect in self._node.store.handle(Received(route, objects.ObjectsFreed(freed)), now_ns):
            if type(effect) is Send and type(effect.message) is objects.ObjectsFreed:
                effects += self._tell_freed(name_of(effect.to), effect.message.objects, now_ns)
            else:
                effects.append(effect)
        return effects

    def _tell_freed(self, node: str, freed: list[bytes], now_ns: int) -> list[Any]:
        if node not in self._node.peers:
            return self._free_everywhere(freed)
        self._freed.append((now_ns, node, freed))
        while self._freed[0][0] < now_ns - 2 * config.SUSPICION_NS:
            self._freed.popleft()
        return self._node.to_peer(node, objects.ObjectsFreed(freed))

    def _free_everywhere(self, freed: list[bytes]) -> list[Any]:
        node = self._node
        return [effect for peer in node.peers for effect in node.to_peer(peer, objects.ObjectsFreed(freed))]
