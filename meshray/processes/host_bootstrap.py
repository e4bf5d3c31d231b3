"""What is done on a host before it has meshray: look at it, copy files to it, install meshray there.

*Shell (files, processes).* Sent by ``ssh_host`` as text to the host's Python and run there, so it imports nothing but
the standard library, and nothing of meshray. ``host_agent`` takes over once meshray is there.

1. One request, a line of JSON, comes on standard input; events, a line of JSON each, go to standard output. The last
   one is ``done`` or ``failed``. What commands print goes to standard error.
2. Whoever asks keeps our standard input open: when it ends early, so do we, with every command that we run.
3. A file appears whole or not at all, and one that is there with the same content is not sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

SHARED_MEMORY = "/dev/shm"
REMOTE_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "glusterfs", "fuse.sshfs", "9p", "afs", "beegfs")
_BLOCK_BYTES = 1024 * 1024
_MIB = 1024 * 1024


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Return what this host is like, and ``problems``: what must be put right before a node can start."""
    state_dir, run_root = expand(request["state_dir"]), run_root_of(request["run_dir"])
    problems: list[str] = []
    version = "{}.{}".format(*sys.version_info)
    if version != request["python_version"]:
        problems.append(f"Python {version} ({sys.executable}) differs from Python {request['python_version']} where up "
                        "runs, and functions travel as bytecode: name another one with python in the cluster file")
    found = meshray_here()
    fits = found["version"] == request["version"] and found["digest"] == request["digest"]
    environment = os.path.join(state_dir, f"venv-{request['digest']}")
    ready = os.path.exists(os.path.join(environment, "complete"))
    missing = [] if not fits else missing_dependencies()
    problems += disk_problems("state_dir", state_dir, request["state_bytes"] * (1 if fits or ready else 8))
    problems += disk_problems("run_dir", run_root, request["run_bytes"])
    if os.path.commonpath([os.path.realpath(state_dir), os.path.realpath(run_root)]) == os.path.realpath(run_root):
        problems.append(f"state_dir {state_dir} lies in run_dir {run_root}, which is emptied: set state_dir in the "
                        "cluster file to a directory outside")
    problems += limit_problems(request)
    return {
        "event": "probed", "problems": problems, "python": sys.executable, "system": platform.platform(),
        "version": found["version"], "fits": fits and not missing, "missing": missing, "state_dir": state_dir,
        "run_root": run_root, "environment": environment if ready else "", "user": os.geteuid(),
        "machine": f"{boot_id()} {os.geteuid()} {run_root}", "address": address_reached(),
    }


def expand(path: str) -> str:
    """Return a path of this host without ``~`` and variables."""
    return os.path.abspath(os.path.expandvars(os.path.expanduser(path)))


def run_root_of(run_dir: str) -> str:
    """Return where nodes keep their run directories: never below XDG_RUNTIME_DIR, which may go with the SSH login."""
    return expand(run_dir) if run_dir else f"/tmp/meshray-{os.geteuid()}"


def address_reached() -> str:
    """Return the address of this host at which the SSH connection arrived, or nothing without one."""
    parts = os.environ.get("SSH_CONNECTION", "").split()
    return parts[2] if len(parts) == 4 else ""


def boot_id() -> str:
    """Return what tells this machine, since its last start, from all others."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def meshray_here() -> dict[str, str]:
    """Return version and digest of the meshray that this Python would import, empty without one."""
    spec = importlib.util.find_spec("meshray")
    if spec is None or not spec.origin:
        return {"version": "", "digest": ""}
    folder = os.path.dirname(spec.origin)
    try:
        with open(os.path.join(folder, "version.py")) as file:
            version = file.read().rpartition("=")[2].strip().strip("\"'")
    except OSError:
        version = ""
    return {"version": version, "digest": digest_of(folder)}


def digest_of(folder: str) -> str:
    """Return the digest of meshray's sources, without its command line, which lies elsewhere in a checkout."""
    total = hashlib.sha256()
    for path, relative in files_below(folder):
        if relative.endswith(".py") and not relative.startswith("cli" + os.sep):
            with open(path, "rb") as file:
                total.update(relative.encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return total.hexdigest()[:12]


def files_below(folder: str) -> Iterator[tuple[str, str]]:
    """Yield every file below a folder with its relative path, in order."""
    for directory, folders, names in sorted(os.walk(folder, followlinks=True)):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in sorted(names):
            path = os.path.join(directory, name)
            yield path, os.path.relpath(path, folder)


def missing_dependencies() -> list[str]:
    """Return which libraries meshray needs and this Python cannot find."""
    try:
        required = importlib.metadata.requires("meshray") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    missing = []
    for line in required:
        name = re.match(r"[\w.-]+", line)
        try:
            if name is not None and "extra ==" not in line:
                importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(line)
    return missing


def disk_problems(key: str, path: str, needed: int) -> list[str]:
    """Say what is wrong with a directory that a node will write to: place, permission, file system, room."""
    advice = f"set {key} in the cluster file to a directory of your own on a local disk"
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        trial = os.path.join(path, f".trial-{os.getpid()}")
        with open(trial, "wb"):
            pass
        os.unlink(trial)
    except OSError as error:
        return [f"{key} {path} cannot be written: {(error.strerror or str(error)).lower()}; {advice}"]
    problems = []
    kind = file_system_of(path)
    if kind.startswith(REMOTE_FILE_SYSTEMS):
        problems.append(f"{key} {path} lies on a network file system ({kind}), where locks and mapped files fail; "
                        f"{advice}")
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        problems.append(f"{key} {path} has {free // _MIB} MiB free, {needed // _MIB} MiB are needed: make room, or "
                        f"{advice}")
    return problems


def file_system_of(path: str) -> str:
    """Return the kind of file system that holds ``path``."""
    real, best, kind = os.path.realpath(path), "", ""
    with open("/proc/mounts") as file:
        for line in file:
            fields = line.split()
            mounted = fields[1].replace("\\040", " ")
            if len(mounted) >= len(best) and os.path.commonpath([real, mounted]) == mounted:
                best, kind = mounted, fields[2]
    return kind


def limit_problems(request: dict[str, Any]) -> list[str]:
    """Say which limits of this host are too low."""
    problems = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < request["files_min"]:
        problems.append(f"only {hard} open files are allowed, {request['files_min']} are needed: raise nofile in "
                        "/etc/security/limits.conf")
    if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        status = os.statvfs(SHARED_MEMORY)
        free = status.f_bavail * status.f_frsize
        if free < request["memory_bytes"]:
            problems.append(f"{SHARED_MEMORY} has {free // _MIB} MiB free, {request['memory_bytes'] // _MIB} MiB are "
                            "needed for the object store: enlarge it, or set object_store_memory lower")
    else:
        problems.append(f"{SHARED_MEMORY} cannot be written: the object store needs shared memory")
    return problems


def sync(request: dict[str, Any], source: BinaryIO) -> dict[str, Any]:
    """Take the files that are missing or differ: tell which, then read them as a tar stream."""
    files = request["files"]
    targets = [expand(entry["target"]) for entry in files]
    wanted = [index for index, entry in enumerate(files) if not is_same(targets[index], entry)]
    tell({"event": "wants", "files": wanted})
    if wanted:
        with tarfile.open(fileobj=source, mode="r|") as stream:
            for member in stream:
                content = stream.extractfile(member)
                if content is not None:
                    index = int(member.name)
                    write(targets[index], content, files[index])
    return {"event": "done", "text": f"{len(wanted)} of {len(files)} files copied"}


def is_same(path: str, entry: dict[str, Any]) -> bool:
    """Whether the file is there as it should be."""
    try:
        if os.path.getsize(path) != entry["size"] or not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == entry["digest"])
    except OSError:
        return False


def write(path: str, content: Any, entry: dict[str, Any]) -> None:
    """Write one file, whole or not at all, and check its content."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.meshray-{os.getpid()}"
    total = hashlib.sha256()
    try:
        with open(temporary, "wb") as file:
            while block := content.read(_BLOCK_BYTES):
                file.write(block)
                total.update(block)
        if total.hexdigest() != entry["digest"]:
            raise OSError(f"{path} changed while it was copied: run meshray up again")
        os.chmod(temporary, entry["mode"])
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def install(request: dict[str, Any]) -> dict[str, Any]:
    """Run commands one after the other, after making a virtual environment with meshray if one is asked for."""
    wheel, environment = expand(request["wheel"]) if request["wheel"] else "", expand(request["venv"])
    python = ""
    if wheel:
        python = os.path.join(environment, "bin", "python")
        shutil.rmtree(environment, ignore_errors=True)
        run([sys.executable, "-m", "venv", "--system-site-packages", environment])
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, wheel], name="pip cannot install what meshray needs: let the host reach a package index (its pip "
            "configuration, or PIP_INDEX_URL in environment), or name a python that has it")
        # Another meshray of the same version may be visible from the virtual environment.
        run([*pip, "--force-reinstall", "--no-deps", wheel])
        with open(os.path.join(environment, "complete"), "w"):
            pass
    shell = shutil.which("bash") or "sh"
    for command in request["commands"]:
        run([shell, "-c", command], name=command)
    return {"event": "done", "text": "", "python": python}


def run(command: list[str], *, name: str = "") -> None:
    """Run a command whose output goes to standard error. Raise ChildProcessError when it fails."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
    _running.append(process)
    status = process.wait()
    _running.remove(process)
    if status != 0:
        raise ChildProcessError(f"{name or ' '.join(command)}: ended with exit code {status}")


_running: list[subprocess.Popen[bytes]] = []


def end_with_input() -> None:
    """End this process and its commands as soon as standard input ends."""

    def wait() -> None:
        while os.read(0, _BLOCK_BYTES):
            continue
        for process in list(_running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def tell(event: dict[str, Any]) -> None:
    """Write one event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer the one request on standard input."""
    source = sys.stdin.buffer
    request = json.loads(source.readline())
    try:
        if request["verb"] == "sync":
            tell(sync(request, source))
            return
        end_with_input()
        tell(probe(request) if request["verb"] == "probe" else install(request))
    except (OSError, tarfile.TarError) as error:
        # A ChildProcessError is an OSError too.
        tell({"event": "failed", "text": str(error)})
