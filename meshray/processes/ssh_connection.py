"""A connection to one host: one OpenSSH process that is logged in, and sessions over it.

*Shell (subprocess, pipes).* Runs in ``meshray up`` and its kin, one thread per host.

1. All sessions of a host share one connection, which lasts as long as this process at the longest: the host's end waits
   for our word on a pipe, so not even SIGKILL leaves it behind.
2. Every wait has a deadline, and ends at once when the user interrupts.
3. OpenSSH is in a session of its own, so a Ctrl-C in the terminal reaches us and not the connection that cleans up.
4. What a host writes to standard error is kept, the last lines of it, for the error.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

from meshray import config
from meshray.cluster_schema import NodeSpec
from meshray.errors import HostError
from meshray.processes.ssh_words import advice_for, ssh_command

CLIENT_VARIABLE = "MESHRAY_SSH"
"""The OpenSSH client with options, as GIT_SSH_COMMAND for git: ``ssh -F my_config``."""

_CONNECTED = b"meshray-connected"
_GREETING = f"echo {_CONNECTED.decode()}; exec cat > /dev/null"
_SLICE_S = 0.2
_BLOCK_BYTES = 256 * config.KIB


class Interrupted(Exception):
    """The user interrupted, or another host failed, so this one stops too."""


class Connection:
    """The logged-in connection to a node's host. ``stop`` ends every wait when it is set."""

    def __init__(self, node: NodeSpec, control: str, stop: threading.Event) -> None:
        """``control``: a short path in a private directory."""
        self.node = node
        self.stop = stop
        self._control = control
        self._master: Session | None = None

    def open(self, timeout_s: float) -> None:
        """Log in. Raise HostError with what OpenSSH said and what to do."""
        command = [*self._command(master=True, timeout_s=timeout_s), _GREETING]
        self._master = Session(command, self, timeout_s, what="to log in")
        for line in self._master.lines():
            if line.strip() == _CONNECTED:
                return
        raise self._master.failure()

    def run(self, command: str, *, timeout_s: float, what: str = "") -> Session:
        """Start a command on the host. Use the session in ``with``."""
        assert self._master is not None, "open comes first"
        return Session([*self._command(master=False, timeout_s=timeout_s), command], self, timeout_s, what=what)

    def _command(self, *, master: bool, timeout_s: float) -> list[str]:
        client = os.environ.get(CLIENT_VARIABLE) or "ssh"
        return ssh_command(client, self.node, control=self._control, master=master, timeout_s=timeout_s)

    def close(self) -> None:
        """Log out. Twice is a no-op."""
        if self._master is not None:
            self._master.close()
            self._master = None


class Session:
    """One command on a host: bytes to it, lines from it, until a deadline."""

    def __init__(self, command: list[str], connection: Connection, timeout_s: float, *, what: str) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._what = what
        self._deadline = time.monotonic() + timeout_s
        self.errors: deque[str] = deque(maxlen=config.STDERR_TAIL_LINES)
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise HostError(f"cannot run {command[0]}: {error.strerror}. Install openssh-client, or name the client in "
                            f"{CLIENT_VARIABLE}") from error
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._rest = {1: b"", 2: b""}

    def send(self, data: bytes | memoryview) -> None:
        """Write to the command's standard input. One that has ended takes nothing: its last lines say why."""
        assert self._process.stdin is not None
        fd, view = self._process.stdin.fileno(), memoryview(data)
        while len(view):
            self._wait([], [fd])
            try:
                view = view[os.write(fd, view[:_BLOCK_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that the command writes, until it ends."""
        assert self._process.stdout is not None and self._process.stderr is not None
        streams = {self._process.stdout.fileno(): 1, self._process.stderr.fileno(): 2}
        while streams:
            for fd in self._wait(list(streams), []):
                try:
                    data = os.read(fd, _BLOCK_BYTES)
                except BlockingIOError:
                    continue
                number = streams[fd]
                if not data:
                    del streams[fd]
                    data = b"\n" if self._rest[number] else b""
                *whole, self._rest[number] = (self._rest[number] + data).split(b"\n")
                if number == 1:
                    yield from whole
                else:
                    self.errors.extend(line.decode(errors="replace").rstrip() for line in whole if line.strip())

    def _wait(self, read: list[int], write: list[int]) -> list[int]:
        while True:
            if self._connection.stop.is_set():
                raise Interrupted
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise self._late()
            readable, writable, _ = select.select(read, write, [], min(left_s, _SLICE_S))
            if readable or writable:
                return readable

    def _late(self) -> HostError:
        self._drain_errors()
        return HostError(f"it took longer than {self._timeout_s:g} s {self._what}".rstrip(), list(self.errors))

    def _drain_errors(self) -> None:
        assert self._process.stderr is not None
        with suppress(OSError):
            data = self._rest[2] + os.read(self._process.stderr.fileno(), _BLOCK_BYTES)
            self.errors.extend(line for line in data.decode(errors="replace").splitlines() if line.strip())

    def status(self) -> int:
        """Return the exit status of a command whose lines have all been read; 255 is OpenSSH's own."""
        try:
            return self._process.wait(max(0.0, self._deadline - time.monotonic()) + 1.0)
        except subprocess.TimeoutExpired:
            raise self._late() from None

    def failure(self) -> HostError:
        """Return the error of a command that ended without the answer that was waited for."""
        status = self.status()
        host, words = self._connection.node.host, list(self.errors)
        # Who is told knows the name of the node.
        of_host = "" if host == self._connection.node.name else f"{host}: "
        if status == 255:
            said = words[-1] if words else "OpenSSH said nothing"
            advice = advice_for("\n".join(words), host)
            return HostError(f"{of_host}{advice or said}", words)
        if status in (126, 127):
            return HostError(f"{of_host}its Python could not be run: install Python 3.11 or later there, or name it "
                             "with python in the cluster file", words)
        return HostError(f"{of_host}the command {self._what} ended with exit code {status}", words)

    def close(self) -> None:
        """Let the command end: its standard input ends now; then OpenSSH itself is ended. Twice is a no-op."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()
