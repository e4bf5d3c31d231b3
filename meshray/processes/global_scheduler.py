"""A global scheduler process: one replica around the ``GlobalScheduler`` machine.

*Shell (zmq, signals).* Forked by the boot process before that opens any socket; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import signal
from types import FrameType

from meshray.sched.global_scheduler import GlobalScheduler
from meshray.transport.host import Host
from meshray.transport.sockets import Peers

_TURN_WAIT_MS = 200
"""A turn sleeps at most this long: a signal that arrives just before the sleep is seen after it."""


def run(name: str, endpoint: str) -> str:
    """Serve as the replica ``name`` at ``endpoint`` until told to end; return why. Raise AddressInUse or OSError."""
    peers = Peers(name, endpoint)
    host = Host(GlobalScheduler(name), peers)

    def end(number: int, frame: FrameType | None) -> None:
        host.stopped = signal.Signals(number).name

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while host.stopped is None:
            host.turn(_TURN_WAIT_MS)
        return host.stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        peers.close()
