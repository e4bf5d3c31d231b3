"""The bare limit of each row: the same work with nothing around it, so that one sees what is left to gain.

*Shell (zmq, mmap, fork).* Runs in the subject ``bare``. The doors of the package do not hold here on purpose: these are
the libraries themselves, used as directly as Python can.

1. A limit is what the parts can do on this machine in this minute, not what meshray promises.
2. Echo runs between two processes over ipc, as a task would; batches carry 64 tasks, as meshray's do.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from subprocess import PIPE, Popen
from typing import Any

import msgspec
import numpy as np
import zmq

from perf import rows
from perf.row_kinds import Operation

BATCH = 64
FORKS = 5
_living: list[Popen[bytes]] = []

IDLE_PROGRAM = f"""
import os, sys, zmq, msgspec
for _ in range({FORKS}):
    if os.fork() == 0:
        break
else:
    os.write(1, b"!")
sys.stdin.read()
"""


def start(cpus: int) -> None:
    """Start one interpreter with the libraries, forked as often as meshray has processes on two CPUs."""
    process = Popen([sys.executable, "-c", IDLE_PROGRAM], stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    _living.append(process)


def stop() -> None:
    """End what ``start`` started: all of it reads the same pipe, which now ends."""
    process = _living.pop()
    process.communicate()


@contextmanager
def echo_process() -> Iterator[Any]:
    """Yield a socket to a forked process that answers each message, running each number in it as a no-op task."""
    with tempfile.TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/echo"
        pid = os.fork()
        if pid == 0:
            serve_echo(endpoint)
        context: zmq.Context[Any] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        try:
            yield socket
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            socket.close()
            context.term()


def serve_echo(endpoint: str) -> None:
    """Answer messages until killed."""
    socket: Any = zmq.Context().socket(zmq.ROUTER)
    socket.bind(endpoint)
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
    while True:
        route, frame = socket.recv_multipart()
        results = []
        for number in decode(frame):
            rows.nothing()
            results.append(number)
        socket.send_multipart([route, encode(results)])


@contextmanager
def round_trip() -> Iterator[Operation]:
    """One message there and back."""
    with echo_process() as socket:

        def run() -> None:
            socket.send(b"\x91\x01")
            socket.recv()

        yield Operation(run)


def in_batches(count: int, units: float) -> Callable[[], AbstractContextManager[Operation]]:
    """Send ``count`` tasks, 64 per message, and take all answers; that is ``units`` of the row's work."""

    @contextmanager
    def make() -> Iterator[Operation]:
        encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
        with echo_process() as socket:

            def run() -> None:
                for first in range(0, count, BATCH):
                    socket.send(encode(list(range(first, min(first + BATCH, count)))))
                done = 0
                while done < count:
                    done += len(decode(socket.recv()))

            yield Operation(run, units)

    return make


@contextmanager
def warm_memory(size_bytes: int) -> Iterator[Callable[[], None]]:
    """Yield a copy of ``size_bytes`` into shared memory that was touched before."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        target = np.frombuffer(mmap.mmap(file.fileno(), size_bytes), dtype=np.uint8)
        source = np.ones(size_bytes, dtype=np.uint8)
        np.copyto(target, source)
        yield lambda: np.copyto(target, source)


def copy_of(size_bytes: int, units: float) -> Callable[[], AbstractContextManager[Operation]]:
    """Copy into warm shared memory."""

    @contextmanager
    def make() -> Iterator[Operation]:
        with warm_memory(size_bytes) as copy:
            yield Operation(copy, units)

    return make


@contextmanager
def copy_and_round_trip() -> Iterator[Operation]:
    """One MiB copied into warm shared memory, and one message there and back."""
    with warm_memory(rows.MIB) as copy, echo_process() as socket:

        def run() -> None:
            copy()
            socket.send(b"\x91\x01")
            socket.recv()

        yield Operation(run)


def plain(run: Callable[[], object], count: float = 1) -> Callable[[], AbstractContextManager[Operation]]:
    """A limit that is one function."""

    @contextmanager
    def make() -> Iterator[Operation]:
        yield Operation(run, count)

    return make


def look_up() -> None:
    """A hundred dictionary look-ups."""
    table = {b"x" * 18: 0}
    for _ in range(100):
        table[b"x" * 18]


def insert() -> None:
    """A hundred dictionary inserts, each deleted at once."""
    table = {}
    for index in range(100):
        table[index] = 0
        del table[index]


@contextmanager
def view_large() -> Iterator[Operation]:
    """Unpickle an array over a buffer that is already mapped."""
    buffers: list[pickle.PickleBuffer] = []
    header = pickle.dumps(np.ones(rows.LARGE_BYTES, dtype=np.uint8), protocol=5, buffer_callback=buffers.append)
    yield Operation(lambda: pickle.loads(header, buffers=buffers))


@contextmanager
def unpickle_ids() -> Iterator[Operation]:
    """Unpickle ten thousand ids."""
    data = pickle.dumps([index.to_bytes(18, "big") for index in range(rows.REFS)])
    yield Operation(lambda: pickle.loads(data))


@contextmanager
def look_up_ids() -> Iterator[Operation]:
    """Ten thousand dictionary look-ups into a list."""
    table = {index.to_bytes(18, "big"): index for index in range(rows.REFS)}
    keys = list(table)
    yield Operation(lambda: [table[key] for key in keys])


def fork_and_kill() -> None:
    """Fork ten processes, hear one byte from each, kill them."""
    children = []
    for _ in range(rows.ACTORS):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"!")
            select.select([], [], [])
        os.close(writer)
        children.append((pid, reader))
    for pid, reader in children:
        os.read(reader, 1)
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
    for pid, _ in children:
        os.waitpid(pid, 0)


LIMITS: dict[str, Callable[[], AbstractContextManager[Operation]]] = {
    "task_sync": round_trip,
    "task_batch": in_batches(rows.CALLS, rows.CALLS),
    "task_nested": in_batches(2 * rows.NESTED, 2 * rows.NESTED),
    "actor_sync": round_trip,
    "actor_batch": in_batches(rows.CALLS, rows.CALLS),
    "actor_async": in_batches(rows.CALLS, rows.CALLS),
    "get_small": plain(look_up, 100),
    "put_small": plain(insert, 100),
    "put_large": copy_of(rows.LARGE_BYTES, rows.LARGE_BYTES / 1e9),
    "put_mib": copy_of(rows.MIB, 1),
    "get_large": view_large,
    "task_mib_argument": copy_and_round_trip,
    "task_mib_result": copy_and_round_trip,
    "wait_thousand": in_batches(1000, 1),
    "get_ref_list": unpickle_ids,
    "get_refs": look_up_ids,
    "actor_churn": plain(fork_and_kill, rows.ACTORS),
}
"""For each row, what its limit is measured by."""
