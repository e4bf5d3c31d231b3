"""A global scheduler process: one replica around the ``GlobalScheduler`` machine.

*Shell (zmq, signals).* Forked by the boot process before that opens any socket; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any

from meshray.sched.global_scheduler import GlobalScheduler
from meshray.transport.behind_node import OwnNode, open_wire
from meshray.transport.host import Host


def run(name: str, endpoint: str, *, own_node: OwnNode | None = None) -> str:
    """Serve as the replica ``name`` at ``endpoint`` until told to end; return why. Raise AddressInUse or OSError."""
    peers = open_wire(name, endpoint, own_node)
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

    host = Host(GlobalScheduler(name), peers, sources={wake: drain})

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
