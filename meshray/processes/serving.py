"""Runs one machine on one socket until a signal ends it: what services without a disk have in common.

*Shell (zmq, signals).* Runs in global scheduler and master processes; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any

from meshray.machine import Machine
from meshray.transport.host import Host
from meshray.transport.sockets import Wire


def serve(machine: Machine, peers: Wire) -> str:
    """Serve until told to end; return why. The socket is closed then."""
    # A signal writes to this pipe, so that one that arrives just before the host sleeps still wakes it.
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)

    def drain() -> Iterable[Any]:
        try:
            os.read(wake, 64)
        except BlockingIOError:
            return ()
        return ()

    host = Host(machine, peers, sources={wake: drain})

    def end(number: int, frame: FrameType | None) -> None:
        host.stopped = signal.Signals(number).name

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    previous_fd = signal.set_wakeup_fd(waker)
    try:
        return host.run()
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        peers.close()
        os.close(wake)
        os.close(waker)
