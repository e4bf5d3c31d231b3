"""What every forked process of a node does first.

*Shell (fork, prctl, signals).* Runs in the boot process, the zygote and their children.

1. A child never outlives its parent: the kernel kills it when the parent dies (PR_SET_PDEATHSIG), so that nothing is
   left of a node whose boot process was killed.
2. A process forks only with one thread and before it has a ZeroMQ context or an LMDB environment.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

Runner = Callable[[], object]


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit at once if it is already gone."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies, so that they can be reaped."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def how_it_ended(status: int) -> str:
    """Say what ``os.waitpid`` told of a process."""
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def log_to_stderr(level: int = logging.INFO) -> None:
    """Write this process's log to its standard error."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=level)


def redirect_output(log_dir: str, name: str) -> None:
    """Let standard output and error go to ``<log_dir>/<name>.out`` and ``.err``, line by line; input is empty."""
    sys.stdout.flush()
    sys.stderr.flush()
    for fd, suffix in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(log_dir, f"{name}.{suffix}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, fd)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def set_title(title: str) -> None:
    """Name this process in ``ps``."""
    import setproctitle

    setproctitle.setproctitle(title)


def fork(title: str, log_dir: str, name: str, run: Runner) -> int:
    """Fork a process that runs ``run`` and exits; return its pid. A failure is in its ``.err`` file and exit code 1."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent(parent)
        redirect_output(log_dir, name)
        set_title(title)
        run()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        flush_output()
        os._exit(code)


def flush_output() -> None:
    """Flush standard output and error as far as they can be."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
