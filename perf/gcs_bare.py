"""The bare limit of the control store: processes that decode, put in one transaction, and forward.

*Shell (zmq, lmdb, fork).* Runs forked from ``perf.gcs``. The doors of the package do not hold here on purpose.

1. No order, no epochs, no memory of clients, no answer but a number: what is left is what a chain of Python processes
   on LMDB costs at least.
2. Sockets, frames, environment and durability are those of the shards.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lmdb
import msgspec
import zmq

Frame = list[tuple[str, bytes, bytes]]
"""(table, key, value) of each row."""


def serve(name: str, directory: str, following: str | None, durability: str) -> None:
    """Take frames; put each in one transaction; hand it on, or answer its number when nobody follows."""
    context: zmq.Context[Any] = zmq.Context()
    socket = _router(context, name, f"{directory}/{name}.sock")
    peer = b">next"
    if following:
        socket.setsockopt(zmq.CONNECT_ROUTING_ID, peer)
        socket.connect(f"ipc://{directory}/{following}.sock")
    sync = durability == "fsync"
    environment = lmdb.open(f"{directory}/{name}", map_size=1 << 30, max_dbs=2, sync=sync, metasync=sync,
                            meminit=False, readahead=False)
    database = environment.open_db(b"kv")
    decoder = msgspec.msgpack.Decoder(Frame)
    while True:
        route, number, origin, frame = socket.recv_multipart()
        rows = [(key, value) for _, key, value in decoder.decode(frame)]
        with environment.begin(write=True) as transaction, transaction.cursor(database) as cursor:
            cursor.putmulti(rows)
        if following:
            socket.send_multipart([peer, number, origin or route, frame])
        else:
            socket.send_multipart([origin or route, number, b"", b""])


def _router(context: Any, name: str, path: str) -> Any:
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.IDENTITY, name.encode())
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.bind(f"ipc://{path}")
    return socket


@contextmanager
def chain(length: int, directory: str, durability: str) -> Iterator[Any]:
    """Yield two DEALERs of one name: connected to the head of a bare chain, and to its tail, which answers."""
    names = [f"bare-{place}" for place in range(length)]
    pids = []
    for name, following in zip(names, [*names[1:], None], strict=True):
        pid = os.fork()
        if pid == 0:
            serve(name, directory, following, durability)
        pids.append(pid)
    context: zmq.Context[Any] = zmq.Context()
    head = tail = _dealer(context, f"ipc://{directory}/{names[0]}.sock")
    if length > 1:
        tail = _dealer(context, f"ipc://{directory}/{names[-1]}.sock")
        tail.send_multipart([b"hello", b"", msgspec.msgpack.encode([])])
        tail.recv_multipart()
    try:
        yield head, tail
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        head.close()
        tail.close()
        context.term()


def _dealer(context: Any, endpoint: str) -> Any:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IDENTITY, b"client")
    socket.connect(endpoint)
    return socket


def pour(sockets: tuple[Any, Any], frames: list[bytes], window: int) -> None:
    """Send all frames, at most ``window`` of them unanswered."""
    head, tail = sockets
    sent = answered = 0
    while answered < len(frames):
        while sent < len(frames) and sent - answered < window:
            head.send_multipart([b"%d" % sent, b"", frames[sent]])
            sent += 1
        tail.recv_multipart()
        answered += 1
