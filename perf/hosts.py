"""Hosts on one machine: namespaces on a bridge, each with a link of a given rate and files of its own.

*Shell (ip, tc, nft, nsenter, unshare, mount).* Runs as root in perf programs and tests; standard library only.

1. Each host has an address on a bridge that lies in a namespace of its own, the hub: nothing touches the machine's own
   network, so any number of instances run side by side. The hub has an address too, for whoever launches from outside.
2. Each host has what a machine has for itself (``PRIVATE``, home, shared memory, the id of its boot) in a mount
   namespace that ``host_files`` keeps: what crosses between hosts through the file system fails, as it would on
   machines. All have this checkout and Python, read-only, and ``/etc``, ``/usr`` and ``/var`` of the machine.
3. The folder of a host lies at one path on the host and outside; other hosts do not see it. What is mounted on a host
   is seen outside through ``outside``. Process ids are the machine's.
4. ``close`` ends every process in the namespaces and removes all that was made, at the latest when the program exits.
   What a killed program left goes when the next instance is made. Mounts go with the last process of their host.

Source: tc-tbf(8). A burst of 256 KiB lets segments of 64 KiB through whole; with 20 ms of queue one TCP connection
between two hosts capped at 1 Gbit/s carried 0.957 of it.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

HOSTS_MAX = 100
TOOLS = ("ip", "tc", "nsenter", "unshare")
PRIVATE = {"/tmp": "tmp", "/var/tmp": "var-tmp", "/proc/sys/kernel/random/boot_id": "boot-id"}
"""What a machine has for itself: its place -> its name in the folder of the host. Its home, ``home``, is one more."""
NETWORK = "10.77.0"
HUB_ADDRESS = f"{NETWORK}.254"
END_S = 5.0
CHECKOUT = Path(__file__).resolve().parents[1]

_serials = itertools.count()
_LEFTOVER = re.compile(r"mr(\d+)-\d+(-\w+)?")


@dataclass(frozen=True)
class Host:
    """A host: its name, its address, the namespace that is its network, the folder of all its directories, and the
    process that keeps its files."""

    name: str
    address: str
    namespace: str
    root: Path
    keeper: int = 0

    @property
    def run_root(self) -> Path:
        """Where this host's clusters keep their run directories."""
        return self.root / "run"

    @property
    def state(self) -> Path:
        """The host's state directory."""
        return self.root / "state"

    @property
    def home(self) -> Path:
        """The home of the host's user."""
        return self.root / "home"

    def environment(self, **extra: str) -> dict[str, str]:
        """Return the variables of a program that runs on this host: ours, with the host's own directories."""
        foreign = ("MESHRAY_", "XDG_", "SSH_")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**ours, "HOME": str(self.home), "MESHRAY_RUN_ROOT": str(self.run_root), **extra}

    def command(self, arguments: Sequence[str], cwd: str = "/") -> list[str]:
        """Return the command that runs ``arguments`` on this host, in its directory ``cwd``; the process keeps its
        pid."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", f"--mount=/proc/{self.keeper}/ns/mnt", "--",
                "env", f"--chdir={cwd}", *arguments]

    def outside(self, path: str | Path) -> Path:
        """Return where a path of this host is seen from outside."""
        return Path(f"/proc/{self.keeper}/root{path}")


@cache
def possible() -> str:
    """Return why hosts cannot be made here, or nothing when they can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} is missing: apt-get install iproute2 util-linux"
    try:
        Hosts(1, mbit=100).close()
    except (subprocess.CalledProcessError, OSError) as error:
        return f"namespaces cannot be made: {getattr(error, 'stderr', None) or error}"
    return ""


class Hosts(Sequence[Host]):
    """``count`` hosts whose links carry ``mbit`` Mbit/s in each direction (None: no cap). Use it in ``with``."""

    def __init__(self, count: int, *, mbit: float | None = None) -> None:
        """Make the hosts. Raise CalledProcessError, with what the tool said, where that is not possible."""
        assert 1 <= count <= HOSTS_MAX, f"from 1 to {HOSTS_MAX} hosts are possible, not {count}"
        sweep()
        prefix = f"mr{os.getpid()}-{next(_serials)}"
        self.root = Path(tempfile.gettempdir(), prefix)
        self._processes: list[subprocess.Popen[Any]] = []
        self._keepers: list[subprocess.Popen[str]] = []
        self._closed = False
        self.hub = Host("hub", HUB_ADDRESS, f"{prefix}-hub", self.root / "hub")
        self._hosts = [Host(f"h{index}", f"{NETWORK}.{index + 1}", f"{prefix}-h{index}", self.root / f"h{index}")
                       for index in range(count)]
        atexit.register(self.close)
        try:
            self._make(mbit)
        except BaseException:
            self.close()
            raise

    def _make(self, mbit: float | None) -> None:
        self.root.mkdir(mode=0o700)
        for host in (self.hub, *self._hosts):
            for directory in (host.run_root, host.state, host.home):
                directory.mkdir(mode=0o700, parents=True)
            _run("ip", "netns", "add", host.namespace)
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            self._keepers.append(_keep(host))
        self.hub, *self._hosts = [replace(host, keeper=_kept(keeper)) for host, keeper
                                  in zip((self.hub, *self._hosts), self._keepers, strict=True)]
        hub = self.hub.namespace
        _batch(hub, "link add bridge0 type bridge", f"addr add {HUB_ADDRESS}/24 dev bridge0", "link set bridge0 up")
        for host in self._hosts:
            port = f"port-{host.name}"
            _batch(hub, f"link add {port} type veth peer name eth0 netns {host.namespace}",
                   f"link set {port} master bridge0", f"link set {port} up")
            _batch(host.namespace, f"addr add {host.address}/24 dev eth0", "link set eth0 up",
                   f"route add default via {HUB_ADDRESS}")
            if mbit is not None:
                cap = ("root", "tbf", "rate", f"{mbit:g}mbit", "burst", "256k", "latency", "20ms")
                _run("tc", "-n", hub, "qdisc", "add", "dev", port, *cap)
                _run("tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", *cap)

    def __len__(self) -> int:
        return len(self._hosts)

    def __getitem__(self, index: Any) -> Any:
        return self._hosts[index]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    def run(self, host: Host, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None,
            cwd: str | Path = "", **options: Any) -> subprocess.Popen[Any]:
        """Start a program on ``host``; ``environment`` adds variables, ``cwd`` is a directory of the host (default: the
        one of this process), ``options`` are those of Popen."""
        variables = host.environment(**(environment or {}))
        process = subprocess.Popen(host.command(arguments, str(cwd) or os.getcwd()), env=variables, **options)
        self._processes.append(process)
        return process

    def pids(self, host: Host) -> list[int]:
        """Return the processes that run on ``host``, whoever started them."""
        found = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True)
        keepers = {keeper.pid for keeper in self._keepers}
        return [pid for pid in map(int, found.stdout.split()) if pid not in keepers]

    def arenas(self, host: Host) -> list[Path]:
        """Return the files of object stores that clusters of ``host`` have in shared memory."""
        return list(host.outside("/dev/shm").glob("meshray-*"))

    def kill(self, host: Host, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to every process of ``host``; SIGKILL is repeated until none is left, as in a power cut."""
        deadline = time.monotonic() + END_S
        while pids := self.pids(host):
            for pid in pids:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            for process in self._processes:
                process.poll()
            if number != signal.SIGKILL:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {pids} in {host.namespace} do not end after SIGKILL")
            time.sleep(0.01)

    def cut(self, source: Host, target: Host, *, one_way: bool = False) -> None:
        """Drop all that ``source`` sends to ``target``, and what it answers unless ``one_way``, until ``heal``."""
        rules = ("add table inet cut", "add chain inet cut input { type filter hook input priority 0; }",
                 f"add rule inet cut input ip saddr {source.address} drop")
        _run(*target.command(["nft", "-f", "-"]), text="\n".join(rules) + "\n")
        if not one_way:
            self.cut(target, source, one_way=True)

    def heal(self) -> None:
        """End every ``cut``."""
        for host in (self.hub, *self._hosts):
            _run(*host.command(["nft", "-f", "-"]), text="add table inet cut\ndelete table inet cut\n")

    def small_disk(self, host: Host, directory: Path, size_bytes: int) -> None:
        """Let ``directory`` of ``host`` be a file system of this size, until ``close``."""
        host.outside(directory).mkdir(parents=True, exist_ok=True)
        _run(*host.command(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "meshray-test",
                            str(directory)]))

    def close(self) -> None:
        """End every process and remove all. Twice is a no-op."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for host in (self.hub, *self._hosts):
            self.kill(host)
        for keeper in self._keepers:
            keeper.kill()
        for process in (*self._keepers, *self._processes):
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for host in (self.hub, *self._hosts):
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


def sweep() -> None:
    """Remove what killed programs left: their namespaces with all processes in them, and their directories."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    for name in (line.split()[0] for line in listed.stdout.splitlines()):
        if _is_leftover(name):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in map(int, pids.stdout.split()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    for path in Path(tempfile.gettempdir()).glob("mr*"):
        if _is_leftover(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _is_leftover(name: str) -> bool:
    match = _LEFTOVER.fullmatch(name)
    return match is not None and not os.path.exists(f"/proc/{match[1]}")


def _keep(host: Host) -> subprocess.Popen[str]:
    """Start the process that keeps the files of ``host``."""
    own = {place: host.root / name for place, name in PRIVATE.items()}
    for place, path in own.items():
        if os.path.isdir(place):
            path.mkdir()
            path.chmod(0o1777)
        else:
            path.write_text(f"{uuid.uuid4()}\n")
    plan = {"own": {**{place: str(path) for place, path in own.items()},
                    pwd.getpwuid(os.geteuid()).pw_dir: str(host.home)},
            "memory": ["/dev/shm"], "root": str(host.root),
            "code": [str(CHECKOUT), os.path.abspath(sys.prefix), os.path.abspath(sys.base_prefix)]}
    command = ["nsenter", f"--net=/run/netns/{host.namespace}", "--", "unshare", "--mount", "--propagation", "private",
               sys.executable, "-I", "-S", str(Path(__file__).with_name("host_files.py")), json.dumps(plan)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def _kept(keeper: subprocess.Popen[str]) -> int:
    """Return the pid of a keeper whose mounts are made. Raise CalledProcessError with what it said."""
    assert keeper.stdout is not None and keeper.stderr is not None
    if keeper.stdout.readline() != "ready\n":
        words = keeper.stderr.read().strip()
        raise subprocess.CalledProcessError(keeper.wait(), str(keeper.args), stderr=words)
    return keeper.pid


def _batch(namespace: str, *commands: str) -> None:
    _run("ip", "-n", namespace, "-batch", "-", text="\n".join(commands) + "\n")


def _run(*command: str, text: str = "") -> None:
    subprocess.run(command, input=text, text=True, capture_output=True, check=True)
