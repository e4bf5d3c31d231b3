"""Which threads of a node wait for which: how long a piece of CPU time each asks the kernel for.

*Shell (ctypes, sched_setattr).* Runs in the node process.

The control loop wakes, runs for a fraction of a millisecond and sleeps; threads that hash, copy or encrypt run for as
long as they are let. With slices of equal length, one that wakes waits until the one that runs has used its slice up
(1.4 ms on two cores). Who asks for a shorter slice is due earlier and runs at once; who asks for a longer one lets all
others go first. The share of the CPU that each gets in the long run stays what it was.

1. No privilege is needed. Where the kernel has no such slices (before Linux 6.12), or forbids it, all stays as it is.
2. Threads that are started inherit the longer slice. The shorter one is inherited by nobody: those that run user code
   shall not have it.

Source: sched_setattr(2); EEVDF (Stoica and Abdel-Wahab 1995), ``sched_runtime`` of fair tasks.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from meshray import config

_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_FAIR = (os.SCHED_OTHER, os.SCHED_BATCH)
_RESET_ON_FORK = 0x01
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""``struct sched_attr``: size, policy, flags, nice, priority, runtime, deadline, period."""
_THIS_THREAD = 0


def let_others_first() -> None:
    """Let this thread, and those that it starts from now on, wait for all others that have something to do."""
    _ask_for(_THIS_THREAD, config.BULK_SLICE_NS)


def go_first(threads: Iterable[int]) -> None:
    """Let these threads of this process run as soon as they have something to do."""
    for thread in threads:
        _ask_for(thread, config.CONTROL_SLICE_NS, _RESET_ON_FORK)


def _ask_for(thread: int, slice_ns: int, flags: int = 0) -> None:
    number = _SYS_SCHED_SETATTR.get(os.uname().machine)
    try:
        policy, nice = os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return
    if number is not None and policy in _FAIR:
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, flags, nice, 0, slice_ns, 0, 0)
        ctypes.CDLL(None).syscall(number, thread, attributes, 0)
