"""The service processes of a node: watched, started again, ended.

*Shell (posix_spawn, wait, signals).* Runs in the node process.

1. Every child of the node process is reaped here. Orphans of a zygote that died are adopted, so they are reaped too.
2. A service is started by spawning a new Python: this process has threads and a ZeroMQ context, so it cannot fork.
3. The services inherit this process's group, by which ``launch.stop_nodes`` finds them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress

import msgspec

from meshray import config
from meshray.node_config import NodeConfig
from meshray.processes import birth, service
from meshray.processes.node_events import ServiceExited

log = logging.getLogger("meshray.node")

_PATIENCE_NS = 3 * config.SECOND_NS


class Services:
    """The living services of one node."""

    def __init__(self, settings: NodeConfig, pids: dict[int, str]) -> None:
        """``pids`` are the services that ``boot`` forked: pid -> name."""
        self._settings = settings
        self._names = pids
        self._leaving: set[int] = set()
        self._log_dir = os.path.join(settings.run_dir, "logs")
        birth.adopt_orphans()

    def pids(self) -> dict[str, int]:
        """Return name -> pid of the services that run."""
        return {name: pid for pid, name in self._names.items()}

    def reap(self) -> list[ServiceExited]:
        """Return what has ended since the last look."""
        events = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            name = self._names.pop(pid, "")
            if name:
                reason = f"pid {pid} {birth.how_it_ended(status)}; see {self._log_dir}/{name}.err"
                log.warning("%s has ended: %s", name, reason)
                if pid in self._leaving:
                    self._leaving.discard(pid)
                    self._remove_disk(name)
                events.append(ServiceExited(name, reason, pid))
        return events

    def start(self, name: str, control: socket.socket | None = None) -> None:
        """Start a service again; ``control`` is the zygote's end of its pipe. Raise OSError."""
        descriptor = os.memfd_create("node-config", os.MFD_CLOEXEC)
        opened = [descriptor]
        try:
            # A disk that is empty now has been lost, whatever it was when the cluster began.
            os.write(descriptor, msgspec.json.encode(msgspec.structs.replace(self._settings, founding=False)))
            os.lseek(descriptor, 0, os.SEEK_SET)
            actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, descriptor, 0)]
            if control is not None:
                # A copy above 3, so that the copy to 3 in the child is one, and loses its close-on-exec.
                opened.append(fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, service.CONTROL_FD + 1))
                actions.append((os.POSIX_SPAWN_DUP2, opened[-1], service.CONTROL_FD))
            command = (sys.executable, "-P", "-m", "meshray.processes.service", name, str(os.getpid()))
            pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions, setsigmask=(),
                                 setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD))
        finally:
            for fd in opened:
                os.close(fd)
        self._names[pid] = name
        log.info("%s starts again as pid %d", name, pid)

    def stop(self, name: str) -> None:
        """End a service for good; when it has ended, what it has on the disk goes."""
        pid = self.pids().get(name)
        if pid is None:
            self._remove_disk(name)
            return
        log.info("%s (pid %d) runs here no longer", name, pid)
        self._leaving.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def _remove_disk(self, name: str) -> None:
        shutil.rmtree(service.disk_of(self._settings, name), ignore_errors=True)

    def close(self) -> None:
        """End all services in good order; kill those that take too long."""
        for pid, name in self._names.items():
            if name != service.ZYGOTE:  # the zygote ends with its pipe, after it has reaped the workers
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        deadline_ns = time.monotonic_ns() + _PATIENCE_NS
        for pid, name in self._names.items():
            if not _ended(pid, deadline_ns):
                log.warning("%s (pid %d) did not end in time and is killed", name, pid)
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._names.clear()


def _ended(pid: int, deadline_ns: int) -> bool:
    """Wait for a child to end, without reaping it; False if it has not by the deadline."""
    fd = os.pidfd_open(pid)
    try:
        left_ns = max(0, deadline_ns - time.monotonic_ns())
        return bool(select.select([fd], [], [], left_ns / config.SECOND_NS)[0])
    finally:
        os.close(fd)
