"""What a node's own services run, and the program that starts one of them again.

*Shell (prctl).* ``runner`` is used by ``boot``, which forks the services at the node's birth. One that ended later is
started as ``python -m meshray.processes.service NAME PARENT`` with the NodeConfig on standard input, because a node
that has threads and a ZeroMQ context cannot fork. The zygote finds its end of the pipe as descriptor ``CONTROL_FD``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import msgspec

from meshray import config
from meshray.node_config import NodeConfig
from meshray.processes import birth
from meshray.transport.behind_node import OwnNode
from meshray.transport.endpoints import NODE_PROCESS
from meshray.transport.sockets import process_endpoint

ZYGOTE = "zygote"
CONTROL_FD = 3


def names(settings: NodeConfig) -> list[str]:
    """Return the services of a node, the zygote apart, in the order in which they start."""
    return [*settings.host_shards, *settings.host_masters, *settings.host_schedulers]


def title(settings: NodeConfig, name: str) -> str:
    """Return the title of a service's process in ``ps``."""
    kinds = {"shard ": settings.host_shards, "master ": settings.host_masters, "scheduler ": settings.host_schedulers}
    kind = next((kind for kind, hosted in kinds.items() if name in hosted), "")
    return f"meshray:{kind}{name} {settings.cluster}/{settings.node_name}"


def runner(settings: NodeConfig, name: str) -> birth.Runner:
    """Return what the process of the shard server, master or global scheduler ``name`` runs. Only that is imported: one
    that starts again is waited for, and most of its start is imports."""
    node = own_node(settings)
    if name in settings.host_schedulers:
        from meshray.processes import global_scheduler

        return lambda: global_scheduler.run(name, settings.host_schedulers[name], own_node=node)
    if name in settings.host_masters:
        from meshray.processes import master

        return lambda: master.run(
            name, settings.host_masters[name], shards=settings.shards, acceptors=tuple(settings.acceptors),
            replicas=settings.replicas, rank=list(settings.masters).index(name), own_node=node)
    directory = disk_of(settings, name)
    for made in (os.path.dirname(directory), directory):  # makedirs gives its mode to the last one only
        os.makedirs(made, 0o700, exist_ok=True)
    from meshray.processes import shard

    index = int(name.split("-")[1])
    return lambda: shard.run(
        name, settings.host_shards[name], directory, settings.shards[index], settings.durability, index=index,
        masters=settings.masters, founding=settings.founding, own_node=node)


def disk_of(settings: NodeConfig, name: str) -> str:
    """Return where a server of the control store has its disk; other services have none."""
    return os.path.join(settings.state_dir or settings.run_dir, "gcs", name)


def own_node(settings: NodeConfig) -> OwnNode | None:
    """Return by whom a service reaches other machines, None in a cluster of one."""
    return OwnNode(settings.run_dir, settings.node_name) if settings.network is not None else None


def zygote_runner(settings: NodeConfig, control: socket.socket) -> birth.Runner:
    """Return what the zygote's process runs. It imports all that a worker needs, so that workers share it."""
    from meshray.processes import worker
    from meshray.processes.zygote import Zygote

    endpoint = process_endpoint(settings.run_dir, NODE_PROCESS)
    log_dir = os.path.join(settings.run_dir, "logs")
    return Zygote(control, log_dir, lambda name: worker.run(name, endpoint), settings.preload).run


def main(name: str, parent: int) -> None:
    """Be the service ``name`` of the node whose process is ``parent``."""
    birth.die_with_parent(parent)
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=NodeConfig)
    birth.redirect_output(os.path.join(settings.run_dir, "logs"), name)
    birth.set_title(title(settings, name))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if name == ZYGOTE:
        zygote_runner(settings, socket.socket(fileno=CONTROL_FD))()
    else:
        runner(settings, name)()


if __name__ == "__main__":
    sys.setswitchinterval(config.SWITCH_INTERVAL_S)
    birth.log_to_stderr()
    main(sys.argv[1], int(sys.argv[2]))
