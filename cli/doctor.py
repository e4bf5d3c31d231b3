"""``meshray doctor``: is this machine fit to run meshray?

*Shell (terminal, files).*

1. It changes nothing but making the run root, and it works when a library is missing or broken.
"""

from __future__ import annotations

import importlib
import os
import platform
import resource

import click

from meshray import config
from meshray.errors import ClusterStartError, size_text
from meshray.processes import machine_resources, run_dirs
from meshray.version import __version__

_FILES_MIN = 4096
"""Each worker holds a few descriptors at its node; with fewer than this, some hundred workers exhaust them."""
_LIBRARIES = (("libzmq", "zmq", "zmq_version"), ("LMDB", "lmdb", "version"), ("msgspec", "msgspec", "__version__"),
              ("cloudpickle", "cloudpickle", "__version__"), ("numpy", "numpy", "__version__"))

Finding = tuple[bool, str]


@click.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check libraries, limits, shared memory and the run root. Exit code 1 when something must be put right."""
    click.echo(f"meshray {__version__}, Python {platform.python_version()}, Linux {platform.release()}")
    libraries = [_library(*entry) for entry in _LIBRARIES]
    findings = [*libraries, _machine(), _memory(), _files(), _root()]
    for good, text in findings:
        click.echo(f"{click.style('ok  ', fg='green') if good else click.style('BAD ', fg='red')} {text}",
                   color=False if os.environ.get("NO_COLOR") else None)
    if not all(good for good, _ in findings):
        ctx.exit(1)


def _library(title: str, module: str, attribute: str) -> Finding:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        return False, f"{title}: {error}. Install meshray again: pip install --force-reinstall meshray"
    version = found() if callable(found) else found
    return True, f"{title} {'.'.join(map(str, version)) if isinstance(version, tuple) else version}"


def _machine() -> Finding:
    return True, (f"{machine_resources.cpus()} CPUs, {machine_resources.gpus()} GPUs, "
                  f"{size_text(machine_resources.memory_bytes())} memory may be used")


def _memory() -> Finding:
    if run_dirs.arena_directory() != run_dirs.SHARED_MEMORY:
        return False, f"{run_dirs.SHARED_MEMORY} cannot be written: object stores lie in the run root, on disk (slow)"
    status = os.statvfs(run_dirs.SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    text = f"shared memory: {size_text(free)} of {size_text(status.f_blocks * status.f_frsize)} free"
    if free < config.ARENA_BYTES_MIN:
        return False, f"{text}, {size_text(config.ARENA_BYTES_MIN)} are needed (in Docker: --shm-size=1g)"
    return True, text


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"open files: {soft} (may be raised to {hard})"
    return (True, text) if soft >= _FILES_MIN else (False, f"{text}, {_FILES_MIN} are needed: ulimit -n {_FILES_MIN}")


def _root() -> Finding:
    try:
        root = run_dirs.open_root()
    except ClusterStartError as error:
        return False, str(error)
    names = run_dirs.clusters()
    dead = [name for name in names if not run_dirs.is_cluster_alive(name)]
    status = os.statvfs(root)
    return True, (f"run root {root}: {size_text(status.f_bavail * status.f_frsize)} free, {len(names) - len(dead)} "
                  f"running clusters" + (f", dead: {', '.join(dead)} (meshray down NAME removes one)" if dead else ""))
