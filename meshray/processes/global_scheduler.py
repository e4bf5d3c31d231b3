"""A global scheduler process: one replica around the ``GlobalScheduler`` machine.

*Shell (zmq).* Forked by the boot process before that opens any socket; ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

from meshray.processes.serving import serve
from meshray.sched.global_scheduler import GlobalScheduler
from meshray.transport.behind_node import OwnNode, open_wire


def run(name: str, endpoint: str, *, own_node: OwnNode | None = None) -> str:
    """Serve as the replica ``name`` at ``endpoint`` until told to end; return why. Raise AddressInUse or OSError."""
    return serve(GlobalScheduler(name), open_wire(name, endpoint, own_node))
