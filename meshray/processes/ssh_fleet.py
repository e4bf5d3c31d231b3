"""All hosts of one run of ``up`` or ``down``: a thread each, phase after phase, reported as they go.

*Shell (threads, files).* Runs in the command line.

1. A host that failed takes part in no later phase. Unless the fleet keeps going, its failure stops the others too.
2. An interruption stops every wait at once; ``again`` makes the fleet usable for cleaning up.
3. When the fleet is closed, every connection is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType

import msgspec

from meshray.cluster_schema import ClusterConfig
from meshray.errors import HostError, MeshrayError
from meshray.processes.ssh_connection import Interrupted
from meshray.processes.ssh_host import Host
from meshray.processes.ssh_plan import HostRecord

_THREADS_MAX = 64
_LOOK_S = 0.2


class Progress(msgspec.Struct, frozen=True):
    """News of a host's phase. ``state``: begun, done, failed or stopped; ``words``: the end of its standard error."""

    host: str
    phase: str
    state: str
    text: str = ""
    seconds: float = 0.0
    words: list[str] = []


Report = Callable[[Progress], None]
Phase = tuple[str, Callable[[Host], str | None]]
"""The name of a phase, and what it does on a host; it may return what is worth telling."""


class Fleet:
    """Hosts and their connections. Use it in ``with``."""

    def __init__(self, cluster: ClusterConfig, report: Report, *, keep_going: bool) -> None:
        self.cluster = cluster
        self.failed: dict[str, HostError] = {}
        self._report = report
        self._keep_going = keep_going
        self._stop = threading.Event()
        self._hosts: list[Host] = []
        # Short, because OpenSSH appends to the path of a socket; private, because whoever can open it is logged in.
        self._directory = tempfile.mkdtemp(prefix="mrs-", dir="/tmp")

    def hosts(self, records: Iterable[HostRecord]) -> list[Host]:
        """Return hosts for these records, not yet connected."""
        found = []
        for record in records:
            found.append(Host(self.cluster, record, os.path.join(self._directory, str(len(self._hosts))), self._stop))
            self._hosts.append(found[-1])
        return found

    def good(self, hosts: Iterable[Host]) -> list[Host]:
        """Return those that have not failed."""
        return [host for host in hosts if host.name not in self.failed]

    def run(self, hosts: Sequence[Host], *phases: Phase) -> None:
        """Run phases on hosts, each host at its own speed. Raise HostError when one fails, unless it keeps going."""
        hosts = self.good(hosts)
        if not hosts:
            return
        with ThreadPoolExecutor(min(len(hosts), _THREADS_MAX)) as pool:
            futures = [pool.submit(self._run_on, host, phases) for host in hosts]
            try:
                while wait(futures, timeout=_LOOK_S).not_done:
                    continue
            except BaseException:
                self._stop.set()
                raise
        for future in futures:
            future.result()
        if self.failed and not self._keep_going:
            raise next(iter(self.failed.values()))

    def _run_on(self, host: Host, phases: tuple[Phase, ...]) -> None:
        for name, work in phases:
            began = time.monotonic()
            self._report(Progress(host.name, name, "begun"))
            try:
                text = work(host) or ""
            except Interrupted:
                self._report(Progress(host.name, name, "stopped", seconds=time.monotonic() - began))
                return
            except (MeshrayError, OSError) as error:
                found = error if isinstance(error, HostError) else HostError(str(error))
                self.fail(host.name, name, found, time.monotonic() - began)
                return
            self._report(Progress(host.name, name, "done", text, time.monotonic() - began))

    def fail(self, host: str, phase: str, error: HostError, seconds: float = 0.0) -> None:
        """Note that a host failed, and stop the others unless the fleet keeps going."""
        self.failed[host] = error
        self._report(Progress(host, phase, "failed", str(error), seconds, error.words))
        if not self._keep_going:
            self._stop.set()

    def again(self) -> None:
        """Be usable after a failure or an interruption, to clean up: failures are forgotten, connections renewed."""
        self.failed = {}
        self._keep_going = True
        self._stop.clear()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._stop.set()
        for host in self._hosts:
            host.close()
        shutil.rmtree(self._directory, ignore_errors=True)
