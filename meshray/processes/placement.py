"""Which services run on this node: follows the table of places, and moves what lost nodes carried.

*Pure.* Runs in the node process.

1. The node beside the head of the first shard decides for all (``replacement``), and writes by compare-and-set: so it
   decides only with a control store that works, and two that believe it is theirs do no harm.
2. Every node acts on what stands in the table, and on nothing else. One that was given up and comes back reads that it
   has nothing any more, ends its services and removes their disks.
3. Services of a node are given away when it was missing for ``replace_after_s``, as this node saw it.
4. Nothing stands in the table until something has moved: until then, places are those of the cluster's begin.
5. The only replica of a shard stays where its disk is.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered, RowChanged
from meshray.gcs.tables import PLACE, PlaceRow
from meshray.machine import Connect, Disconnect, Received
from meshray.messages.chain import MastersChanged, ServerDied
from meshray.messages.gcs import COMPARE_AND_SET, Op
from meshray.messages.node import Shard
from meshray.processes import control_store
from meshray.processes.node_events import KeepPlaces, ServiceExited, StartService, StopService
from meshray.processes.replacement import MASTER, SCHEDULER, SHARD, Places, following, group_of, kind_of
from meshray.transport.endpoints import Via, home_of
from meshray.transport.sockets import process_endpoint

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine

_KEY = b"services"
_LOOK_NS = 1 * config.SECOND_NS


class Placement:
    """The services of one node, and who is missing."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        settings = node.settings
        numbers = [int(service.rpartition("-")[2]) for service in settings.places]
        self._row = PlaceRow(dict(settings.places), 1 + max(numbers, default=0))
        self._version = 0
        moving = [each for each in settings.places if settings.masters or kind_of(each) == SCHEDULER]
        self._wanted = Counter(map(group_of, moving))
        self._missing: dict[str, int] = {}
        """Nodes that have a place and are not there, and since when."""
        self._register: tuple[int, tuple[str, ...]] = (0, ())
        self._busy = False
        self._grace_ns = int(settings.replace_after_s * config.SECOND_NS)
        self._due_ns: int | None = None

    def begin(self, now_ns: int) -> list[Any]:
        """Return the effects of the node's birth."""
        if not self._row.services:
            return []
        self._due_ns = now_ns
        _, effects = self._node.watch(PLACE, _KEY, now_ns, self._changed)
        return effects

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return self._due_ns

    # --- what people are told ------------------------------------------------------------------------------------

    def servers(self) -> dict[str, str]:
        """Return the servers of the control store whose nodes are there: name -> endpoint."""
        return {service: endpoint for service, (name, endpoint) in self._row.services.items()
                if kind_of(service) == SHARD and name not in self._missing}

    def bearers(self) -> dict[str, str]:
        """Return the nodes that carry something now and are there: name -> endpoint; none while nothing has moved."""
        node = self._node
        there = {node.settings.node_name: node.endpoint,
                 **{node.name_of_node(each): endpoint for each, endpoint in node.peers.items()}}
        return {name: there[name] for name in self._row.nodes & there.keys()} if self._version else {}

    def register_known(self, event: Received, now_ns: int) -> list[Any]:
        """A server says which acceptors it knows."""
        self._register = max(self._register, (event.message.change, event.message.acceptors))
        return []

    def describe(self, shard: Shard) -> dict[str, Any]:
        """Return what ``status`` shows of a shard beside what its servers say: how many replicas it should have, for
        whom others wait, and what the loss of a node would do."""
        settings, services = self._node.settings, self._row.services
        group = group_of(shard.members[0][0])
        lost = [f"{service} on {services[service][0]}" for service in services
                if group_of(service) == group and services[service][0] in self._missing]
        acceptors = [name for name in self._register[1] if name in services]
        nodes = {services[name][0] for name in acceptors} - self._missing.keys()
        return {"replicas": settings.replicas, "lost": lost, "acceptors": acceptors,
                "failover": control_store.failover(len(nodes)) if acceptors else settings.failover}

    # --- who decides ---------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> list[Any]:
        """Look who is missing; if it is this node's to do, give what they carried to others."""
        if self._due_ns is None or now_ns < self._due_ns:
            return []
        self._due_ns = now_ns + min(_LOOK_NS, self._grace_ns // 4)
        node = self._node
        present = {node.settings.node_name, *map(node.name_of_node, node.peers)}
        bearing = {name for name, _ in self._row.services.values()}
        self._missing = {name: self._missing.get(name, now_ns) for name in bearing - present}
        if self._busy or not node.is_beside_head() or self._next(sorted(present), now_ns) is None:
            return []
        self._busy = True
        keys = [(tables.NODE, name.encode()) for name in sorted({node.node, *node.peers})]
        return node.read_all(keys, now_ns, self._candidates)

    def _next(self, living: list[str], now_ns: int) -> PlaceRow | None:
        """Return the places that should follow, as nodes; None if they may stay."""
        lost = {name for name, since_ns in self._missing.items() if now_ns - since_ns >= self._grace_ns}
        present = {service: name for service, (name, _) in self._row.services.items()}
        services, number = following(present, self._wanted, living, lost, self._row.number)
        if services == present:
            return None
        return PlaceRow({service: self._row.services.get(service) or (name, "") for service, name in services.items()},
                        number)

    def _candidates(self, answer: Answered, now_ns: int) -> list[Any]:
        """The rows of all nodes are here: decide."""
        node = self._node
        self._busy = False
        if answer.error is not None:
            return []
        rows = [tables.decode(found.value, tables.NodeRow) for found in answer.results if found.value is not None]
        living = {row.name: row.endpoint for row in rows
                  if row.state == "alive" and not row.visits and row.life == node.settings.life}
        row = self._next(sorted(living), now_ns)
        if row is None:
            return []
        new = {service: name for service, (name, endpoint) in row.services.items() if not endpoint}
        for service, name in new.items():
            row.services[service] = (name, _endpoint(name, living[name], service))
        left = [service for service in self._row.services if service not in row.services]
        self._busy = True

        def written(outcome: Answered, later_ns: int) -> list[Any]:
            self._busy = False
            if outcome.error is None and outcome.results[0].ok:
                moved = ", ".join(f"{service} on {name}" for service, name in new.items())
                instead = f" instead of {', '.join(left)}" if left else ""
                node.events.note("warning", "services moved", f"{moved}{instead}", later_ns)
            return []

        return node.write([Op(PLACE, _KEY, tables.encode(row), COMPARE_AND_SET, self._version)], now_ns, written)

    # --- what runs here ------------------------------------------------------------------------------------------

    def _changed(self, change: RowChanged, now_ns: int) -> list[Any]:
        row = change.row(PlaceRow)
        self._version = change.version if row is not None else 0
        if row is None:
            return []
        self._row = row
        kept = KeepPlaces(Places(change.version, row))
        return [kept, *self._masters(row), *self._schedulers(row), *self._own(row)]

    def _masters(self, row: PlaceRow) -> list[Any]:
        """Tell the servers here who is master now."""
        settings = self._node.settings
        before, now = settings.masters, _of(row, MASTER)
        if before == now:
            return []
        settings.masters = now
        effects: list[Any] = [Disconnect(name) for name in before if name not in now]
        for server, endpoint in settings.host_shards.items():
            effects += self._node.to_named(server, endpoint, MastersChanged(now))
        return effects

    def _schedulers(self, row: PlaceRow) -> list[Any]:
        """Tell the local scheduler whom to ask and to report to."""
        settings = self._node.settings
        before, now = settings.schedulers, _of(row, SCHEDULER)
        if before == now:
            return []
        settings.schedulers = now
        self._node.scheduler.set_schedulers(now)
        return [Disconnect(name) for name in before if name not in now]

    def _own(self, row: PlaceRow) -> list[Any]:
        """Start what this node is to run, end what it is not."""
        settings = self._node.settings
        effects: list[Any] = []
        running = {SHARD: settings.host_shards, MASTER: settings.host_masters, SCHEDULER: settings.host_schedulers}
        mine = {service for service, (name, _) in row.services.items() if name == settings.node_name}
        for services in running.values():
            for service in [each for each in services if each not in mine]:
                del services[service]
                self._node.supervisor.forget(service)
                effects.append(StopService(service))
        for service in sorted(mine):
            services = running[kind_of(service)]
            if service not in services:
                services[service] = process_endpoint(settings.run_dir, service)
                effects.append(StartService(service))
        self._node.supervisor.lasting = frozenset(settings.replicated)
        return effects

    def is_here(self, service: str) -> bool:
        """Whether this node runs such a service."""
        settings = self._node.settings
        return kind_of(service) not in (SHARD, MASTER, SCHEDULER) or any(service in services for services in (
            settings.host_shards, settings.host_masters, settings.host_schedulers))

    def exited(self, event: ServiceExited, now_ns: int) -> list[Any]:
        """A service of this node has ended. If it was a server of the control store, its masters need not wait for
        silence."""
        node = self._node
        effects: list[Any] = []
        if event.pid and kind_of(event.name) == SHARD:
            for name, endpoint in node.settings.masters.items():
                effects += node.to_named(name, endpoint, ServerDied(event.name, event.pid))
        return effects

    # --- names ---------------------------------------------------------------------------------------------------

    def known(self, name: str, endpoint: str) -> list[Any]:
        """A node is there: services that come to run on it are found by its name, as those of seeds are."""
        network = self._node.settings.network
        return [] if network is None or name in network.seeds else [Connect(name, endpoint)]

    def gone(self, name: str) -> list[Any]:
        """A node is gone, and none has come under its name."""
        node = self._node
        network = node.settings.network
        if network is None or name in network.seeds or name in map(node.name_of_node, node.peers):
            return []
        return [Disconnect(name)]

def _of(row: PlaceRow, kind: str) -> dict[str, str]:
    """Return the services of one kind, in their order: name -> endpoint."""
    return {service: endpoint for service, (_, endpoint) in row.services.items() if kind_of(service) == kind}


def _endpoint(name: str, endpoint: str, service: str) -> str:
    """Return where a service of the node ``name`` is reached, which itself is at ``endpoint``."""
    if endpoint.startswith("ipc://"):
        return f"{home_of(endpoint)}/{service}.sock"
    return str(Via(name, service))
