"""The node process: the node's machine with its socket, its arena, its services and its workers' files.

*Shell (zmq, shared memory, pipes, pidfd).* Runs as the node process.

1. The node's run directory, arena and children are its own: when it ends they are gone.
2. Drivers are watched by pidfd: a driver that was killed is known at once, whatever its sockets say.
3. SIGTERM ends the node in good order; when it is killed, the kernel kills its children (``birth.die_with_parent``).
"""

from __future__ import annotations

import logging
import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from meshray import config
from meshray.gcs.client import GcsClient
from meshray.ids import process_name
from meshray.machine import Received
from meshray.messages.state import StopCluster
from meshray.node_config import NodeConfig, NodeFile
from meshray.processes import allocation, places_file, run_dirs, state_dirs, thread_slices
from meshray.processes.key_ring import KeyRing
from meshray.processes.node import NodeMachine
from meshray.processes.node_events import (
    DriverExited,
    ForkWorker,
    GreetNode,
    KeepPlaces,
    KillWorker,
    LogsRead,
    ReadLogs,
    ServiceExited,
    StartService,
    StopService,
    WatchDriver,
)
from meshray.processes.node_keys import SetKey
from meshray.processes.service import ZYGOTE
from meshray.processes.services import Services
from meshray.processes.worker_logs import WorkerLogs
from meshray.processes.zygote_link import ZygoteLink
from meshray.resources import UNITS_PER_ONE
from meshray.sched.local import LocalScheduler
from meshray.store.arena_file import ArenaFile
from meshray.store.background import Background
from meshray.store.bulk import Bulk
from meshray.store.pins import PinBoard
from meshray.store.service import BULK_EFFECTS, DISK_EFFECTS, SLOW_EFFECTS, StoreService
from meshray.store.spill_files import SpillFiles
from meshray.transport.bulk_sockets import BulkSockets
from meshray.transport.endpoints import NODE_PROCESS
from meshray.transport.host import Host
from meshray.transport.links import Links
from meshray.transport.sockets import Peers, Wire, process_endpoint
from meshray.transport.switch import Switch

log = logging.getLogger("meshray.node")


class NodeProcess:
    """Everything around one node's machine."""

    def __init__(self, settings: NodeConfig, node: str, zygote: socket.socket, services: dict[int, str]) -> None:
        """``zygote`` is our end of its pipe; ``services`` are the other children: pid -> name."""
        self.settings = settings
        self.node = node
        self._services = Services(settings, services)
        self._watched: set[int] = set()
        self._next_look_ns = 0
        self._signals: list[int] = []
        self._is_public = False
        self.arena = ArenaFile.create(settings.arena_path, settings.object_store_bytes)
        self._board = PinBoard(self.arena)
        self._spill_files = _open_spill_files(settings)
        self._background = Background(self.arena, prepare=thread_slices.let_others_first)
        self._disk = Background(self.arena, self._spill_files, prepare=thread_slices.let_others_first)
        self._bulk = Bulk(self.arena, self._open_bulk, self._spill_files)
        self._logs = WorkerLogs(os.path.join(settings.run_dir, "logs"))
        self._zygote = ZygoteLink(zygote, self._logs)
        self._ring: KeyRing | None = None
        self.peers, self.control = self._open_peers()
        thread_slices.go_first(int(name) for name in os.listdir("/proc/self/task"))
        self.machine = self._make_machine()
        if self._ring is not None:
            self.machine.keys.rows.update(self._ring.rows)
            self._bulk.start()
        self.host = Host(
            self.machine, self.peers,
            perform={ForkWorker: lambda effect: self._zygote.fork(effect.name),
                     KillWorker: lambda effect: self._zygote.kill(effect.name),
                     KeepPlaces: self._keep_places, StartService: self._start_service,
                     StopService: lambda effect: self._services.stop(effect.name),
                     WatchDriver: self._watch_driver,
                     ReadLogs: lambda effect: [*self._logs.read_all(), LogsRead(effect.driver, effect.node)],
                     **dict.fromkeys(SLOW_EFFECTS, self._background.submit),
                     **dict.fromkeys(DISK_EFFECTS, self._disk.submit),
                     **dict.fromkeys(BULK_EFFECTS, self._bulk.submit), SetKey: self._set_key,
                     GreetNode: lambda effect: self._switch.greet(effect.node)},
            sources={self._zygote.fileno(): self._zygote_events, self._background.fd: self._background.drain,
                     self._disk.fd: self._disk.drain, self._bulk.fd: self._bulk.drain})

    def _open_peers(self) -> tuple[Wire, str]:
        """Return our place in the mesh and our TCP endpoint, if the cluster has a network."""
        settings = self.settings
        local = Peers(self.node, process_endpoint(settings.run_dir, NODE_PROCESS))
        if settings.network is None:
            return local, ""
        try:
            known = (os.path.join(settings.run_dir, "keys.json") if settings.embedded_pid
                     else state_dirs.allow_list_file(settings.cluster, settings.node_name))
            self._ring = KeyRing(settings.network.allowed, known, time.time_ns())
            links = Links(self.node, settings.network, self._ring.allowed)
            self._ring.allowed.when_revoked(links.revoke)
        except BaseException:
            local.close()
            raise
        self._switch = Switch(local, links, node=self.node, node_name=settings.node_name, run_dir=settings.run_dir)
        return self._switch, links.endpoint

    def _open_bulk(self) -> BulkSockets:
        allocation.keep_freed_memory()
        thread_slices.let_others_first()
        allowed = self._ring.allowed if self._ring is not None else None
        return BulkSockets(process_endpoint(self.settings.run_dir, "bulk"), self.settings.network, allowed)

    def _make_machine(self) -> NodeMachine:
        settings = self.settings
        total = {name: int(amount * UNITS_PER_ONE) for name, amount in settings.resources.items()}
        endpoint = self.control or self.peers.endpoint
        scheduler = LocalScheduler(self.node, settings.node_name, endpoint, total,
                                   schedulers=settings.schedulers, prestart=settings.prestart_workers, pid=os.getpid(),
                                   labels=settings.labels, locality=settings.locality)
        store = StoreService(settings.object_store_bytes, self.node,
                             resolve_node=lambda name: self.machine.peers.get(name),
                             nodes=lambda: self.machine.peers, bulk=self._bulk.start,
                             draw=random.Random().randrange, entropy=os.urandom,
                             board=self._board, to_disk=self._spill_files is not None,
                             counters=self._bulk.statistics)
        gcs = GcsClient(process_name("client", os.urandom(8)), settings.shards)
        return NodeMachine(settings, self.node, endpoint, entropy=lambda: os.urandom(8),
                           scheduler=scheduler, store=store, pins=self._board, gcs=gcs, pid=os.getpid())

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self, ready: Callable[[], None]) -> str:
        """Serve until the node is told to stop; return the reason. ``ready`` is called once, when drivers may join."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._signals.append(number))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        host = self.host
        while host.stopped is None:
            if not self._is_public and self.machine.is_ready:
                self._is_public = True
                self.publish()
                ready()
            host.turn(config.LOG_POLL_NS // config.MILLISECOND_NS)
            now_ns = time.monotonic_ns()
            if now_ns >= self._next_look_ns:
                self._next_look_ns = now_ns + config.LOG_POLL_NS
                self.machine.events.wall_offset_ns = time.time_ns() - now_ns
                self._tell(self._look(), now_ns)
        return host.stopped

    def begin(self) -> None:
        """Do what the machine wants done at the node's birth."""
        now_ns = time.monotonic_ns()
        self.machine.events.wall_offset_ns = time.time_ns() - now_ns
        self.host.apply(self.machine.begin(now_ns), now_ns)
        self.watch_services()

    def publish(self) -> None:
        """Write ``node.json``: who we are, and the processes there are now."""
        run_dirs.write_node_file(self.settings.run_dir, NodeFile(
            cluster=self.settings.cluster, node_name=self.settings.node_name, node=self.node, pid=os.getpid(),
            endpoint=self.peers.endpoint, arena_path=self.settings.arena_path,
            pids={**self._services.pids(), "node": os.getpid()}, control=self.control))

    def _tell(self, events: Iterable[Any], now_ns: int) -> None:
        effects: list[Any] = []
        for event in events:
            effects += self.machine.handle(event, now_ns)
        self.host.apply(effects, now_ns)

    def _set_key(self, effect: SetKey) -> None:
        assert self._ring is not None, "only a cluster with a network has keys"
        self._ring.apply(effect.key, effect.row, time.time_ns())

    def _look(self) -> list[Any]:
        if self._ring is not None:
            self._ring.tick(time.time_ns())
        events: list[Any] = list(self._logs.read())
        if self._signals:  # a service that ends now was ended by the same signal, and is not to start again
            return [*events, Received(b">nobody", StopCluster(0, "SIGTERM"))]
        return events + self._reap()

    def _reap(self) -> list[ServiceExited]:
        """Return which services have ended; those that ended for good stand in ``node.json`` no longer."""
        ended = self._services.reap()
        if self._is_public and any(not self.machine.placement.is_here(event.name) for event in ended):
            self.publish()
        return ended

    def close(self) -> None:
        """End the children and remove what is ours."""
        self.peers.close(linger_ms=300)
        self._zygote.close()
        self._services.close()
        self._background.close()
        self._bulk.close()
        self._disk.close()
        if self._spill_files is not None:
            self._spill_files.close()
        self._logs.close()
        self.arena.unlink()
        self._board.close()
        self.arena.close()

    # --- services ------------------------------------------------------------------------------------------------

    def _zygote_events(self) -> list[Any]:
        fd = self._zygote.fileno()
        events = self._zygote.read()
        if self._zygote.fileno() != fd:
            self.host.remove_source(fd)
        return events

    def watch_services(self) -> None:
        """Hear of the end of a service at once: others wait for what it did."""
        for name, pid in self._services.pids().items():
            if name in self.settings.host_shards and pid not in self._watched:
                self._watch(pid, lambda: [] if self._signals else list(self._reap()))

    def _start_service(self, effect: StartService) -> list[Any]:
        events, control = self._new_pipe() if effect.name == ZYGOTE else ([], None)
        try:
            self._services.start(effect.name, control)
        except OSError as error:
            events.append(ServiceExited(effect.name, f"it cannot be started: {error.strerror}"))
        finally:
            if control is not None:
                control.close()
        if self._is_public:
            self.publish()
        self.watch_services()
        return events

    def _keep_places(self, effect: KeepPlaces) -> None:
        try:
            places_file.keep(self.settings, effect.places)
        except OSError as error:  # the table has it; only a start without the table would miss it
            log.warning("where services run cannot be written down: %s", error)

    def _new_pipe(self) -> tuple[list[Any], socket.socket]:
        if self._zygote.fileno() >= 0:
            self.host.remove_source(self._zygote.fileno())
        events, theirs = self._zygote.reconnect()
        self.host.add_source(self._zygote.fileno(), self._zygote_events)
        return events, theirs

    # --- drivers and arena ---------------------------------------------------------------------------------------

    def _watch_driver(self, effect: WatchDriver) -> list[Any]:
        pid = effect.pid
        if pid in self._watched:
            return []
        try:
            self._watch(pid, lambda: [DriverExited(pid)])
        except ProcessLookupError:
            return [DriverExited(pid)]
        return []

    def _watch(self, pid: int, ended: Callable[[], list[Any]]) -> None:
        """Take events from ``ended`` when the process ends. Raise ProcessLookupError if there is none."""
        fd = os.pidfd_open(pid)
        self._watched.add(pid)

        def exited() -> list[Any]:
            if not select.select([fd], [], [], 0)[0]:
                return []
            self.host.remove_source(fd)
            os.close(fd)
            self._watched.discard(pid)
            return ended()

        self.host.add_source(fd, exited)


def _open_spill_files(settings: NodeConfig) -> SpillFiles | None:
    """Open the node's directory for spilled objects; None if it spills nothing."""
    if settings.spill_max_bytes == 0:
        return None
    directory = settings.spill_directory or os.path.join(settings.run_dir, "spill")
    return SpillFiles(directory, settings.spill_max_bytes)
