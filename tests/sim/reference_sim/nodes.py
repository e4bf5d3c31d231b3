"""Simulated nodes: a store of their own, and news of deaths.

*Pure.* Runs in tests.

1. No memory is used twice, so that whoever reads what was freed is found out.
2. Which objects of dead owners stay is decided by the shipped ``Orphans``; frees that must reach copies go the way of
   the node's machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshray.messages import objects as messages
from meshray.messages.objects import FetchFailed, ObjectFetched, ObjectsFreed, RangesFreed
from meshray.messages.tasks import Location
from meshray.processes.orphans import AGAIN_NS, Orphans
from meshray.transport.endpoints import home_of
from tests.sim.network import MS

if TYPE_CHECKING:
    from tests.sim.reference_sim.world import World


class Arena:
    """One process's room in its node's memory."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.mine: dict[int, int] = {}

    def allocate(self, size_bytes: int) -> int:
        """Return a fresh range."""
        offset = self._node.fresh(size_bytes)
        self.mine[offset] = size_bytes
        return offset

    def write(self, offset: int, pieces: Any) -> None:
        """Write pieces into the range at ``offset``."""
        memory = self._node.memory[offset]
        for relative, piece in pieces:
            memory[relative:relative + len(piece)] = piece

    def release(self, offset: int) -> bool:
        """Give back a range of ours."""
        if self.mine.pop(offset, None) is None:
            return False
        self._node.memory.pop(offset, None)
        return True

    def ranges_freed(self, ranges: list[tuple[int, int]]) -> None:
        """Others freed these ranges."""
        for offset, _ in ranges:
            self.release(offset)

    def generation(self, offset: int) -> int:
        """Nothing is moved here."""
        return 0

    def view(self, offset: int, size_bytes: int, generation: int, keep: Any) -> memoryview:
        """Return the bytes there; memory that was freed is a violation that the world reports."""
        memory = self._node.memory.get(offset)
        if memory is None:
            raise self._node.world.violation(f"freed memory of {self._node.name} was read at {offset}")
        return memoryview(bytes(memory))


class Node:
    """A node: its store's memory, who lies there, and news of deaths."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.memory: dict[int, bytearray] = {}
        self.sealed: dict[bytes, tuple[Location, str, str]] = {}
        """Objects: where, the owner's endpoint, and the process that leases the range (empty: the node's own)."""
        self._takers: dict[bytes, set[str]] = {}
        self._early: set[bytes] = set()
        directory: Any = self
        self._orphans = Orphans(directory)
        self._deaths: list[messages.HoldersDied] = []
        self._freed: list[tuple[str, list[bytes]]] = []
        self._next = 0

    def fresh(self, size_bytes: int) -> int:
        """Return a new range: none is used twice, so that a late reader is found out."""
        offset, self._next = self._next, self._next + size_bytes
        self.memory[offset] = bytearray(size_bytes)
        return offset

    def receive(self, route: bytes, message: Any) -> None:
        """Handle one message of a session or another node."""
        match message:
            case messages.ObjectsSealed(objects):
                for one in objects:
                    if one.object in self._early:
                        self._early.discard(one.object)
                        self._give_back(name_of(route), one.offset, one.size_bytes)
                    else:
                        self.sealed[one.object] = (Location(self.name, one.offset, one.size_bytes), one.owner,
                                                   name_of(route))
            case messages.OrphansRead(cookie, objects):
                self._free_all(self._orphans.answered(name_of(route), cookie, objects))
            case ObjectsFreed(objects, node):
                for identity in self._orphans.may_free(name_of(route), objects):
                    self._free(identity, early=not node or node == self.name)
                if node and node != self.name:
                    self._tell_freed(node, objects)
            case messages.FetchObject():
                self._fetch(name_of(route), message)
            case messages.CheckProcesses(processes):
                dead = [name for name, _ in processes if not self.world.lives(name)]
                if dead:
                    self._tell(name_of(route), messages.HoldersDied(dead))
            case messages.HoldersDied():
                self.died(message)
            case _:
                raise AssertionError(message)

    def _free(self, identity: bytes, *, early: bool) -> None:
        found = self.sealed.pop(identity, None)
        if found is None:
            if early:
                self._early.add(identity)
            return
        location, _, lessee = found
        self._give_back(lessee, location.offset, location.size_bytes)
        for taker in self._takers.pop(identity, ()):
            self._tell_freed(taker, [identity])

    def _tell_freed(self, node: str, freed: list[bytes]) -> None:
        """As the node's machine does it: copies outlive the node that served them."""
        gone = any(f"via://{node}" in death.homes for death in self._deaths)
        self._freed.append((node, freed))
        for other in self.world.nodes if gone else (node,):
            self._to_node(other, ObjectsFreed(freed))

    def _give_back(self, lessee: str, offset: int, size_bytes: int) -> None:
        if lessee and self.world.lives(lessee):
            self._tell(lessee, RangesFreed([(offset, size_bytes)]))
        else:
            self.memory.pop(offset, None)

    def _fetch(self, asker: str, message: messages.FetchObject) -> None:
        here = self.sealed.get(message.object)
        source = self.world.nodes[message.location.node]
        if here is not None:
            self._tell(asker, ObjectFetched(message.object, here[0]))
            return

        def arrive() -> None:
            there = source.sealed.get(message.object) if source.alive else None
            if message.object in self.sealed:
                self._tell(asker, ObjectFetched(message.object, self.sealed[message.object][0]))
            elif there is None:
                self._tell(asker, FetchFailed(message.object, "it is not there"))
            else:
                offset = self.fresh(there[0].size_bytes)
                if there[0].offset not in source.memory:
                    raise self.world.violation(f"freed memory of {source.name} was sent")
                self.memory[offset][:] = source.memory[there[0].offset]
                location = Location(self.name, offset, there[0].size_bytes)
                self.sealed[message.object] = (location, message.owner, "")
                source._takers.setdefault(message.object, set()).add(self.name)
                self._tell(asker, ObjectFetched(message.object, location))

        # Long enough for the seal notice to be there.
        self.world.after(self, 110 * MS, arrive)

    # --- deaths --------------------------------------------------------------------------------------------------

    def process_died(self, name: str) -> None:
        """A process of this node is gone."""
        self._free_all(self._orphans.session_gone(name))
        message = messages.HoldersDied([name])
        self.died(message)
        for other in self.world.nodes.values():
            if other is not self:
                self._to_node(other.name, message)

    def died(self, message: messages.HoldersDied) -> None:
        """Tell the own sessions, and free what they do not read of what the dead owned."""
        self._deaths.append(message)
        for node, freed in self._freed:
            if f"via://{node}" in message.homes:
                for other in self.world.nodes:
                    self._to_node(other, ObjectsFreed(freed))
        self._tell_died(self._orphans.died(message, self.world.clock.now_ns))
        for wait_ns in AGAIN_NS:
            self.world.after(self, wait_ns, self._look_again)
        for process in self.world.living():
            if process.home is self:
                for gone in self.world.processes.values():
                    if message.covers(gone.name, home_of(gone.endpoint)):
                        self.world.news_of_calls(process, gone)

    def _look_again(self) -> None:
        for message in self._orphans.tick(self.world.clock.now_ns):
            self._tell_died(message)

    def _tell_died(self, message: messages.HoldersDied) -> None:
        sessions = [process.name for process in self.world.living() if process.home is self]
        for name in sessions:
            self._tell(name, message)
        self._free_all(self._orphans.asked(message, sessions))

    def _free_all(self, identities: list[bytes]) -> None:
        for identity in identities:
            self._free(identity, early=False)

    # --- what ``Orphans`` asks of a directory --------------------------------------------------------------------

    def owners(self) -> set[str]:
        """Return the owners of the sealed objects."""
        return {owner for _, owner, _ in self.sealed.values()}

    def objects_of(self, owner: str) -> list[bytes]:
        """Return the objects of one owner."""
        return [identity for identity, (_, one, _) in self.sealed.items() if one == owner]

    def lookup(self, identity: bytes) -> Location | None:
        """Return where an object lies here."""
        found = self.sealed.get(identity)
        return None if found is None else found[0]

    def _tell(self, name: str, message: Any) -> None:
        self.world.send(self, name, False, b">node", message)

    def _to_node(self, name: str, message: Any) -> None:
        self.world.send(self, name, True, self.name.encode(), message)


def name_of(route: bytes) -> str:
    """Return whom a route leads to."""
    return route.decode().removeprefix(">")
