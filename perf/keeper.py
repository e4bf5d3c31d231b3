"""Keeps the processes of one subject together: orphans come to the keeper, and none outlives it.

*Shell (prctl, wait).* Runs as the parent of each subject: ``python -m perf.keeper COMMAND...``.

1. Whatever the subject's system starts, also as a daemon, stays below the keeper, so its memory can be summed.
2. The keeper reaps at once: a system that waits for a process's end sees what it would see under init.
3. When the subject has ended, what is left after the grace is killed; the exit status is the subject's. When the
   orchestra has ended, so does the subject.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from perf.footprint import command_of, descendants

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_S = 10.0


def main(command: list[str]) -> int:
    """Run ``command``, reap everything below, clean up; return the command's exit status."""
    adopt_orphans()
    child = os.posix_spawn(sys.executable, [sys.executable, *command], os.environ)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    end_with_parent()
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    deadline = time.monotonic() + GRACE_S
    while left := descendants(os.getpid()):
        if time.monotonic() > deadline:
            for pid in left:
                print(f"left behind and killed: {pid} {command_of(pid)}", file=sys.stderr)
                os.kill(pid, signal.SIGKILL)
            deadline += GRACE_S
        reap()
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(status)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """Get SIGTERM when the parent of this process ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def reap() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
