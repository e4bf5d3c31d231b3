"""The first process of a node: imports once, forks the services and the zygote, then becomes the node process.

*Shell (fork, pipes).* Started by ``launch`` as ``python -m meshray.processes.boot``; reads a NodeConfig (JSON) from its
standard input and writes ``ready`` to the descriptor in ``MESHRAY_READY_FD`` once drivers can join.

1. All forks come before the first thread, ZeroMQ context or LMDB environment.
2. Everything is imported before the forks, so that all processes of a node share these pages.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys

import msgspec

from meshray import config
from meshray.gcs import storage as _storage  # noqa: F401  imported before the forks, so that its pages are shared
from meshray.ids import process_name
from meshray.node_config import NodeConfig
from meshray.processes import birth, run_dirs, service
from meshray.processes import worker as _worker  # noqa: F401  likewise
from meshray.processes.node_process import NodeProcess


def main() -> int:
    """Boot a node; return the exit code."""
    birth.log_to_stderr()
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=NodeConfig)
    os.environ.update(settings.environment)
    log_dir = os.path.join(settings.run_dir, "logs")
    node = process_name("node", os.urandom(8))
    gc.collect()
    gc.freeze()
    services = fork_services(settings, log_dir)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = fork_zygote(settings, log_dir, ours, theirs)
    theirs.close()
    services[zygote] = service.ZYGOTE
    birth.set_title(f"meshray:node {settings.cluster}/{settings.node_name}")
    process = NodeProcess(settings, node, ours, services)
    try:
        process.begin()
        reason = process.run(report_ready)
        logging.getLogger("meshray.node").info("the node ends: %s", reason)
    finally:
        try:
            process.close()
        finally:
            run_dirs.remove_node_file(settings.run_dir)
            if settings.embedded_pid:
                run_dirs.remove(settings.cluster)
    return 0


def fork_services(settings: NodeConfig, log_dir: str) -> dict[int, str]:
    """Fork the shard replicas and global schedulers that live here; return pid -> name."""
    return {birth.fork(service.title(settings, name), log_dir, name, service.runner(settings, name)): name
            for name in service.names(settings)}


def fork_zygote(settings: NodeConfig, log_dir: str, ours: socket.socket, theirs: socket.socket) -> int:
    """Fork the zygote; return its pid."""
    run_zygote = service.zygote_runner(settings, theirs)

    def run() -> None:
        ours.close()
        run_zygote()

    return birth.fork(service.title(settings, service.ZYGOTE), log_dir, service.ZYGOTE, run)


def report_ready() -> None:
    """Tell whoever launched us."""
    fd = os.environ.pop("MESHRAY_READY_FD", "")
    if fd:
        os.write(int(fd), b"ready\n")
        os.close(int(fd))


if __name__ == "__main__":
    sys.setswitchinterval(config.SWITCH_INTERVAL_S)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.exit(main())
