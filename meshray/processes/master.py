"""A master process of the control store: one replica around the ``Master`` machine.

*Shell (zmq).* Forked by the boot process before that opens any socket; ends on SIGTERM or SIGINT. It keeps nothing, so
one that ended is simply started again.
"""

from __future__ import annotations

import os
import time

from meshray.gcs.master import Master
from meshray.messages.node import Shard
from meshray.processes.serving import serve
from meshray.transport.behind_node import OwnNode, open_wire


def run(name: str, endpoint: str, *, shards: list[Shard], acceptors: tuple[str, ...], replicas: int, rank: int,
        own_node: OwnNode | None = None) -> str:
    """Serve as the master ``name`` at ``endpoint`` until told to end; return why. Raise AddressInUse or OSError.

    ``shards``: the servers of each shard of a new cluster; ``acceptors``: who holds the configuration register;
    ``replicas``: how long each chain should be; ``rank``: which of the masters this is, from 0.
    """
    life = f"{os.getpid()}-{os.urandom(4).hex()}"
    master = Master(name, life, shards=shards, acceptors=acceptors, replicas=replicas, rank=rank,
                    now_ns=time.monotonic_ns())
    return serve(master, open_wire(name, endpoint, own_node))
