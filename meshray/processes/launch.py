"""Start and stop a node: the boot process is spawned detached, and reports through a pipe when the node is healthy.

*Shell (posix_spawn, pipes, signals).* Runs in drivers that start an embedded cluster and in the command line.

1. Nothing is polled: the pipe tells of health, the pidfd of death, and both have one deadline.
2. The node has a session of its own, so a Ctrl-C in the terminal reaches the program and not its cluster.
3. The node inherits no descriptor of ours but the pipe.
4. A node that did not get healthy is ended with all it started; the error carries its last words.

Source: posix_spawn(3): it does not copy the page tables of a large driver, which costs a fork tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import msgspec

from meshray import config
from meshray.errors import ClusterStartError, MeshrayError
from meshray.messages.node import Shard
from meshray.node_config import NodeConfig, NodeFile
from meshray.processes import machine_resources, run_dirs
from meshray.processes.process_identity import Process, end, identify, reap
from meshray.processes.spill_place import spill_settings

READY_VARIABLE = "MESHRAY_READY_FD"
EMBEDDED_NODE = "local"
START_TIMEOUT_S = 20.0
_READY_FD = 3
_ASK_TIMEOUT_S = 2.0
_BOOT = (sys.executable, "-P", "-m", "meshray.processes.boot")


def embedded_config(
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    memory: float | None = None,
    object_store_memory: int | None = None,
    environment: Mapping[str, str] | None = None,
    spill_directory: str | None = None,
    spill_max: int | None = None,
) -> NodeConfig:
    """Make the run directory of a one-node cluster that lives as long as this process, and return its configuration.

    What is not given is detected. Resources in units, memory sizes in bytes. Raise ValueError for a negative amount,
    ClusterStartError when there is no room or no place for the cluster.
    """
    run_dirs.sweep()
    cluster = f"embedded-{os.getpid()}-{secrets.token_hex(2)}"
    amounts = node_resources(num_cpus=num_cpus, num_gpus=num_gpus, resources=resources, memory=memory,
                             object_store_memory=object_store_memory, directory=run_dirs.arena_directory())
    run_dir = run_dirs.create(cluster, [EMBEDDED_NODE])[EMBEDDED_NODE]
    shards = {"shard-0-0": run_dirs.endpoint(run_dir, "shard-0-0")}
    schedulers = {"scheduler-0": run_dirs.endpoint(run_dir, "scheduler-0")}
    return NodeConfig(
        cluster=cluster,
        node_name=EMBEDDED_NODE,
        run_dir=run_dir,
        resources=amounts,
        object_store_bytes=int(amounts["object_store_memory"]),
        arena_path=run_dirs.arena_path(cluster, EMBEDDED_NODE),
        host_shards=shards,
        host_schedulers=schedulers,
        shards=[Shard(epoch=1, members=list(shards.items()))],
        schedulers=schedulers,
        failover="none: this cluster ends with its program",
        embedded_pid=os.getpid(),
        prestart_workers=min(int(amounts["CPU"]), config.WORKERS_STARTING_MAX),
        preload=[name for name in ("numpy",) if name in sys.modules],
        environment=dict(environment or {}),
        **spill_settings(spill_directory, spill_max, cluster=cluster, node=EMBEDDED_NODE, run_dir=run_dir),
    )


def node_resources(*, num_cpus: float | None, num_gpus: float | None, resources: Mapping[str, float] | None,
                   memory: float | None, object_store_memory: int | None, directory: str,
                   nodes: int = 1) -> dict[str, float]:
    """Return a node's resources: what is given, else its part of this machine, which ``nodes`` nodes share."""
    given = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory, "object_store_memory": object_store_memory,
             **{f"resources[{name!r}]": amount for name, amount in (resources or {}).items()}}
    for option, amount in given.items():
        if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float)):
            raise TypeError(f"{option} must be a number, not {amount!r}")
        if amount is not None and not (isfinite(amount) and amount >= 0):
            raise ValueError(f"{option} must be zero or more, not {amount}")
    for reserved, option in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"),
                             ("object_store_memory", "object_store_memory")):
        if reserved in (resources or {}):
            raise ValueError(f"resources[{reserved!r}] has an option of its own: use {option}")
    store = machine_resources.object_store_bytes(directory, object_store_memory, stores=nodes)
    if memory is None:
        memory = max(0, machine_resources.memory_bytes() // nodes - store)
    gpus = machine_resources.gpus() // nodes if num_gpus is None else num_gpus
    amounts = {"CPU": float(max(1, machine_resources.cpus() // nodes) if num_cpus is None else num_cpus),
               "memory": float(memory), "object_store_memory": float(store)}
    if gpus:
        amounts["GPU"] = float(gpus)
    return {**amounts, **{name: float(amount) for name, amount in (resources or {}).items()}}


def start_node(node: NodeConfig, *, timeout_s: float = START_TIMEOUT_S) -> NodeFile:
    """Start the processes of ``node`` and return what they are, once they are healthy. Raise ClusterStartError."""
    return Launch(node).wait(timeout_s)


class Launch:
    """A node on its way: spawned at once, healthy after ``wait``. Whoever makes one must ``wait`` or ``abandon``.

    An embedded node keeps this process's working directory, any other works in ``/``.
    """

    def __init__(self, node: NodeConfig) -> None:
        """Spawn the boot process of ``node`` in its run directory. Raise ClusterStartError."""
        self.node = node
        self._pid, self._ready = _spawn(node)
        self._process = identify(self._pid)

    def wait(self, timeout_s: float = START_TIMEOUT_S) -> NodeFile:
        """Return the node's processes once it is healthy. Raise ClusterStartError; nothing of it runs then."""
        found = None
        try:
            if _wait_ready(self._pid, self._ready, timeout_s):
                found = run_dirs.read_node_file(self.node.run_dir)
            if found is None:
                raise ClusterStartError(_last_words(self.node, self._pid, timeout_s))
            return found
        finally:
            if found is None:
                self.abandon()
            self._close()

    def abandon(self) -> None:
        """End the node and all that it has started, healthy or not. Twice is a no-op."""
        self._close()
        if self._process is not None:
            end([self._process, *_group_of(self._pid)], grace_s=0, term_s=1.0)
            self._process = None
        else:
            reap(self._pid)

    def _close(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1


def _spawn(node: NodeConfig) -> tuple[int, int]:
    """Spawn the boot process of ``node``; return its pid and the end of the pipe on which it will report."""
    descriptor = os.memfd_create("node-config", os.MFD_CLOEXEC)
    ready, report = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(descriptor, msgspec.json.encode(node))
        os.lseek(descriptor, 0, os.SEEK_SET)
        # The copies lie above 3, so that filling 0 to 3 in the child overwrites none of them.
        sources = [_above(descriptor), _above(report)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            actions = [
                (os.POSIX_SPAWN_DUP2, sources[0], 0),
                (os.POSIX_SPAWN_OPEN, 1, _log(node, "out"), flags, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, _log(node, "err"), flags, 0o600),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()),
                (os.POSIX_SPAWN_DUP2, sources[1], _READY_FD),
            ]
            with contextlib.nullcontext() if node.embedded_pid else contextlib.chdir("/"):
                pid = os.posix_spawn(sys.executable, _BOOT, _environment(node), file_actions=actions,
                                     setsigmask=(), setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD),
                                     **_detachment(node))
        finally:
            for fd in sources:
                os.close(fd)
    except OSError as error:
        os.close(ready)
        raise ClusterStartError(f"cannot start the node's process: {error}") from error
    finally:
        os.close(descriptor)
        os.close(report)
    return pid, ready


def _detachment(node: NodeConfig) -> dict[str, Any]:
    """An embedded node is a process group in its driver's session: the kernel's autogroup scheduling treats two
    sessions as rivals, which doubled the round trip between driver and worker here (55 to 92 us). Any other leads a
    session."""
    return {"setpgroup": 0} if node.embedded_pid else {"setsid": True}


def _above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _READY_FD + 1)


def _inheritable() -> list[int]:
    """Return descriptors above 2 that would survive the spawn: pipes of whoever started us, for example."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(entry) > 2 and os.get_inheritable(int(entry)):
                found.append(int(entry))
    return found


def _environment(node: NodeConfig) -> dict[str, str]:
    """This process's environment; a meshray that is not installed (a checkout) is found where we found it."""
    variables = {**os.environ, **node.environment, READY_VARIABLE: str(_READY_FD)}
    checkout = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    if checkout in map(os.path.abspath, sys.path) and os.path.basename(checkout) != "site-packages":
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, variables.get("PYTHONPATH")]))
    return variables


def _log(node: NodeConfig, stream: str) -> str:
    return os.path.join(node.run_dir, "logs", f"boot.{stream}")


def _wait_ready(pid: int, ready: int, timeout_s: float) -> bool:
    """Wait until the node reports, dies, or the time is over; True if it reported."""
    deadline_ns = time.monotonic_ns() + int(timeout_s * config.SECOND_NS)
    death = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(death, select.POLLIN)
        events = poll.poll(max(0, deadline_ns - time.monotonic_ns()) / config.MILLISECOND_NS)
        if any(fd == ready for fd, _ in events):
            if os.read(ready, 16):
                return True
            # It closed the pipe without a word, so it is about to end: wait for its exit status.
            poll.unregister(ready)
            poll.poll(config.SECOND_NS / config.MILLISECOND_NS)
        return False
    finally:
        os.close(death)


def _last_words(node: NodeConfig, pid: int, timeout_s: float) -> str:
    status = reap(pid)
    if status is None and identify(pid) is not None:
        how = f"was not healthy after {timeout_s:g} s"
    elif status is not None and status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    else:
        how = f"ended with exit code {status}"
    words = ""
    with contextlib.suppress(OSError), open(_log(node, "err"), errors="replace") as file:
        words = "\n".join(file.read().splitlines()[-config.STDERR_TAIL_LINES :])
    if words:
        said = f". Its last words:\n{words}"
    elif os.statvfs(node.run_dir).f_bavail == 0:
        said = f": no space is left in {node.run_dir}. Make room, or set {run_dirs.ROOT_VARIABLE} to another directory"
    else:
        said = f" and wrote nothing to {_log(node, 'err')}"
    return f"node {node.node_name} of cluster {node.cluster} did not start: its process {pid} {how}{said}"


def _group_of(leader: int) -> list[Process]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != leader:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(int(entry)) == leader and (process := identify(int(entry))) is not None:
                    found.append(process)
    return found


def stop_node(node: NodeFile, *, reason: str = "", ask: bool = True, timeout_s: float = 5.0) -> None:
    """End a node and everything on it, see ``stop_nodes``. Twice is a no-op."""
    stop_nodes([node], reason=reason, ask=ask, timeout_s=timeout_s)


def stop_nodes(nodes: Sequence[NodeFile], *, reason: str = "", ask: bool = True, timeout_s: float = 5.0) -> None:
    """End nodes: ask them in this order, wait ``timeout_s``, then SIGTERM, then SIGKILL, all of them together.

    With ``ask`` False somebody asked already. The run directories stay: ``run_dirs.remove`` takes those of a cluster.
    Raise MeshrayError when a process does not end even then.
    """
    from meshray.processes.tool import NodeClient  # brings ZeroMQ, which the start of a node must not wait for

    processes = [process for node in nodes for process in _processes(node)]
    for node in nodes if ask else ():
        # A node that does not answer is ended by its pids below, so that it is silent is no news to anybody.
        with contextlib.suppress(MeshrayError, OSError), NodeClient(node.endpoint, timeout_s=_ASK_TIMEOUT_S) as client:
            client.stop(reason)
    left = end(processes, grace_s=timeout_s, term_s=1.0)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise MeshrayError(f"processes {pids} do not end even after SIGKILL: the kernel holds them; see their state in "
                           f"/proc/{left[0].pid}/status")


def _processes(node: NodeFile) -> list[Process]:
    """Return the processes that the node named, and what else lives in their sessions (its workers)."""
    record = run_dirs.read_node_file(run_dirs.node_dir(node.cluster, node.node_name))
    named = list(record.processes.values()) if record is not None else []
    # A leader's pid that a stranger has now leads a stranger's session.
    leaders = [process.pid for process in named if identify(process.pid) in (process, None)]
    others = [process for leader in leaders for process in _group_of(leader)]
    return list({process.pid: process for process in (*named, *others)}.values())
