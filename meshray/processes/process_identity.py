"""Who a process is: its id and its start time, so that a pid that the system gave away again is not mistaken for it.

*Shell (/proc).* Runs in drivers, nodes and the command line.

1. A zombie does not run.
2. Signals go through a pidfd whose process was checked after it was opened: they never hit a stranger.

Source: proc(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

import msgspec

from meshray import config


class Process(msgspec.Struct, frozen=True):
    """A process beyond doubt: ``born`` is its start in clock ticks after the system start that ``boot`` names."""

    pid: int
    born: int
    boot: str


def identify(pid: int) -> Process | None:
    """Return who ``pid`` is now, or None when it does not run."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return None if fields[0] in b"ZX" else Process(pid, int(fields[19]), boot)


def myself() -> Process:
    """Return who this process is."""
    me = identify(os.getpid())
    assert me is not None, "a running process is in /proc"
    return me


def is_alive(process: Process) -> bool:
    """Whether this very process still runs."""
    return identify(process.pid) == process


def end(processes: Iterable[Process], *, grace_s: float, term_s: float) -> list[Process]:
    """Wait ``grace_s`` for these processes to go, then ask with SIGTERM and wait ``term_s``, then use SIGKILL.

    Return those that SIGKILL did not end within a second: none, unless the kernel holds them.
    """
    left = {fd: process for process in processes if (fd := _open(process)) is not None}
    try:
        _wait_gone(left, grace_s)
        _signal(left, signal.SIGTERM)
        _wait_gone(left, term_s)
        _signal(left, signal.SIGKILL)
        _wait_gone(left, 1.0)
        return list(left.values())
    finally:
        for fd in left:
            os.close(fd)


def _open(process: Process) -> int | None:
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):
        return fd
    os.close(fd)
    reap(process.pid)
    return None


def _signal(processes: dict[int, Process], number: signal.Signals) -> None:
    for fd in processes:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _wait_gone(left: dict[int, Process], timeout_s: float) -> None:
    """Take those that end within ``timeout_s`` out of ``left``."""
    deadline_ns = time.monotonic_ns() + int(timeout_s * config.SECOND_NS)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    while left:
        wait_ms = max(0, deadline_ns - time.monotonic_ns()) / config.MILLISECOND_NS
        ended = poll.poll(wait_ms)
        for fd, _ in ended:
            poll.unregister(fd)
            os.close(fd)
            reap(left.pop(fd).pid)
        if not ended:
            return


def reap(pid: int) -> int | None:
    """Take the exit status of a child that ended, so that it is no zombie; None when it runs or is not our child."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if ended else None
