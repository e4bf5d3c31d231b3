"""What integration tests share: waiting, signals between test and tasks, leak checks, scripts and two-node clusters.

*Shell (processes, files).* Runs in the pytest process; ``Gate`` and ``Journal`` also run in workers.

1. Nothing here sleeps for timing: every wait has a predicate and a deadline.
2. A process belongs to a test's cluster when it got the test's run root in its environment, or writes its output into
   that root (a process that set its title may have lost the environment that /proc shows).
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import zmq

import meshray

POLL_S = 0.005
DEADLINE_S = 30.0
ROOT_VARIABLE = "MESHRAY_RUN_ROOT"


def wait_until(predicate: Callable[[], Any], timeout_s: float = DEADLINE_S, *, what: str = "") -> Any:
    """Return the predicate's first true value; raise TimeoutError when there is none before the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true within {timeout_s} s: {what or getattr(predicate, '__name__', predicate)}")
        time.sleep(POLL_S)


class Gate:
    """A door between processes: tasks wait at it, the test opens it. A file, so that it works across any kill."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        Path(self.path).touch()

    def is_open(self) -> bool:
        return os.path.exists(self.path)

    def wait(self, timeout_s: float = 60.0) -> None:
        wait_until(self.is_open, timeout_s, what=f"gate {self.path}")


class Journal:
    """Lines that any process appends and the test reads. One write per line, so lines never mix."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def write(self, line: object) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def lines(self) -> list[str]:
        try:
            return Path(self.path).read_text().splitlines()
        except FileNotFoundError:
            return []

    def wait_for(self, count: int, timeout_s: float = DEADLINE_S) -> list[str]:
        wait_until(lambda: len(self.lines()) >= count, timeout_s, what=f"{count} lines in {self.path}")
        return self.lines()


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_gone(pid: int, timeout_s: float = DEADLINE_S) -> None:
    wait_until(lambda: not is_alive(pid), timeout_s, what=f"process {pid} gone")


def processes_of(root: str) -> dict[int, str]:
    """Living processes of the clusters under this run root: pid -> command line. The caller is not among them."""
    found: dict[int, str] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            if pid != os.getpid() and is_alive(pid) and _belongs(pid, root):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return found


def _belongs(pid: int, root: str) -> bool:
    if f"{ROOT_VARIABLE}={root}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        return True
    return any(os.readlink(f"/proc/{pid}/fd/{number}").startswith(f"{root}/") for number in (1, 2))


def sockets_under(root: str) -> list[str]:
    return [str(path) for path in Path(root).rglob("*") if path.is_socket()]


def shared_memory() -> set[str]:
    return set(glob.glob(f"/dev/shm/meshray-{os.getuid()}-*"))


def abandoned(files: set[str]) -> set[str]:
    """Those of the shared-memory files that no living process maps: others' running clusters are not our leak."""
    mapped = ""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                mapped += Path(f"/proc/{entry}/maps").read_text()
    return {file for file in files if os.path.exists(file) and file not in mapped}


def open_descriptors(root: str) -> list[str]:
    """This process's descriptors of the kinds a session opens: sockets, event descriptors, arenas, run files."""
    kinds = ("socket:", "anon_inode:[eventfd]", "anon_inode:[pidfd]", "/dev/shm/meshray-", root)
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith(kinds):
                found.append(target)
    return found


def leaks(root: str, memory_before: set[str], descriptors_before: list[str]) -> dict[str, Any]:
    """What a cluster under ``root`` has left behind; empty when nothing."""
    found = {
        "processes": processes_of(root),
        "sockets": sockets_under(root),
        "shared memory": abandoned(shared_memory() - memory_before),
        "descriptors": open_descriptors(root) if len(open_descriptors(root)) > len(descriptors_before) else [],
    }
    return {kind: what for kind, what in found.items() if what}


@cache
def start_what_stays() -> None:
    """Have libraries start now what they keep as long as the process runs, and what would look like a test's leak.

    pyzmq keeps a context for its collector of large frames, multiprocessing a process that tracks its resources.
    """
    resource_tracker.ensure_running()
    with zmq.Context() as context, context.socket(zmq.PAIR) as receiver, context.socket(zmq.PAIR) as sender:
        receiver.bind("inproc://collector")
        sender.connect("inproc://collector")
        sender.send(bytes(zmq.COPY_THRESHOLD), copy=False)
        receiver.recv()


@contextmanager
def run_root() -> Iterator[str]:
    """A run root of its own with a short path (ipc addresses end at 107 bytes); afterwards nothing may be left."""
    start_what_stays()
    root = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    before = os.environ.get(ROOT_VARIABLE)
    memory, descriptors = shared_memory(), open_descriptors(root)
    os.environ[ROOT_VARIABLE] = root
    try:
        yield root
        meshray.shutdown()
        left: dict[str, Any] = {}

        def nothing_left() -> bool:
            left.clear()
            left.update(leaks(root, memory, descriptors))
            return not left

        with suppress(TimeoutError):
            wait_until(nothing_left, 10)
        assert not left, f"left behind under {root}: {left}"
    finally:
        meshray.shutdown()
        for pid in processes_of(root):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)
        if before is None:
            os.environ.pop(ROOT_VARIABLE, None)
        else:
            os.environ[ROOT_VARIABLE] = before


def store_used_bytes() -> int:
    """Bytes of the cluster's object stores that are in use now."""
    free = meshray.available_resources().get("object_store_memory", 0)
    return int(meshray.cluster_resources()["object_store_memory"] - free)


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with the package under test importable from any directory."""
    package = str(Path(meshray.__file__).resolve().parents[1])
    path = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", **extra}


def start_script(source: str, directory: Path, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    """Start a program of its own from source text, as leader of its own process group."""
    script = directory / f"script{len(list(directory.glob('script*.py')))}.py"
    script.write_text(textwrap.dedent(source))
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(**variables),
                            cwd=directory, start_new_session=True)


def finish(process: subprocess.Popen[str], timeout_s: float = 60, *, ok: bool = True) -> str:
    """Wait for a script and return its output; with ``ok`` it must have ended well."""
    try:
        output = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"script still runs after {timeout_s} s: {process.communicate()[0]}") from None
    assert not ok or process.returncode == 0, f"script ended with {process.returncode}:\n{output}"
    return output


def run_script(source: str, directory: Path, *arguments: object, ok: bool = True, **variables: str) -> str:
    return finish(start_script(source, directory, *arguments, **variables), ok=ok)


def command_line(*arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the ``meshray`` command of the environment that runs the tests."""
    script = shutil.which("meshray", path=str(Path(sys.executable).parent))
    assert script, f"no meshray command beside {sys.executable}: pip install -e '.[test]'"
    result = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=60, env=environment())
    assert not ok or result.returncode == 0, f"meshray {' '.join(arguments)}: {result.stdout}{result.stderr}"
    return result


TWO_NODES = """\
cluster_name: {name}
provider:
  type: local
nodes:
  - name: left
    num_cpus: 2
    resources: {{left: 4}}
    labels: {{side: left, floor: ground}}
    object_store_memory: {store}
  - name: right
    num_cpus: 2
    resources: {{right: 4}}
    labels: {{side: right}}
    object_store_memory: {store}
schedulers: 2
"""


class TwoNodes:
    """A two-node local cluster as ``meshray up`` makes it, and the driver joined to it."""

    def __init__(self, directory: Path, *, store: str = "256MiB") -> None:
        self.name = "pair"
        self.file = str(directory / "pair.yaml")
        Path(self.file).write_text(TWO_NODES.format(name=self.name, store=store))

    def up(self) -> None:
        command_line("up", self.file)

    def down(self) -> None:
        command_line("down", self.file)

    def join(self) -> None:
        meshray.init(address="auto", namespace="tests")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(command_line("status", "--json").stdout)
        return status
