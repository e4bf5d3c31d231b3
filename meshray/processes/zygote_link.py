"""The node's end of the zygote's pipe: workers are ordered here, and heard of here.

*Shell (pipe, pidfd).* Runs in the node process.

1. Every worker that was ordered is heard of again: it started and ended, or it could not be started; also when the
   zygote died, which takes its workers along (``birth.die_with_parent``).
2. A worker's last lines are read before its end is told.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from typing import Any

from meshray.processes.node_events import WorkerExited, WorkerForked, WorkerForkFailed
from meshray.processes.worker_logs import WorkerLogs

_PACKET_MAX = 65_536
_LOST = "the zygote of this node has ended and is started again"
_END_WAIT_S = 2.0


class ZygoteLink:
    """The pipe to the zygote there is now, and what was ordered of it."""

    def __init__(self, control: socket.socket, logs: WorkerLogs) -> None:
        """``control`` is our end of the pipe."""
        self._logs = logs
        self._ordered: set[str] = set()
        self._workers: dict[str, int] = {}
        self._control: socket.socket | None = control

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is news; -1 after the zygote died."""
        return -1 if self._control is None else self._control.fileno()

    def reconnect(self) -> tuple[list[Any], socket.socket]:
        """Make a new pipe. Return what became of the old zygote's workers, and the end that the new zygote gets."""
        events = self._lost()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        return events, theirs

    def fork(self, name: str) -> list[Any]:
        """Order a worker."""
        if not self._order({"fork": name}):
            return [WorkerForkFailed(name, _LOST)]
        self._ordered.add(name)
        return []

    def kill(self, name: str) -> None:
        """Have a worker killed. When the zygote is gone, so are its workers."""
        self._order({"kill": name})

    def _order(self, command: dict[str, str]) -> bool:
        if self._control is None:
            return False
        try:
            self._control.send(json.dumps(command).encode())
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def read(self) -> list[Any]:
        """Return the news there is."""
        events: list[Any] = []
        while self._control is not None and select.select([self._control], [], [], 0)[0]:
            try:
                packet = self._control.recv(_PACKET_MAX)
            except ConnectionResetError:
                continue  # it died with orders unread: what it said before that comes next, then the end
            events += self._lost() if not packet else self._fact(json.loads(packet))
        return events

    def _fact(self, fact: dict[str, Any]) -> list[Any]:
        if "started" in fact:
            name = fact["started"]
            self._ordered.discard(name)
            self._workers[name] = fact["pid"]
            self._logs.follow(name)
            return [WorkerForked(name, fact["pid"])]
        if "failed" in fact:
            self._ordered.discard(fact["failed"])
            return [WorkerForkFailed(fact["failed"], fact["reason"])]
        return self._exited(fact["exited"], fact["code"], fact["signal"])

    def _exited(self, name: str, code: int, number: int) -> list[Any]:
        pid = self._workers.pop(name, 0)
        lines, tail = self._logs.finish(name)
        return [*lines, WorkerExited(name, pid, code, number, tail)]

    def _lost(self) -> list[Any]:
        """The zygote is gone: tell the end of all that was ordered of it."""
        self.close()
        events: list[Any] = [WorkerForkFailed(name, _LOST) for name in sorted(self._ordered)]
        self._ordered.clear()
        for name, pid in list(self._workers.items()):
            _wait_end(pid)
            events += self._exited(name, 0, signal.SIGKILL)
        return events

    def close(self) -> None:
        """Close our end: the zygote kills its workers and ends. Twice is a no-op."""
        if self._control is not None:
            self._control.close()
            self._control = None


def _wait_end(pid: int) -> None:
    """Wait until an orphaned worker, which the kernel kills just now, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([fd], [], [], _END_WAIT_S)
    finally:
        os.close(fd)
