"""The node process: the node's machine with its socket, its arena, its zygote and its workers' files.

*Shell (zmq, shared memory, pipes, pidfd).* Runs as the node process.

1. The node's run directory, arena and children are its own: when it ends they are gone.
2. Drivers are watched by pidfd: a driver that was killed is known at once, whatever its sockets say.
3. SIGTERM ends the node in good order; when it is killed, the kernel kills its children (``birth.die_with_parent``).
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

from meshray import config
from meshray.gcs.client import GcsClient
from meshray.ids import process_name
from meshray.machine import Received
from meshray.messages.state import StopCluster
from meshray.node_config import NodeConfig
from meshray.processes.node import NodeMachine
from meshray.processes.node_events import (
    DriverExited,
    ForkWorker,
    KillWorker,
    ServiceExited,
    WatchDriver,
    WorkerExited,
    WorkerForked,
    WorkerForkFailed,
)
from meshray.processes.worker_logs import WorkerLogs
from meshray.resources import UNITS_PER_ONE
from meshray.sched.local import LocalScheduler
from meshray.store.arena_file import ArenaFile
from meshray.store.background import Background
from meshray.store.events import DigestObject, PopulateRange, WriteRange
from meshray.store.service import StoreService
from meshray.transport.host import Host
from meshray.transport.sockets import Peers, ipc_endpoint

log = logging.getLogger("meshray.node")

_PACKET_MAX = 65_536
_SERVICE_PATIENCE_NS = 3 * config.SECOND_NS


class NodeProcess:
    """Everything around one node's machine."""

    def __init__(self, settings: NodeConfig, node: str, zygote: socket.socket, services: dict[int, str]) -> None:
        """``zygote`` is our end of its pipe; ``services`` are the other children: pid -> name."""
        self.settings = settings
        self.node = node
        self._zygote = zygote
        self._services = services
        self._log_dir = os.path.join(settings.run_dir, "logs")
        self._drivers: dict[int, tuple[str, int]] = {}
        self._next_look_ns = 0
        self._signals: list[int] = []
        self.arena = ArenaFile.create(settings.arena_path, settings.object_store_bytes)
        self._background = Background(self.arena)
        self._logs = WorkerLogs(self._log_dir)
        self.peers = Peers(node, ipc_endpoint(settings.run_dir, "node.sock"))
        self.machine = self._make_machine()
        self.host = Host(
            self.machine, self.peers,
            perform={ForkWorker: self._fork_worker, KillWorker: self._kill_worker, WatchDriver: self._watch_driver,
                     DigestObject: self._background.submit, PopulateRange: self._background.submit,
                     WriteRange: self._write_range},
            sources={zygote.fileno(): self._zygote_events, self._background.fd: self._background.drain})

    def _make_machine(self) -> NodeMachine:
        settings = self.settings
        total = {name: int(amount * UNITS_PER_ONE) for name, amount in settings.resources.items()}
        scheduler = LocalScheduler(self.node, settings.node_name, self.peers.endpoint, total,
                                   schedulers=settings.schedulers, prestart=settings.prestart_workers, pid=os.getpid())
        store = StoreService(settings.object_store_bytes, self.node, read=self.arena.view,
                             resolve_node=lambda name: self.machine.peers.get(name))
        gcs = GcsClient(process_name("client", os.urandom(8)), settings.shards)
        return NodeMachine(settings, self.node, self.peers.endpoint, entropy=lambda: os.urandom(8),
                           scheduler=scheduler, store=store, gcs=gcs)

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Serve until the node is told to stop; return the reason."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._signals.append(number))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        host = self.host
        while host.stopped is None:
            host.turn(config.LOG_POLL_NS // config.MILLISECOND_NS)
            now_ns = time.monotonic_ns()
            if now_ns >= self._next_look_ns:
                self._next_look_ns = now_ns + config.LOG_POLL_NS
                self._tell(self._look(), now_ns)
        return host.stopped

    def begin(self) -> None:
        """Do what the machine wants done at the node's birth."""
        now_ns = time.monotonic_ns()
        for module in self.settings.preload:
            self._order({"preload": module})
        self.host.apply(self.machine.begin(now_ns), now_ns)

    def _tell(self, events: Iterable[Any], now_ns: int) -> None:
        effects: list[Any] = []
        for event in events:
            effects += self.machine.handle(event, now_ns)
        self.host.apply(effects, now_ns)

    def _look(self) -> list[Any]:
        events: list[Any] = list(self._logs.read())
        if self._signals:
            events.append(Received(b">nobody", StopCluster(0, "SIGTERM")))
        while self._services:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            name = self._services.pop(pid, "")
            if name:
                events.append(ServiceExited(name, f"pid {pid} ended; see {self._log_dir}/{name}.err"))
        return events

    def close(self) -> None:
        """End the children and remove what is ours."""
        self.peers.close(linger_ms=300)
        self._zygote.close()
        for pid, name in self._services.items():
            if name != "zygote":  # the zygote ends with its pipe, after it has reaped the workers
                _signal(pid, signal.SIGTERM)
        deadline_ns = time.monotonic_ns() + _SERVICE_PATIENCE_NS
        for pid, name in self._services.items():
            if not _ended(pid, deadline_ns):
                log.warning("%s (pid %d) did not end in time and is killed", name, pid)
                _signal(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._background.close()
        self._logs.close()
        self.arena.unlink()
        self.arena.close()

    # --- zygote --------------------------------------------------------------------------------------------------

    def _order(self, command: dict[str, str]) -> None:
        self._zygote.send(json.dumps(command).encode())

    def _fork_worker(self, effect: ForkWorker) -> None:
        self._order({"fork": effect.name})

    def _kill_worker(self, effect: KillWorker) -> None:
        self._order({"kill": effect.name})

    def _zygote_events(self) -> list[Any]:
        events: list[Any] = []
        while select.select([self._zygote], [], [], 0)[0]:
            packet = self._zygote.recv(_PACKET_MAX)
            if not packet:
                events.append(ServiceExited("zygote", f"its pipe is closed; see {self._log_dir}/zygote.err"))
                break
            fact = json.loads(packet)
            if "started" in fact:
                self._logs.follow(fact["started"])
                events.append(WorkerForked(fact["started"], fact["pid"]))
            elif "failed" in fact:
                events.append(WorkerForkFailed(fact["failed"], fact["reason"]))
            else:
                lines, tail = self._logs.finish(fact["exited"])
                events += lines
                events.append(WorkerExited(fact["exited"], fact["pid"], fact["code"], fact["signal"], tail))
        return events

    # --- drivers and arena ---------------------------------------------------------------------------------------

    def _watch_driver(self, effect: WatchDriver) -> list[Any]:
        try:
            fd = os.pidfd_open(effect.pid)
        except ProcessLookupError:
            return [DriverExited(effect.name)]

        def exited() -> list[Any]:
            if not select.select([fd], [], [], 0)[0]:
                return []
            self.host.remove_source(fd)
            os.close(fd)
            return [DriverExited(effect.name)]

        self.host.add_source(fd, exited)
        return []

    def _write_range(self, effect: WriteRange) -> None:
        self.arena.write(effect.offset, effect.data)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _ended(pid: int, deadline_ns: int) -> bool:
    """Wait for a child to end; False if it has not by the deadline."""
    fd = os.pidfd_open(pid)
    try:
        left_s = max(0.0, (deadline_ns - time.monotonic_ns()) / config.SECOND_NS)
        if not select.select([fd], [], [], left_s)[0]:
            return False
        os.waitpid(pid, 0)
        return True
    finally:
        os.close(fd)
