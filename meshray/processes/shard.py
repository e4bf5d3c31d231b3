"""The shard server: one server of a control store shard, on its socket and its disk.

*Shell (zmq, lmdb, signals).* Runs in its own process, forked before any ZeroMQ context exists.

1. What a turn decides is on the disk before its answers leave (``Host`` persists first; see ``gcs.storage``).
2. The process ends in good order on Leave, on SIGTERM, and when its parent is gone; when the disk fails it ends at
   once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterable

from meshray.gcs.log import Persisted, SendUnderLease, SweepReaders
from meshray.gcs.shard_server import ShardServer
from meshray.gcs.storage import Storage, StorageFailed
from meshray.machine import Received
from meshray.messages.node import Leave, Shard
from meshray.transport.behind_node import OwnNode, open_wire
from meshray.transport.codec import encode
from meshray.transport.endpoints import Via
from meshray.transport.host import Host
from meshray.transport.sockets import Wire

log = logging.getLogger("meshray.shard")

LINGER_MS = 500
"""How long the last answers may take to leave when the process ends."""


def run(name: str, endpoint: str, directory: str, shard: Shard, durability: str, *, index: int = 0,
        masters: dict[str, str] | None = None, founding: bool = True, own_node: OwnNode | None = None) -> str:
    """Serve as ``name`` of ``shard`` until told to stop; return the reason. Call it in a process of its own.

    ``endpoint``: where to listen; ``directory``: the LMDB environment, made if need be; ``durability``: ``fsync`` or
    ``relaxed`` (see ``gcs.storage``). ``index``: which shard it is; ``masters``: who gives it a place in its chain
    (name -> endpoint), without any it has the one that ``shard`` says; ``founding``: the cluster is new, so an empty
    disk has forgotten no vote; ``own_node``: behind which node others find it, in a cluster of several machines. Raise
    StorageUnusable, WrongChain or AddressInUse when it cannot start, StorageFailed when the disk takes no commit.
    """
    storage = Storage(directory, durability=durability, votes=bool(masters), founding=founding)
    try:
        life = f"{os.getpid()}-{storage.life}-{os.urandom(4).hex()}"
        told = endpoint if own_node is None else str(Via(own_node.name, name))
        member = ShardServer(name, life, told, index=index, shard=shard, masters=masters or {},
                             committed=storage, recovered=storage.recovered, vote=storage.vote, now_ns=_clock_ns())
        peers = open_wire(name, endpoint, own_node)
        try:
            return _serve(member, storage, peers)
        finally:
            peers.close(LINGER_MS)
    finally:
        storage.close()


def _clock_ns() -> int:
    """Return a time that also counts while the machine sleeps: a lease does not stop with it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _serve(member: ShardServer, storage: Storage, peers: Wire) -> str:
    """Run the host until a Stop."""
    parent = os.getppid()
    parent_fd = os.pidfd_open(parent)
    signal_in, signal_out = socket.socketpair()
    for end in (signal_in, signal_out):
        end.setblocking(False)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    interrupt_before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd_before = signal.set_wakeup_fd(signal_out.fileno())

    def parent_gone() -> Iterable[Received]:
        return (Received(b"", Leave("parent gone")),) if os.getppid() != parent else ()

    def signalled() -> Iterable[Received]:
        try:
            numbers = signal_in.recv(64)
        except BlockingIOError:
            return ()
        return (Received(b"", Leave("SIGTERM")),) if signal.SIGTERM in numbers else ()

    def sweep(_: SweepReaders) -> None:
        storage.sweep_readers()

    def send_under_lease(effect: SendUnderLease) -> None:
        if _clock_ns() < effect.until_ns:
            peers.send(effect.to, encode(effect.message))

    try:
        host = Host(
            member, peers, perform={Persisted: lambda effect: (effect,), SweepReaders: sweep,
                                    SendUnderLease: send_under_lease},
            persist=storage.persist, sources={parent_fd: parent_gone, signal_in.fileno(): signalled},
            clock_ns=_clock_ns,
        )
        host.apply(member.begin(_clock_ns()), _clock_ns())
        log.info("%s serves epoch %d from version %d", member.name, member.shard.epoch, storage.recovered.version)
        return host.run()
    except StorageFailed as error:
        log.critical("%s ends: %s", member.name, error)
        raise
    finally:
        signal.set_wakeup_fd(fd_before)
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt_before)
        signal_in.close()
        signal_out.close()
        os.close(parent_fd)
