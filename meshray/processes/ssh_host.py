"""The phases of one host: log in, look at it, copy, install, start its node, wait for it, end it.

*Shell (subprocess, files).* Runs in ``meshray up`` and ``down``, one thread per host; ``ssh_fleet`` runs them and
``ssh_cluster`` decides the order.

1. Until meshray is on the host, ``host_bootstrap`` is sent there as text; afterwards ``host_agent`` runs there.
2. Only public keys cross the network.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tarfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from meshray.cluster_schema import ClusterConfig, NodeSpec
from meshray.errors import HostError
from meshray.processes import host_bootstrap
from meshray.processes.host_plan import (
    Allow,
    AnyEvent,
    Await,
    Describe,
    Described,
    Done,
    Event,
    Failed,
    File,
    Install,
    Key,
    Keys,
    NodeRequest,
    Probe,
    Probed,
    Request,
    Running,
    Start,
    Started,
    Status,
    Stop,
    Stopped,
    Sync,
    Wants,
)
from meshray.processes.replacement import Places
from meshray.processes.ssh_connection import Connection, Session
from meshray.processes.ssh_plan import HostRecord, seconds_for
from meshray.processes.ssh_words import python_command
from meshray.transport.endpoints import Tcp, parse

_LOADER = ("import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or later is needed, this is '"
           " + sys.version.split()[0]); sys.path[:1] = []; source = sys.stdin.buffer; size = int(source.readline()); "
           "exec(compile(source.read(size), 'host_bootstrap.py', 'exec'))")
_COMMAND_LINE = ("import os, sys; os.environ['MESHRAY_RUN_ROOT'] = sys.argv.pop(1); "
                 "from meshray.cli.main import main; main(prog_name='meshray')")
_COMMAND_S = 86400.0
"""A command that follows logs ends when the user ends it."""
_BLOCK_BYTES = 1024 * 1024
_WAIT_MORE_S = 5.0
"""An agent has its own deadline; ours is so much later, so that its error, which says more, comes first."""

Answer = TypeVar("Answer", bound=Event)
Asked = TypeVar("Asked", bound=NodeRequest)
Sources = dict[str, str]
"""Target on the hosts -> file here."""


class Host:
    """One host of a cluster on its way up or down."""

    def __init__(self, cluster: ClusterConfig, record: HostRecord, control: str, stop: threading.Event) -> None:
        self.cluster = cluster
        self.record = record
        self.connection = Connection(record.spec, control, stop)
        self.places: Places | None = None
        """Where services run now, as its node has written it down."""
        self.has_state = False
        """Whether disks of the control store lie there from an earlier life of the cluster."""

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.record.spec.name

    def _seconds(self, phase: str) -> float:
        return seconds_for(self.cluster, phase)

    def connect(self) -> None:
        """Log in."""
        self.connection.open(self._seconds("connect"))

    def probe(self, request: Probe) -> Probed:
        """Look at the host. Raise HostError with all that is in the way."""
        with self._bootstrap(request, "probe") as session:
            found = self._answer(session, Probed)
        if found.problems:
            raise HostError("\n".join(found.problems))
        self.record.state_dir, self.record.run_root = found.state_dir, found.run_root
        self.record.python = (os.path.join(found.environment, "bin", "python") if found.environment and not found.fits
                              else found.python)
        self.record.address = self.record.spec.bind or found.address
        return found

    def sync(self, sources: Sources, files: list[File]) -> str:
        """Run the commands that come before everything, then copy what is missing; return what was done."""
        if self.cluster.initialization_commands:
            self._run_commands(Install(attached=True, commands=self.cluster.initialization_commands), "sync")
        if not files:
            return "nothing to copy"
        with self._bootstrap(Sync(files=files), "sync") as session:
            answers = self._events(session)
            wanted = self._next(answers, session, Wants).files
            if wanted:
                for block in _tar([(index, sources[files[index].target]) for index in wanted]):
                    session.send(block)
            return self._next(answers, session, Done).text

    def install(self, request: Install) -> None:
        """Install meshray where it is missing, and run the setup commands."""
        if not request.wheel and not request.commands:
            return
        done = self._run_commands(request, "install")
        if done.python:
            self.record.python = done.python

    def make_keys(self) -> None:
        """Have a key pair on the host; its public half comes here."""
        record = self.record
        # A node that starts again is known at its port.
        earlier = port_of(record.control) if record.control else 0
        request = self._request(Keys, bind=record.address, control_port=record.spec.control_port or earlier)
        key = self._agent(request, Key, "install")
        host = record.spec.advertise or record.address
        record.public, self.has_state, self.places = key.public, key.has_state, key.places
        record.control = str(Tcp(f"[{host}]" if ":" in host else host, key.control_port, key.public))

    def start(self, request: Start) -> None:
        """Start the node."""
        started = self._agent(request, Started, "start", more_s=_WAIT_MORE_S)
        self.record.control, self.record.endpoint, self.record.started = started.control, started.endpoint, True

    def wait_for(self, names: list[str], phase: str) -> None:
        """Wait until the node of this host knows these nodes."""
        self._agent(self._request(Await, names=names, timeout_s=self._seconds(phase)), Done, phase, more_s=_WAIT_MORE_S)

    def is_running(self) -> bool:
        """Whether the node runs."""
        running = self._agent(self._request(Status), Running, "probe")
        self.places = running.places if running.alive else None
        return running.alive

    def describe(self, topics: list[str], limit: int) -> Described:
        """Ask the node about the cluster."""
        return self._agent(self._request(Describe, topics=topics, limit=limit), Described, "healthy")

    def command(self, arguments: list[str]) -> Iterator[bytes]:
        """Run ``meshray`` with these arguments on the host; yield what it prints. Raise HostError when it fails."""
        run = ["-c", _COMMAND_LINE, self.record.run_root, *arguments]
        with self.connection.run(self._python("-P", *run), timeout_s=_COMMAND_S,
                                 what="of meshray") as session:
            yield from session.lines()
            if session.status() != 0:
                raise HostError("\n".join(session.errors) or f"meshray {' '.join(arguments)} failed there")

    def allow(self, keys: dict[str, str], state: str, *, until_wall_ns: int = 0) -> None:
        """Let the owners of these keys into the cluster (until then, if a time is given), or no longer."""
        self._agent(self._request(Allow, keys=keys, state=state, until_wall_ns=until_wall_ns), Done, "join")

    def end(self, *, forget: bool, reason: str) -> bool:
        """End the node with all that it leaves; False if nothing was there. Raise HostError for what stays."""
        stopped = self._agent(self._request(Stop, forget=forget, reason=reason), Stopped, "stop")
        if stopped.left:
            raise HostError(f"left behind: {', '.join(stopped.left)}")
        return stopped.found

    def request_start(self, *, founders: list[str], founding: bool, has_past: bool, life: str,
                      allowed: dict[str, str], seeds: dict[str, str], places: Places | None) -> Start:
        """Return the request that starts this host's node."""
        spec, cluster = self.record.spec, self.cluster
        return self._request(
            Start, spec=spec, founders=founders, founding=founding, keep_state=cluster.keep_state, has_past=has_past,
            life=life, bind=self.record.address,
            advertise=spec.advertise or self.record.address, control_port=port_of(self.record.control),
            allowed=allowed, seeds=seeds, bulk_encryption=cluster.provider.bulk_encryption,
            shards=cluster.shards, replicas=cluster.replicas, replace_after=cluster.replace_after,
            schedulers=cluster.schedulers, locality=cluster.locality, durability=cluster.durability,
            retention=cluster.retention, places=places,
            configuration=msgspec.json.encode(cluster).decode(), timeout_s=self._seconds("start"))

    def close(self) -> None:
        """Log out."""
        self.connection.close()

    def _request(self, kind: type[Asked], **more: Any) -> Asked:
        return kind(attached=True, cluster=self.cluster.cluster_name, node=self.name, run_root=self.record.run_root,
                    state_dir=self.record.state_dir, **more)

    def _run_commands(self, request: Install, phase: str) -> Done:
        with self._bootstrap(request, phase) as session:
            return self._answer(session, Done)

    def _python(self, *arguments: str) -> str:
        return python_command(self.record.python, self.record.spec.environment, *arguments)

    def _agent(self, request: Request, kind: type[Answer], phase: str, *, more_s: float = 0.0) -> Answer:
        command = self._python("-P", "-m", "meshray.processes.host_agent")
        timeout_s = self._seconds(phase) + more_s
        with self.connection.run(command, timeout_s=timeout_s, what=f"in phase {phase}") as session:
            session.send(msgspec.json.encode(request) + b"\n")
            return self._answer(session, kind)

    @contextmanager
    def _bootstrap(self, request: Request, phase: str) -> Iterator[Session]:
        script = (inspect.getsource(host_bootstrap) + "\nmain()\n").encode()
        command = python_command(self.record.spec.python, self.record.spec.environment, "-c", _LOADER)
        with self.connection.run(command, timeout_s=self._seconds(phase), what=f"in phase {phase}") as session:
            session.send(b"%d\n%b%b\n" % (len(script), script, msgspec.json.encode(request)))
            yield session

    def _answer(self, session: Session, kind: type[Answer]) -> Answer:
        return self._next(self._events(session), session, kind)

    def _events(self, session: Session) -> Iterator[Event]:
        """Yield what the host tells; whatever else its shell prints is passed over."""
        for line in session.lines():
            if line.startswith(b'{"event"'):
                yield msgspec.json.decode(line, type=AnyEvent)

    def _next(self, answers: Iterator[Event], session: Session, kind: type[Answer]) -> Answer:
        event = next(answers, None)
        if isinstance(event, Failed):
            for _ in answers:
                continue
            raise HostError(event.text, list(session.errors))
        if event is None:
            raise session.failure()
        assert isinstance(event, kind), f"{event} answers no request for {kind.__name__}"
        return event


def port_of(control: str) -> int:
    """Return the port of a node's endpoint."""
    endpoint = parse(control)
    assert isinstance(endpoint, Tcp)
    return endpoint.port


def file_of(source: str, target: str) -> File:
    """Return what a host should have at ``target``, which is like ``source`` here."""
    with open(source, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    status = os.stat(source)
    return File(target=target, size=status.st_size, digest=digest, mode=status.st_mode & 0o777)


def sources_of(mounts: dict[str, str]) -> Sources:
    """Return every file that the mounts mean: target -> file here."""
    found: Sources = {}
    for target, source in mounts.items():
        if os.path.isdir(source):
            found |= {os.path.join(target, relative): path for path, relative in host_bootstrap.files_below(source)}
        else:
            found[target] = source
    return found


def _tar(files: Iterable[tuple[int, str]]) -> Iterator[bytes]:
    """Yield a tar stream of these files, called by their numbers."""
    total = 0
    for block in _tar_blocks(files):
        total += len(block)
        yield block
    # Whoever reads the stream asks for whole records, and our end stays open.
    yield bytes(-total % tarfile.RECORDSIZE)


def _tar_blocks(files: Iterable[tuple[int, str]]) -> Iterator[bytes]:
    for index, path in files:
        with open(path, "rb") as opened:
            member = tarfile.TarInfo(str(index))
            member.size = size = os.fstat(opened.fileno()).st_size
            yield member.tobuf()
            while size > 0:
                # A file that shrinks meanwhile is filled up; its digest tells the host.
                block = opened.read(min(size, _BLOCK_BYTES)) or bytes(min(size, _BLOCK_BYTES))
                size -= len(block)
                yield block
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def records_of(nodes: list[NodeSpec]) -> list[HostRecord]:
    """Return empty records of nodes that are to be started."""
    return [HostRecord(spec=node, python=node.python, run_root="", state_dir="") for node in nodes]
