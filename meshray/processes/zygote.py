"""The zygote: a pre-imported Python from which workers are forked in milliseconds.

*Shell (fork).* Runs as one process per node, child of the node process.

1. It has one thread, no ZeroMQ context and no LMDB environment, ever.
2. It is its workers' parent, so it alone learns how they ended, and at once. It says so to the node.
3. When the node goes (its end of the pipe closes), the workers are killed and the zygote ends.

Dialog on a SOCK_SEQPACKET pair, JSON::

    node   -> zygote   {"fork": name}            -> {"started": name, "pid": pid} | {"failed": name, "reason": text}
    node   -> zygote   {"kill": name}            SIGKILL, safe against reuse of pids: only a living child is hit
    zygote -> node     {"exited": name, "pid": pid, "code": n, "signal": n}
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from meshray.processes.birth import fork

_PACKET_MAX = 65_536


class Zygote:
    """Forks workers on command and reports how they end."""

    def __init__(self, control: socket.socket, log_dir: str, run_worker: Callable[[str], object],
                 preload: Sequence[str] = ()) -> None:
        """``run_worker(name)`` is what a forked worker runs; ``preload`` are modules that workers shall share."""
        self._control = control
        self._log_dir = log_dir
        self._run_worker = run_worker
        self._children: dict[int, str] = {}
        self._preload = preload

    def run(self) -> None:
        """Serve until the node closes its end."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for module in self._preload:
            with suppress(ImportError):
                importlib.import_module(module)
        gc.collect()
        gc.freeze()
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(reader, select.POLLIN)
        while True:
            poller.poll(1000)
            _drain(reader)
            self._reap()
            if not self._serve():
                break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _serve(self) -> bool:
        while select.select([self._control], [], [], 0)[0]:
            try:
                packet = self._control.recv(_PACKET_MAX)
            except ConnectionResetError:  # the node has gone without reading all that we said
                packet = b""
            if not packet:
                return False
            command = json.loads(packet)
            if "fork" in command:
                self._fork(command["fork"])
            elif "kill" in command:
                for pid, name in self._children.items():
                    if name == command["kill"]:
                        os.kill(pid, signal.SIGKILL)
        return True

    def _fork(self, name: str) -> None:
        def run() -> None:
            self._control.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._run_worker(name)

        try:
            pid = fork(f"meshray:{name}", self._log_dir, name, run)
        except OSError as error:
            self._say({"failed": name, "reason": f"cannot fork: {error.strerror}"})
            return
        self._children[pid] = name
        self._say({"started": name, "pid": pid})

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            name = self._children.pop(pid, None)
            if name is not None:
                self._say({"exited": name, "pid": pid, "code": os.waitstatus_to_exitcode(status) if
                           os.WIFEXITED(status) else 0, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0})

    def _say(self, fact: dict[str, object]) -> None:
        try:
            self._control.send(json.dumps(fact).encode())
        except (BrokenPipeError, ConnectionResetError):  # the node has gone: the next turn ends us
            return


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            continue
    except BlockingIOError:
        return
