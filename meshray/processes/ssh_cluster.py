"""Clusters of provider ``ssh``: brought up, changed and taken down from the machine where the command runs.

*Shell (threads, files).* Runs in the command line. What to do is decided by ``ssh_plan``, on one host by ``ssh_host``.

1. Every host has a key pair before any node starts, so each node starts with the public keys of all. Keys of hosts
   that join or leave later are changed in the running cluster.
2. Every port is chosen before any node starts, so each node starts knowing where the control store lies. Those that
   have a part of it start first.
3. An ``up`` that fails or is interrupted takes down what it has started, and nothing else.
4. The record on this machine names every host that may run something, from before it does until it no longer does, or
   until it is given up.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec

from meshray.cluster_schema import ClusterConfig
from meshray.errors import ClusterStartError, HostError
from meshray.messages.keys import ALLOWED, REVOKED
from meshray.processes import own_wheel, ssh_record
from meshray.processes.host_plan import Described, File, Install, Probed
from meshray.processes.replacement import newest
from meshray.processes.ssh_fleet import Fleet, Report
from meshray.processes.ssh_host import Host, Sources, file_of, records_of, sources_of
from meshray.processes.ssh_plan import (
    Change,
    ClusterDiffersError,
    ClusterRecord,
    bearers,
    changes,
    commands_for,
    landmarks,
    probe_of,
    shared_differences,
    take_logins,
)
from meshray.version import __version__

Answer = TypeVar("Answer")
ShowPlan = Callable[[list[Change]], None]


class Up:
    """One run of ``meshray up`` on a cluster of hosts."""

    def __init__(self, cluster: ClusterConfig, fleet: Fleet, directory: str) -> None:
        """``directory``: for the wheel of meshray, should a host need it."""
        self.cluster = cluster
        self.fleet = fleet
        self.digest = own_wheel.own_digest()
        self._directory = directory
        self._probed: dict[str, Probed] = {}
        self._sources: Sources = sources_of(cluster.file_mounts)
        self._files = [file_of(source, target) for target, source in self._sources.items()]
        self._mounts = hashlib.sha256(msgspec.json.encode(self._files)).hexdigest()[:16]
        self._begun: list[Host] = []
        self._before: set[str] = set()
        self._kept: list[Host] = []
        """Hosts whose nodes run, and ran before."""
        self._index = {node.name: index for index, node in enumerate(cluster.nodes)}

    def run(self, show: ShowPlan) -> ClusterRecord:
        """Bring the cluster to what the file says; return its record. Raise ClusterStartError, HostError."""
        record = ssh_record.read(self.cluster.cluster_name)
        known = self._known(record)
        alive = {host.name: running for host, running in known.values()}
        plan = changes(record, self.cluster, self._mounts, alive)
        if record is not None:
            self._before = {host.spec.name for host in record.hosts}
            head = record.hosts[0].spec.name
            if head in self.fleet.failed:
                raise self.fleet.failed[head]
            if not alive[head]:
                raise ClusterStartError(f"the head of cluster {record.cluster} does not run any more: "
                                        f"meshray down {record.cluster}, then up again")
        show(plan)
        if record is not None and all(change.action in ("keep", "away") for change in plan):
            return record
        if record is None:
            record = ClusterRecord(cluster=self.cluster.cluster_name, config=self.cluster, digest=self.digest,
                                   mounts=self._mounts)
        try:
            self._apply(record, plan, {name: host for name, (host, _) in known.items()})
        except BaseException:
            self._undo(record)
            raise
        return record

    def _known(self, record: ClusterRecord | None) -> dict[str, tuple[Host, bool]]:
        """Look at the hosts that are recorded: are their nodes alive?"""
        if record is None:
            return {}
        if not record.complete:
            raise ClusterStartError(f"an earlier up of cluster {record.cluster} did not come to its end: "
                                    f"meshray down {record.cluster} first")
        differences = shared_differences(record, self.cluster, self.digest)
        if differences:
            raise ClusterDiffersError("\n".join(differences))
        if take_logins(record, self.cluster):
            ssh_record.write(record)
        hosts = self.fleet.hosts(record.hosts)
        alive: dict[str, bool] = {}

        def look(host: Host) -> None:
            alive[host.name] = host.is_running()

        self.fleet.run(hosts, ("connect", Host.connect), ("probe", look))
        self._kept = [host for host in self.fleet.good(hosts) if alive[host.name]]
        return {host.name: (host, alive[host.name]) for host in self.fleet.good(hosts)}

    def _apply(self, record: ClusterRecord, plan: list[Change], known: dict[str, Host]) -> None:
        action = {change.name: change.action for change in plan}
        leaving = [host for name, host in known.items() if action[name] in ("stop", "restart")]
        self.fleet.run(leaving, ("stop", lambda host: _end(host, forget=action[host.name] == "stop",
                                                             reason="meshray up of a changed file")))
        ended = {host.name for host in self.fleet.good(leaving)}
        # What runs on a host that is given up is kept out from now on.
        gone = {host.spec.name: host.public for host in record.hosts if action[host.spec.name] == "forget"
                or (action[host.spec.name] == "stop" and host.spec.name in ended)}
        if gone:
            known[record.founders[0]].allow(gone, REVOKED)
        record.hosts = [host for host in record.hosts if host.spec.name not in ended | set(gone)]
        unsure = {host.spec.name for host in record.hosts if host.spec.name in self.fleet.failed}
        fresh = self.fleet.hosts(records_of([node for node in self.cluster.nodes
                                             if action[node.name] in ("start", "restart")]))
        for host in fresh:
            if host.name in known:
                host.record.control = known[host.name].record.control
        changed = [host for name, host in known.items() if action[name] == "update"]
        self.fleet.run(fresh, ("connect", Host.connect), ("probe", self._probe), ("sync", self._sync),
                       ("install", self._install))
        self.fleet.run(changed, ("sync", self._sync), ("install", self._install))
        self._check_machines(fresh)
        head = self.cluster.nodes[0].name
        if head in self.fleet.failed:
            raise self.fleet.failed[head]
        new = {host.name: host.record.public for host in self.fleet.good(fresh) if host.name not in known}
        if known and new:
            known[head].allow(new, ALLOWED)
        self._start(record, self.fleet.good(fresh))
        for host in self._begun:
            if host.name in self.fleet.failed:
                try:
                    _end_anyhow(host)
                except HostError:
                    unsure.add(host.name)
        record.hosts = [host for host in record.hosts
                        if host.spec.name not in self.fleet.failed or host.spec.name in unsure]
        record.config, record.mounts, record.complete = self.cluster, self._mounts, True
        ssh_record.write(record)

    def _probe(self, host: Host) -> str:
        found = self._probed[host.name] = host.probe(probe_of(host.record.spec, version=__version__,
                                                              digest=self.digest))
        return f"{found.python}, {'meshray is there' if found.fits or found.environment else 'meshray is missing'}"

    def _check_machines(self, hosts: list[Host]) -> None:
        """Note what only all probes together show."""
        first: dict[str, str] = {}
        loopback = {host.name: _is_loopback(host.record.address) for host in self.fleet.good(hosts)}
        for host in self.fleet.good(hosts):
            other = first.setdefault(self._probed[host.name].machine, host.name)
            if other != host.name:
                self.fleet.fail(host.name, "probe", HostError(
                    f"{host.record.spec.host} is the machine of {other} too: give each a run_dir of its own"))
            elif not host.record.address:
                self.fleet.fail(host.name, "probe", HostError("it cannot tell its own address: set bind"))
            elif loopback[host.name] and not all(loopback.values()) and not host.record.spec.advertise:
                self.fleet.fail(host.name, "probe", HostError(
                    f"the connection reached it at {host.record.address}, where the other hosts cannot: set bind"))
        if self.fleet.failed:
            self.fleet.run([])

    def _needs_meshray(self, host: Host) -> bool:
        found = self._probed.get(host.name)
        return found is not None and not found.fits and not found.environment

    def _sync(self, host: Host) -> str:
        sources, files = dict(self._sources), list(self._files)
        if self._needs_meshray(host):
            wheel = self._wheel(host)
            sources[wheel.target] = os.path.join(self._directory, os.path.basename(wheel.target))
            files.append(wheel)
        return host.sync(sources, files)

    def _wheel(self, host: Host) -> File:
        path = own_wheel.pack(tempfile.mkdtemp(dir=self._directory))
        name = os.path.basename(path)
        os.replace(path, os.path.join(self._directory, name))
        return file_of(os.path.join(self._directory, name), os.path.join(host.record.state_dir, "wheels", name))

    def _install(self, host: Host) -> str:
        needed = self._needs_meshray(host)
        state_dir = host.record.state_dir
        name = f"meshray-{__version__}-py3-none-any.whl"
        host.install(Install(
            attached=True, wheel=os.path.join(state_dir, "wheels", name) if needed else "",
            venv=os.path.join(state_dir, f"venv-{self.digest}"),
            commands=commands_for(self.cluster, self._index[host.name])))
        host.make_keys()
        return "meshray installed" if needed else ""

    def _start(self, record: ClusterRecord, fresh: list[Host]) -> None:
        head_name = self.cluster.nodes[0].name
        founding = not record.founders
        if founding:
            record.founders, record.life = [host.name for host in fresh], secrets.token_hex(8)
        has_past = founding and self.cluster.keep_state and any(host.has_state for host in fresh)
        record.hosts += [host.record for host in fresh]
        record.hosts.sort(key=lambda host: self._index[host.spec.name])
        record.complete = False
        if fresh:
            ssh_record.write(record)
        allowed = {host.spec.name: host.public for host in record.hosts}
        bearing, found_by_all = bearers(record), landmarks(record)
        tellers = self._kept if not founding else fresh if has_past else []
        places = newest(host.places for host in tellers)
        if places is not None:
            bearing = [host.spec.name for host in record.hosts if host.spec.name in places.row.nodes]
            found_by_all |= set(bearing)
        seeds = {host.spec.name: host.control for host in record.hosts if host.spec.name in found_by_all}

        def start(host: Host) -> str:
            self._begun.append(host)
            others = {name: control for name, control in seeds.items() if name != host.name}
            host.start(host.request_start(founders=record.founders, founding=founding, has_past=has_past,
                                          life=record.life, allowed=allowed, seeds=others, places=places))
            return host.record.control.partition("#")[0]

        # Who has a part of the control store is healthy only when the others that have one are.
        first = [host for host in fresh if founding and host.name in bearing]
        self.fleet.run(first, ("start", start))
        if head_name in self.fleet.failed:
            raise self.fleet.failed[head_name]
        self.fleet.run([host for host in fresh if host not in first], ("start", start))
        started = self.fleet.good(fresh)
        names = [host.name for host in started]
        self.fleet.run(started, ("join", lambda host: host.wait_for([head_name, host.name], "join")),
                       ("healthy", lambda host: host.wait_for(names, "healthy")))

    def _undo(self, record: ClusterRecord) -> None:
        """End what this run has started; the record keeps what ran before, and hosts that could not be cleaned."""
        self.fleet.again()
        self.fleet.run(self._begun, ("stop", _end_anyhow))
        dirty = set(self.fleet.failed)
        begun = {host.name for host in self._begun}
        record.hosts = [host for host in record.hosts
                        if (host.spec.name in self._before and host.spec.name not in begun)
                        or host.spec.name in dirty]
        record.complete = not dirty
        if record.hosts:
            ssh_record.write(record)
        else:
            ssh_record.remove(record.cluster)


def up(cluster: ClusterConfig, report: Report, show: ShowPlan, *, keep_going: bool = False
       ) -> tuple[ClusterRecord, dict[str, HostError]]:
    """Bring a cluster up, or to what its file says now. Return its record, and the hosts that failed.

    Raise ClusterStartError or HostError when a host failed (unless ``keep_going``), after taking down what was started.
    """
    with tempfile.TemporaryDirectory(prefix="meshray-up-") as directory, \
            Fleet(cluster, report, keep_going=keep_going) as fleet:
        record = Up(cluster, fleet, directory).run(show)
        return record, fleet.failed


def down(record: ClusterRecord, report: Report, *, forget: bool = False) -> dict[str, HostError]:
    """Take a cluster down; return the hosts where that failed, which stay in the record unless ``forget``."""
    with Fleet(record.config, report, keep_going=True) as fleet:
        head, *others = fleet.hosts(record.hosts)
        # The head goes last, so that the other nodes can still say goodbye to the control store.
        fleet.run([head, *others], ("connect", Host.connect))
        fleet.run(others, ("stop", _end))
        fleet.run([head], ("stop", _end))
        record.hosts = [host for host in record.hosts if host.spec.name in fleet.failed]
        if record.hosts and not forget:
            record.complete = False
            ssh_record.write(record)
        else:
            ssh_record.remove(record.cluster)
        return fleet.failed


def allow(record: ClusterRecord, name: str, key: str, state: str, *, until_wall_ns: int = 0) -> None:
    """Let the owner of a key into a cluster, or no longer."""
    _ask(record, lambda host: host.allow({name: key}, state, until_wall_ns=until_wall_ns))


def describe(record: ClusterRecord, topics: list[str], limit: int) -> Described:
    """Ask a cluster about itself."""
    return _ask(record, lambda host: host.describe(topics, limit))


def _ask(record: ClusterRecord, question: Callable[[Host], Answer]) -> Answer:
    """Return what the head answers; where it cannot, what the next host does. Raise HostError of the head."""
    errors = []
    with Fleet(record.config, lambda news: None, keep_going=False) as fleet:
        for host in fleet.hosts(record.hosts):
            try:
                host.connect()
                return question(host)
            except HostError as error:
                errors.append(error)
    raise errors[0]


def everywhere(record: ClusterRecord, arguments: list[str], show: Callable[[str, str], None]) -> dict[str, HostError]:
    """Run ``meshray`` with these arguments on every host at once; ``show(node, line)``. Return where it failed."""

    def run(host: Host) -> None:
        host.connect()
        for line in host.command(arguments):
            show(host.name, line.decode(errors="replace"))

    with Fleet(record.config, lambda news: None, keep_going=True) as fleet:
        fleet.run(fleet.hosts(record.hosts), ("connect", run))
        return fleet.failed


def _end(host: Host, *, forget: bool = True, reason: str = "meshray down") -> str:
    return "" if host.end(forget=forget, reason=reason) else "nothing was there"


def _end_anyhow(host: Host) -> str:
    """End a host's node; over a new connection if the old one is lost."""
    with suppress(HostError):
        return _end(host)
    host.close()
    host.connect()
    return _end(host)


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False
