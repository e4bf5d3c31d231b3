"""Whom a master has heard of: which servers live, which are gone, and who may take a place.

*Pure.* Used by masters. A failure detector as arithmetic on the time of the last word, and what follows from it.

1. ``is_dead`` is certain: the process has ended. ``is_gone`` may be wrong.
2. A process is named by its life: what is known of one says nothing of the next.
3. The lives of a server have numbers that grow, since its disk counts them. One that is heard of ends all before it; a
   word of one of those, which was long on its way, says nothing any more. Only when the later one is silent it is
   listened to: it may have a new disk and a clock that is behind. It still proves nothing of the later one.
"""

from __future__ import annotations

import msgspec

from meshray.gcs import limits
from meshray.gcs.lives import number_of, pid_of
from meshray.messages.chain import Chain, Place, ServerAlive
from meshray.messages.node import Shard
from meshray.transport.endpoints import home_of


class Server(msgspec.Struct):
    """The latest word of one server, and when its present life was first heard of."""

    alive: ServerAlive
    route: bytes
    heard_ns: int
    since_ns: int
    wedged_ns: int = 0
    """Since when it says that it is wedged; 0: it does not."""


class Roster:
    """All servers that were heard of."""

    def __init__(self, now_ns: int) -> None:
        self.servers: dict[str, Server] = {}
        self._begun_ns = now_ns
        self._ended: dict[str, int] = {}
        """The number of the latest life of each server that a node has seen end."""
        self._ended_unheard: set[tuple[str, str]] = set()
        """Names and pids of processes that ended before a word of theirs came here."""

    def heard(self, route: bytes, alive: ServerAlive, now_ns: int) -> None:
        """A server has said something."""
        known = self.servers.get(alive.name)
        if (alive.name, pid_of(alive.life)) in self._ended_unheard:
            self._end(alive.name, alive.life)
        if self._is_dead(alive.name, alive.life):
            return
        if known is not None and number_of(alive.life) < number_of(known.alive.life) \
                and not self._is_silent(alive.name, now_ns, limits.SUSPECT_NS):
            return
        same = known is not None and known.alive.life == alive.life
        since_ns = known.since_ns if known is not None and same else now_ns
        wedged_ns = 0
        if alive.role == "wedged":
            still = known is not None and same and known.wedged_ns and known.alive.epoch == alive.epoch
            wedged_ns = known.wedged_ns if known is not None and still else now_ns
        self.servers[alive.name] = Server(alive, route, now_ns, since_ns, wedged_ns)

    def died(self, name: str, pid: int) -> None:
        """A node says that one of its processes has ended. Its number is found as soon as possible, because the system
        may give the pid to a later life."""
        server = self.servers.get(name)
        if server is not None and pid_of(server.alive.life) == str(pid):
            self._end(name, server.alive.life)
        else:
            self._ended_unheard.add((name, str(pid)))

    def forgive(self, pause_ns: int) -> None:
        """This master did not listen for so long: nobody is to blame for having been silent meanwhile."""
        if pause_ns > 0:
            self._begun_ns += pause_ns
            for server in self.servers.values():
                server.heard_ns += pause_ns

    # --- who is there --------------------------------------------------------------------------------------------

    def is_dead(self, place: Place) -> bool:
        """Whether the process in this place has ended for certain."""
        server = self.servers.get(place.name)
        return self._is_dead(place.name, place.life) or (
            server is not None and number_of(server.alive.life) > number_of(place.life))

    def is_gone(self, place: Place, now_ns: int) -> bool:
        """Whether it has ended, or was silent for too long."""
        return self.is_dead(place) or self._is_silent(place.name, now_ns, limits.SUSPECT_NS)

    def lives(self, place: Place, now_ns: int) -> bool:
        """Whether the process in this place was heard, and is not gone."""
        server = self.servers.get(place.name)
        return server is not None and server.alive.life == place.life and not self.is_gone(place, now_ns)

    def suspects_ns(self, places: list[Place], now_ns: int) -> int | None:
        """Return when the first of these will have been silent for too long, unless something is heard; None: all are
        gone by now."""
        due = [self._heard_ns(place.name) + limits.SUSPECT_NS + 1 for place in places]
        return min((due_ns for due_ns in due if due_ns > now_ns), default=None)

    def serves(self, place: Place, epoch: int, now_ns: int) -> bool:
        """Whether the member in this place does its work in ``epoch``."""
        server = self.servers.get(place.name)
        return server is not None and not self.is_gone(place, now_ns) and server.alive.role == "member" \
            and server.alive.epoch == epoch

    def since_ns(self, name: str) -> int:
        """When the present life of a server was first heard of."""
        return self.servers[name].since_ns

    def routes(self, places: list[Place]) -> list[bytes]:
        """Return the routes of those that are there."""
        return [self.servers[place.name].route for place in places if place.name in self.servers]

    def routes_of_shard(self, index: int) -> list[bytes]:
        """Return the routes of all servers of a shard."""
        return [server.route for server in self.servers.values() if server.alive.index == index]

    # --- who may take a place ------------------------------------------------------------------------------------

    def first_chain(self, shard: Shard, index: int, patience_is_over: bool) -> Chain | None:
        """Return the first chain of a new cluster: all its servers, or the one that has data; None: wait for more."""
        there = [self.servers[name].alive for name, _ in shard.members if name in self.servers]
        if len(there) < len(shard.members) and not (there and patience_is_over):
            return None
        epoch = 1 + max(alive.epoch for alive in there)
        with_data = [alive for alive in there if alive.whole and alive.version]
        if with_data:
            there = [max(with_data, key=_history)]
        return Chain(epoch, [_place(alive) for alive in there if alive.index == index])

    def best_returned(self, chain: Chain, since_ns: int, now_ns: int) -> Place | None:
        """Every member is gone: return the one that came back and is to go on alone, or None to wait for another."""
        back = [self.servers[place.name].alive for place in chain.places
                if self.is_dead(place) and place.name in self.servers
                and not self._is_silent(place.name, now_ns, limits.SUSPECT_NS)
                and self.servers[place.name].alive.life != place.life]
        whole = [alive for alive in back if alive.whole and alive.role == "idle"]
        if not whole or (len(back) < len(chain.places) and now_ns - since_ns < limits.RESTART_PATIENCE_NS):
            return None
        return _place(max(whole, key=_history))

    def stuck(self, chain: Chain) -> int | None:
        """Return the place of the lowest member that says that its chain does not go on below it."""
        for index in reversed(range(len(chain.places))):
            server = self.servers.get(chain.places[index].name)
            if server is not None and server.alive.stuck and server.alive.epoch == chain.epoch:
                return index
        return None

    def is_wedged(self, chain: Chain, now_ns: int) -> bool:
        """Whether a member was wedged for this configuration, and nobody published the next one."""
        servers = [self.servers[place.name] for place in chain.places if place.name in self.servers]
        return any(server.wedged_ns and server.alive.epoch == chain.epoch
                   and now_ns - server.wedged_ns > limits.HEARTBEAT_NS for server in servers)

    def joiner(self, chain: Chain, now_ns: int) -> Place | None:
        """Return the server to which the tail has given everything, if both say so and it still lives."""
        tail = self.servers.get(chain.places[-1].name)
        if tail is None or not self.serves(chain.places[-1], chain.epoch, now_ns):
            return None
        for server in self.servers.values():
            alive = server.alive
            if alive.role == "whole" and alive.life == tail.alive.joiner \
                    and not self.is_gone(_place(alive), now_ns):
                return _place(alive)
        return None

    def acceptors(self, present: tuple[str, ...], now_ns: int) -> tuple[str, ...]:
        """Return the acceptors that there should be, at most one more or less than at present, on different nodes
        rather than on one."""
        lost = [name for name in present if self._is_silent(name, now_ns, limits.ACCEPTOR_SILENT_NS)
                or (name in self.servers and not self.servers[name].alive.votes)]
        taken = {home_of(self.servers[name].alive.endpoint) for name in present
                 if name in self.servers and name not in lost}
        spare = sorted((home_of(server.alive.endpoint) in taken, name) for name, server in self.servers.items()
                       if name not in present and not self._is_silent(name, now_ns, limits.SUSPECT_NS)
                       and now_ns - server.since_ns > limits.SUSPECT_NS)
        if lost and (spare or (lost[0] in self.servers and not self.servers[lost[0]].alive.votes)):
            kept = tuple(name for name in present if name != lost[0])
            return kept if len(kept) >= 2 else present
        if spare and len(present) < limits.ACCEPTORS and len(present) > 1:
            return (*present, spare[0][1])
        return present

    def _is_silent(self, name: str, now_ns: int, limit_ns: int) -> bool:
        return now_ns - self._heard_ns(name) > limit_ns

    def _heard_ns(self, name: str) -> int:
        server = self.servers.get(name)
        return server.heard_ns if server is not None else self._begun_ns

    def _is_dead(self, name: str, life: str) -> bool:
        return number_of(life) <= self._ended.get(name, -1) or (name, pid_of(life)) in self._ended_unheard

    def _end(self, name: str, life: str) -> None:
        self._ended[name] = max(number_of(life), self._ended.get(name, -1))
        self._ended_unheard.discard((name, pid_of(life)))


def _place(alive: ServerAlive) -> Place:
    return Place(alive.name, alive.endpoint, alive.life)


def _history(alive: ServerAlive) -> int:
    return alive.version
