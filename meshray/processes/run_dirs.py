"""Run directories: where the processes of a cluster keep their sockets, logs and tables, and how others find them.

*Shell (files, /proc).* Runs in drivers, nodes and the command line; imports nothing slow.

1. The root belongs to this user and nobody else may write to it; anything else is refused, never repaired.
2. A cluster is alive while its launcher or any process of its nodes is. Directories are made and swept under one file
   lock, so that a cluster that is being born is never swept away.
3. Every file appears whole or not at all.
4. What the file system refuses is an error that names the path and MESHRAY_RUN_ROOT.

The layout is in ``meshray.node_config``.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec

from meshray.errors import ClusterNotFoundError, ClusterStartError
from meshray.node_config import ClusterFile, NodeFile
from meshray.processes import state_dirs
from meshray.processes.locked_files import explained, locked
from meshray.processes.process_identity import Process, identify, is_alive, myself

ROOT_VARIABLE = "MESHRAY_RUN_ROOT"
ADDRESS_VARIABLE = "MESHRAY_ADDRESS"
SHARED_MEMORY = "/dev/shm"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""What clusters and nodes may be called: their names become parts of paths."""

_SOCKET_PATH_BYTES_MAX = 107
_PROCESS_NAME_BYTES_MAX = 32
_NODE_FILE, _CLUSTER_FILE, _LAUNCHER_FILE = "node.json", "cluster.json", "launcher.json"
_CURRENT, _LOCK, _GONE = "current", ".lock", ".gone-"

_explained = partial(explained, variable=ROOT_VARIABLE)
_locked = partial(locked, variable=ROOT_VARIABLE)

T = TypeVar("T")


class NodeRecord(NodeFile, kw_only=True):
    """``node.json`` as it is stored: the node's word, and who its processes are."""

    processes: dict[str, Process]


# --- the root and the directories in it -------------------------------------------------------------------------------


def run_root() -> str:
    """Return the path of the run root, which may not exist yet."""
    chosen = os.environ.get(ROOT_VARIABLE)
    if chosen:
        return os.path.abspath(chosen)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.geteuid():
        return os.path.join(os.path.abspath(runtime), "meshray")
    return f"/tmp/meshray-{os.geteuid()}"


def open_root() -> str:
    """Make the run root (0700) if it is missing, check whose it is, and return its path."""
    root = run_root()
    with _explained(root):
        with suppress(FileExistsError):
            os.makedirs(root, mode=0o700)
        _check_owner(root)
    return root


def _check_owner(root: str) -> None:
    status = os.lstat(root)
    if not stat.S_ISDIR(status.st_mode):
        problem = "is not a directory"
    elif status.st_uid != os.geteuid():
        problem = f"belongs to user {status.st_uid}, not to you (user {os.geteuid()})"
    elif status.st_mode & 0o022:
        problem = f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o}): run chmod go-w on it"
    else:
        return
    raise ClusterStartError(f"run directory {root} {problem}. Set {ROOT_VARIABLE} to a directory of your own")


def cluster_dir(cluster: str) -> str:
    """Return the path of a cluster's directory."""
    return os.path.join(run_root(), cluster)


def node_dir(cluster: str, node: str) -> str:
    """Return the path of a node's run directory."""
    return os.path.join(run_root(), cluster, node)


def endpoint(run_dir: str, process: str) -> str:
    """Return the ipc endpoint of a node's process."""
    return f"ipc://{run_dir}/{process}.sock"


def arena_directory() -> str:
    """Return the directory whose file system holds the arenas."""
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else open_root()


def arena_path(cluster: str, node: str) -> str:
    """Return the path of a node's arena: in shared memory, or in the run directory on a machine that has none."""
    if arena_directory() != SHARED_MEMORY:
        return os.path.join(node_dir(cluster, node), "arena")
    root = os.environ.get(ROOT_VARIABLE)
    # Two roots may hold clusters of the same name, and shared memory has no directories of ours to tell them apart.
    suffix = f"-{zlib.crc32(os.path.abspath(root).encode()):08x}" if root else ""
    return f"{SHARED_MEMORY}/meshray-{os.geteuid()}-{cluster}-{node}{suffix}"


def create(cluster: str, nodes: list[str]) -> dict[str, str]:
    """Make the directories of a cluster that this process launches; return the run directory of each node.

    What a dead cluster of that name left is removed first. Raise ClusterStartError when a living one has the name.
    """
    root = open_root()
    top = cluster_dir(cluster)
    paths = {node: os.path.join(top, node) for node in nodes}
    _check_lengths(top, paths.values())
    state = os.path.realpath(state_dirs.state_dir())
    if state == os.path.realpath(root) or f"{state}/".startswith(f"{os.path.realpath(top)}/"):
        raise ClusterStartError(f"state directory {state} lies where run directory {top} goes with its cluster: set "
                                f"{state_dirs.STATE_VARIABLE} to another place")
    with _locked(os.path.join(root, _LOCK)):
        if os.path.lexists(top):
            if not _is_cluster(top):
                raise ClusterStartError(f"{top} is there already, and not of a cluster: choose another cluster_name, "
                                        f"or remove it")
            if is_cluster_alive(cluster):
                raise ClusterStartError(f"cluster {cluster} runs already (in {top}): end it with meshray down "
                                        f"{cluster}, or choose another cluster_name")
            remove(cluster)
        try:
            _make(top, list(paths.values()))
        except ClusterStartError:
            remove(cluster)
            raise
    return paths


def _make(top: str, run_directories: list[str]) -> None:
    with _explained(top):
        os.mkdir(top, 0o700)
        _write(os.path.join(top, _LAUNCHER_FILE), myself())
        for path in run_directories:
            _make_node(path)


def _make_node(path: str) -> None:
    os.mkdir(path, 0o700)
    os.mkdir(os.path.join(path, "logs"), 0o700)


def _check_lengths(top: str, paths: Iterable[str]) -> None:
    longest = max(len(path.encode()) for path in paths) + 1 + _PROCESS_NAME_BYTES_MAX + len(".sock")
    if longest > _SOCKET_PATH_BYTES_MAX:
        raise ClusterStartError(f"run directory {top} is too long: sockets in it would have paths of {longest} bytes, "
                                f"{_SOCKET_PATH_BYTES_MAX} are possible. Set {ROOT_VARIABLE} to a shorter one")


def add_node(cluster: str, node: str) -> str:
    """Make the run directory of one more node of a cluster that runs; return its path. Raise ClusterStartError."""
    path = node_dir(cluster, node)
    _check_lengths(cluster_dir(cluster), [path])
    with _locked(os.path.join(run_root(), _LOCK)), _explained(path):
        _make_node(path)
    return path


def remove_node(cluster: str, run_dir: str) -> None:
    """Remove all that a node without processes has left in a cluster that goes on. Twice is a no-op."""
    import shutil

    with suppress(FileNotFoundError):
        os.unlink(arena_path(cluster, os.path.basename(run_dir)))
    with _explained(run_dir), suppress(FileNotFoundError):
        shutil.rmtree(run_dir)


# --- files -----------------------------------------------------------------------------------------------------------


def write_node_file(run_dir: str, file: NodeFile) -> None:
    """Publish a node: it is healthy and has these processes, all of which must run now."""
    pids = {**file.pids, "node": file.pid}
    processes = {name: found for name, pid in pids.items() if (found := identify(pid)) is not None}
    _write(os.path.join(run_dir, _NODE_FILE), NodeRecord(**msgspec.structs.asdict(file), processes=processes))


def read_node_file(run_dir: str) -> NodeRecord | None:
    """Return the node's file, or None when the node never got healthy or has gone in good order."""
    return _read(os.path.join(run_dir, _NODE_FILE), NodeRecord)


def remove_node_file(run_dir: str) -> None:
    """Say that the node has gone in good order. Twice is a no-op."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(run_dir, _NODE_FILE))


def write_cluster_file(file: ClusterFile) -> None:
    """Publish a cluster that ``up`` started, and let ``auto`` mean it."""
    _write(os.path.join(cluster_dir(file.cluster), _CLUSTER_FILE), file)
    _write(os.path.join(run_root(), _CURRENT), file.cluster)


def read_cluster_file(cluster: str) -> ClusterFile | None:
    """Return what ``up`` wrote about the cluster, or None."""
    return _read(os.path.join(cluster_dir(cluster), _CLUSTER_FILE), ClusterFile)


def current() -> str | None:
    """Return the name of the cluster that ``up`` started last, if it is still there."""
    return _read(os.path.join(run_root(), _CURRENT), str)


def _write(path: str, value: object) -> None:
    temporary = f"{path}.{os.getpid()}"
    with _explained(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = msgspec.json.format(msgspec.json.encode(value), indent=2)
            with open(descriptor, "wb") as file:
                file.write(data)
            os.rename(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def _read(path: str, kind: type[T]) -> T | None:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


# --- what is there, and what is left over ----------------------------------------------------------------------------


def clusters() -> list[str]:
    """Return the names of all clusters that have a directory, dead or alive."""
    root = run_root()
    try:
        _check_owner(root)
        return sorted(entry.name for entry in os.scandir(root)
                      if entry.is_dir() and NAME.fullmatch(entry.name) and _is_cluster(entry.path))
    except FileNotFoundError:
        return []


def _is_cluster(top: str) -> bool:
    """Whether a directory in the run root is a cluster's, be it half made, and nothing else's."""
    with suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(top)
        return not names or any(
            name == _CLUSTER_FILE or name.startswith(_LAUNCHER_FILE)
            or os.path.exists(os.path.join(top, name, _NODE_FILE)) for name in names)
    return False


def nodes_of(cluster: str) -> dict[str, str]:
    """Return the run directory of every node of a cluster, by node name."""
    top = cluster_dir(cluster)
    with suppress(FileNotFoundError):
        return {entry.name: entry.path for entry in sorted(os.scandir(top), key=lambda entry: entry.name)
                if entry.is_dir()}
    return {}


def processes_of(cluster: str) -> list[Process]:
    """Return the processes that the cluster's nodes named, dead or alive."""
    records = (read_node_file(run_dir) for run_dir in nodes_of(cluster).values())
    return [process for record in records if record is not None for process in record.processes.values()]


def is_node_alive(run_dir: str) -> bool:
    """Whether the node process of this run directory runs."""
    record = read_node_file(run_dir)
    return record is not None and is_alive(record.processes["node"])


def is_cluster_alive(cluster: str) -> bool:
    """Whether anything of the cluster runs: whoever launches it, or a process of its nodes."""
    launcher = _read(os.path.join(cluster_dir(cluster), _LAUNCHER_FILE), Process)
    return (launcher is not None and is_alive(launcher)) or any(is_alive(found) for found in processes_of(cluster))


def addresses() -> dict[str, str]:
    """Return the address of every cluster that can be joined: its first node whose process runs."""
    found: dict[str, str] = {}
    for cluster in clusters():
        file = read_cluster_file(cluster)
        run_dirs = list(file.nodes.values()) if file is not None else list(nodes_of(cluster).values())
        records = (read_node_file(run_dir) for run_dir in run_dirs if is_node_alive(run_dir))
        record = next(records, None)
        if record is not None:
            found[cluster] = record.endpoint
    return found


def find_address(address: str = "") -> str:
    """Return the endpoint that ``address`` means: itself, or that of a cluster of this machine by name or ``auto``.

    Empty: what MESHRAY_ADDRESS says, else ``auto``, which is the cluster that ``up`` started last, else the only one.
    Raise ClusterNotFoundError.
    """
    wanted = address or os.environ.get(ADDRESS_VARIABLE) or "auto"
    if "://" in wanted:
        return wanted
    found = addresses()
    name = current() if wanted == "auto" else wanted
    if name in found:
        return found[name]
    if wanted == "auto" and len(found) == 1:
        return next(iter(found.values()))
    running = f"running here: {', '.join(found)}" if found else f"none runs here (looked in {run_root()})"
    if wanted == "auto":
        how = f"name one in --address or {ADDRESS_VARIABLE}" if found else "start one with meshray up FILE"
        raise ClusterNotFoundError(f"no current cluster, {running}: {how}")
    raise ClusterNotFoundError(f"no cluster {wanted}, {running}: give a name from there, auto, or an endpoint "
                               "(ipc://...)")


def remove(cluster: str) -> None:
    """Remove all that a cluster without processes has left: directories, sockets, arenas."""
    import shutil  # slow to import, and a good start never needs it

    _remove_memory(cluster)
    if current() == cluster:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(run_root(), _CURRENT))
    top, gone = cluster_dir(cluster), os.path.join(run_root(), f"{_GONE}{os.getpid()}-{cluster}")
    # Renamed first, so that of several who remove it one does, and nobody who is still ending writes into it meanwhile.
    with _explained(top), suppress(FileNotFoundError):
        os.rename(top, gone)
        shutil.rmtree(gone)


def sweep() -> list[str]:
    """Clean up after killed clusters and return their names.

    Embedded ones go wholly. Of those that ``up`` started the tables and logs stay until ``down`` or the next ``up``;
    sockets and arenas go.
    """
    root = open_root()
    with _locked(os.path.join(root, _LOCK)):
        dead = [cluster for cluster in clusters() if not is_cluster_alive(cluster)]
        for cluster in dead:
            if read_cluster_file(cluster) is None:
                remove(cluster)
            else:
                _remove_memory(cluster)
                _remove_sockets(cluster)
        _finish_removals(root)
    return dead


def _finish_removals(root: str) -> None:
    """Remove what somebody who was killed meanwhile had begun to remove."""
    for entry in [entry for entry in os.scandir(root) if entry.name.startswith(_GONE)]:
        import shutil

        pid = entry.name.removeprefix(_GONE).partition("-")[0]
        if identify(int(pid)) is None:
            shutil.rmtree(entry.path)


def _remove_memory(cluster: str) -> None:
    for node in nodes_of(cluster):
        with suppress(FileNotFoundError):
            os.unlink(arena_path(cluster, node))


def _remove_sockets(cluster: str) -> None:
    for run_dir in nodes_of(cluster).values():
        for entry in os.scandir(run_dir):
            if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.path)
