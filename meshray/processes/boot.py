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
from meshray.messages.node import Shard
from meshray.node_config import NodeConfig, NodeFile
from meshray.processes import birth, global_scheduler, run_dirs, shard, worker
from meshray.processes.node_process import NodeProcess
from meshray.processes.zygote import Zygote
from meshray.transport.sockets import ipc_endpoint


def main() -> int:
    """Boot a node; return the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
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
    services[zygote] = "zygote"
    birth.set_title(f"meshray:node {settings.cluster}/{settings.node_name}")
    process = NodeProcess(settings, node, ours, services)
    try:
        process.begin()
        pids = {name: pid for pid, name in services.items()} | {"node": os.getpid()}
        run_dirs.write_node_file(settings.run_dir, NodeFile(
            cluster=settings.cluster, node_name=settings.node_name, node=node, pid=os.getpid(),
            endpoint=process.peers.endpoint, arena_path=settings.arena_path, pids=pids))
        report_ready()
        reason = process.run()
        logging.getLogger("meshray.node").info("the node ends: %s", reason)
    finally:
        process.close()
        run_dirs.remove_node_file(settings.run_dir)
        if settings.embedded_pid:
            run_dirs.remove(settings.cluster)
    return 0


def fork_services(settings: NodeConfig, log_dir: str) -> dict[int, str]:
    """Fork the shard replicas and global schedulers that live here; return pid -> name."""
    pids: dict[int, str] = {}
    for name, endpoint in settings.host_shards.items():
        directory = os.path.join(settings.run_dir, "gcs", name)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        chain = next(one for one in settings.shards if any(member == name for member, _ in one.members))
        pids[birth.fork(f"meshray:shard {name}", log_dir, name, _shard_runner(
            name, endpoint, directory, chain, settings.durability))] = name
    for name, endpoint in settings.host_schedulers.items():
        pids[birth.fork(f"meshray:scheduler {name}", log_dir, name, _scheduler_runner(name, endpoint))] = name
    return pids


def _shard_runner(name: str, endpoint: str, directory: str, chain: Shard, durability: str) -> birth.Runner:
    return lambda: shard.run(name, endpoint, directory, chain, durability)


def _scheduler_runner(name: str, endpoint: str) -> birth.Runner:
    return lambda: global_scheduler.run(name, endpoint)


def fork_zygote(settings: NodeConfig, log_dir: str, ours: socket.socket, theirs: socket.socket) -> int:
    """Fork the zygote; return its pid."""
    endpoint = ipc_endpoint(settings.run_dir, "node.sock")

    def run_worker(name: str) -> None:
        worker.run(name, endpoint, settings.python_path)

    def run() -> None:
        ours.close()
        Zygote(theirs, log_dir, run_worker).run()

    return birth.fork(f"meshray:zygote {settings.node_name}", log_dir, "zygote", run)


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
