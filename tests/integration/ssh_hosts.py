"""Hosts of namespaces, each with an SSH server of its own, and a launching machine that can log in to them.

*Shell (processes, files).* Runs in the pytest process, as root. The launching machine is the hub of ``perf.hosts``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from perf import hosts as beds
from perf.hosts import Host, Hosts

from .support import is_alive, sockets_under, wait_until

SSHD = shutil.which("sshd", path=f"/usr/sbin:{os.environ.get('PATH', '')}")
MESHRAY = str(Path(sys.executable).parent / "meshray")
PORT = 2222
SERVER = """\
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""
CLIENT = """\
Host *
    Port {port}
    User root
    IdentityFile {directory}/id
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known_hosts
    GlobalKnownHostsFile /dev/null
"""


def possible() -> str:
    """Why there cannot be such hosts here; empty if there can."""
    if beds.possible():
        return beds.possible()
    missing = [tool for tool in ("ssh", "ssh-keygen") if shutil.which(tool) is None] + ([] if SSHD else ["sshd"])
    return f"{', '.join(missing)} is missing: apt-get install openssh-server openssh-client" if missing else ""


class SshHosts:
    """Hosts with SSH servers. Use it in ``with``."""

    def __init__(self, count: int) -> None:
        self.hosts = Hosts(count)
        self.root = self.hosts.root
        self.client = self.hosts.hub.root
        self._servers: dict[str, subprocess.Popen[Any]] = {}
        try:
            keygen(self.client / "id")
            os.makedirs("/run/sshd", exist_ok=True)
            for host in self.hosts:
                keygen(host.root / "host_key")
                shutil.copy(self.client / "id.pub", host.root / "authorized_keys")
                (host.root / "sshd_config").write_text(SERVER.format(port=PORT, directory=host.root))
                self.serve(host)
            self.may_launch(self.hosts.hub)
            self.know(*self.hosts)
        except BaseException:
            self.hosts.close()
            raise

    def serve(self, host: Host) -> None:
        """Start the host's SSH server."""
        assert SSHD is not None
        log = open(host.root / "sshd.log", "ab")  # noqa: SIM115  the server's own from here on
        self._servers[host.name] = self.hosts.run(
            host, [SSHD, "-D", "-e", "-f", str(host.root / "sshd_config")], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log)
        log.close()
        wait_until(lambda: b"listening" in (host.root / "sshd.log").read_bytes(), what=f"sshd of {host.name}")

    def stop_serving(self, host: Host) -> None:
        """End the host's SSH server, with all its connections."""
        self.hosts.kill(host)
        self._servers.pop(host.name).wait()
        (host.root / "sshd.log").unlink()

    def know(self, *hosts: Host) -> None:
        """Let the launching machine know the keys of these hosts, and of no others."""
        lines = [f"[{host.address}]:{PORT} {(host.root / 'host_key.pub').read_text()}" for host in hosts]
        (self.client / "known_hosts").write_text("".join(lines))

    def may_launch(self, host: Host) -> None:
        """Let ``host`` log in to all hosts that the launching machine knows now."""
        (host.root / "config").write_text(CLIENT.format(port=PORT, directory=host.root))
        for name in ("id", "known_hosts"):
            if host.root != self.client and (self.client / name).exists():
                shutil.copy(self.client / name, host.root / name)

    def file(self, name: str, hosts: list[Host], *, more: str = "", nodes: Mapping[str, str] | None = None) -> str:
        """Write a cluster file for these hosts and return its path. ``nodes``: more keys of a host's node, by name."""
        lines = [f"cluster_name: {name}", "provider:", "  type: ssh", f"  python: {sys.executable}",
                 "  timeouts: {connect: 8, start: 30, join: 20, healthy: 20}", "nodes:"]
        for host in hosts:
            more_keys = (nodes or {}).get(host.name, "")
            lines += [f"  - host: {host.address}", f"    name: {host.name}", f"    run_dir: {host.run_root}",
                      "    num_cpus: 1", "    object_store_memory: 64MiB", f"    resources: {{{host.name}: 1}}",
                      *([] if more_keys.startswith("state_dir") else [f"    state_dir: {host.state}"]),
                      *([f"    {more_keys}"] if more_keys else [])]
        path = self.client / f"{name}.yaml"
        path.write_text("\n".join(lines) + f"\n{more}")
        return str(path)

    def start(self, *arguments: str, on: Host | None = None, **variables: str) -> subprocess.Popen[str]:
        """Start the ``meshray`` command on the launching machine, or ``on`` a host that ``may_launch``."""
        launcher = on or self.hosts.hub
        environment = {"MESHRAY_SSH": f"ssh -F {launcher.root}/config", "NO_COLOR": "1", **variables}
        return self.hosts.run(launcher, [MESHRAY, *arguments], environment=environment, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              cwd=launcher.root, start_new_session=True)

    def meshray(self, *arguments: str, ok: bool = True, on: Host | None = None, **variables: str) -> str:
        """Run the ``meshray`` command on the launching machine, or ``on`` another; return what it printed."""
        process = self.start(*arguments, on=on, **variables)
        try:
            output = process.communicate(timeout=50)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"meshray {' '.join(arguments)} does not end: {process.communicate()[0]}") from None
        assert (process.returncode == 0) == ok, f"meshray {' '.join(arguments)}: {process.returncode}\n{output}"
        assert "Traceback" not in output, output
        return output

    def program(self, host: Host, source: str, *arguments: str) -> str:
        """Run a Python program on a host and return what it printed."""
        process = self.hosts.run(host, [sys.executable, "-c", source, *arguments], text=True, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = process.communicate(timeout=50)[0]
        assert process.returncode == 0, output
        return output

    def left(self, host: Host) -> dict[str, Any]:
        """What a cluster has left on a host: processes, sockets, shared memory."""
        server = self._servers.get(host.name)
        found = {
            "processes": [pid for pid in self.hosts.pids(host) if is_alive(pid) and (not server or pid != server.pid)],
            "sockets": sockets_under(str(host.run_root)),
            "shared memory": [str(path) for path in self.hosts.arenas(host)],
        }
        return {kind: what for kind, what in found.items() if what}

    def assert_clean(self) -> None:
        """Assert that no host has anything left of any cluster, and the launching machine no record."""
        for host in self.hosts:
            try:
                wait_until(lambda host=host: not self.left(host), 5)
            except TimeoutError:
                raise AssertionError(f"left on {host.name}: {self.left(host)}") from None
        assert not list((self.hosts.hub.home / ".local/state/meshray").glob("clusters/*"))

    def clear(self) -> None:
        """Take down what a test that failed has left, so that the next one is judged by itself."""
        for record in (self.hosts.hub.home / ".local/state/meshray").glob("clusters/*.json"):
            self.start("down", record.stem, "--forget").communicate(timeout=60)

    def __enter__(self) -> SshHosts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.hosts.close()


def keygen(path: Path) -> None:
    """Make an SSH key pair."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
