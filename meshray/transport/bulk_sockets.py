"""The sockets of the bulk plane: one that answers for chunks, and one per node that we ask.

*Shell (zmq).* Runs in the bulk thread of the node process.

1. The context is of its own, with its own I/O thread: bulk data never waits in front of a control message.
2. A request has at most BULK_REQUEST_BYTES_MAX, an answer a chunk and its header: no peer makes us allocate more.
3. A taker that stops reading costs itself: its queue has room for what may be outstanding, what is above is not sent.
4. Chunks leave without a copy: the memory must stay as it is until ZeroMQ has sent it, or the taker will find it wrong.

Source: zmq_setsockopt(3); pyzmq's zero-copy sends pay from about 64 KiB.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import zmq
from zmq.backend import zmq_poll

from meshray import config
from meshray.transport.sockets import refuse_living

_ANSWER_BYTES_MAX = config.CHUNK_BYTES + 64 * config.KIB


class BulkSockets:
    """One ROUTER for those who ask us, one DEALER for each node that we ask. Made in one thread, used in one other."""

    def __init__(self, endpoint: str) -> None:
        """Listen at ``endpoint`` (``ipc://`` path or ``tcp://host:port``, port 0: any)."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._router = self._open(zmq.ROUTER, config.BULK_REQUEST_BYTES_MAX)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.SNDHWM, 4 * config.PULL_CREDIT_CHUNKS)
        self._asked: dict[str, tuple[str, zmq.Socket[bytes]]] = {}
        self._names: dict[zmq.Socket[bytes], str] = {}
        self._interest: list[tuple[Any, int]] = [(self._router, zmq.POLLIN)]
        if endpoint.startswith("ipc://"):
            refuse_living(endpoint.removeprefix("ipc://"))
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, f"cannot listen at {endpoint}: {error.strerror}") from error
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where we listen."""
        if endpoint.startswith("ipc://"):
            os.chmod(endpoint.removeprefix("ipc://"), 0o600)

    def _open(self, kind: int, bytes_max: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, bytes_max)
        socket.setsockopt(zmq.HANDSHAKE_IVL, config.HANDSHAKE_TIMEOUT_NS // config.MILLISECOND_NS)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if kind == zmq.DEALER:
            socket.setsockopt(zmq.HEARTBEAT_IVL, config.SUSPICION_NS // config.MILLISECOND_NS)
        return socket

    def watch_fd(self, fd: int) -> None:
        """Let ``wait`` also return when ``fd`` is readable."""
        self._interest.append((fd, zmq.POLLIN))

    def wait(self, timeout_ms: int) -> None:
        """Sleep until something can be received or a watched fd is ready."""
        zmq_poll(self._interest, timeout_ms)

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, holder: str, endpoint: str, frame: bytes) -> None:
        """Send a request to the node ``holder``, whose bulk socket is at ``endpoint``."""
        known, socket = self._asked.get(holder, ("", None))
        if socket is None or known != endpoint:
            self.forget(holder)
            socket = self._open(zmq.DEALER, _ANSWER_BYTES_MAX)
            socket.connect(endpoint)
            self._asked[holder] = (endpoint, socket)
            self._names[socket] = holder
            self._interest.append((socket, zmq.POLLIN))
        with suppress(zmq.Again):
            socket.send(frame, zmq.NOBLOCK)

    def forget(self, holder: str) -> None:
        """Close the connection to a node, if there is one."""
        _, socket = self._asked.pop(holder, ("", None))
        if socket is not None:
            self._interest.remove((socket, zmq.POLLIN))
            del self._names[socket]
            socket.close()

    def answers(self, count_max: int) -> list[tuple[str, list[Any]]]:
        """Return up to ``count_max`` waiting answers as (holder, frames)."""
        found: list[tuple[str, list[Any]]] = []
        dealers = [entry for entry in self._interest if entry[0] in self._names]
        for socket, _ in zmq_poll(dealers, 0) if dealers else ():
            only = [(socket, zmq.POLLIN)]
            while len(found) < count_max and (not found or zmq_poll(only, 0)):
                found.append((self._names[socket], socket.recv_multipart(copy=False)))
        return found

    # --- answering -----------------------------------------------------------------------------------------------

    def requests(self, count_max: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``count_max`` waiting requests as (route, frame)."""
        found: list[tuple[bytes, bytes]] = []
        only = self._interest[:1]
        while len(found) < count_max and zmq_poll(only, 0):
            parts = self._router.recv_multipart()
            if len(parts) == 2:
                found.append((parts[0], parts[1]))
        return found

    def answer(self, route: bytes, frame: bytes, data: memoryview | None = None) -> bool:
        """Answer a request, ``data`` without a copy. False if the asker is gone or does not read."""
        try:
            self._router.send(route, zmq.SNDMORE | zmq.NOBLOCK)
            self._router.send(frame, zmq.NOBLOCK | (zmq.SNDMORE if data is not None else 0))
            if data is not None:
                self._router.send(data, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def close(self) -> None:
        """Close all sockets and end the context."""
        for holder in list(self._asked):
            self.forget(holder)
        self._router.close()
        self._context.term()
        if getattr(self, "endpoint", "").startswith("ipc://"):
            with suppress(FileNotFoundError):
                os.unlink(self.endpoint.removeprefix("ipc://"))
