"""The sockets of the bulk plane: one that answers for chunks, and one per node that we ask.

*Shell (zmq).* Runs in the bulk thread of the node process.

1. The context is of its own, with its own I/O thread: bulk data never waits in front of a control message.
2. A request has at most BULK_REQUEST_BYTES_MAX, an answer a chunk and its header: no peer makes us allocate more.
3. A taker that stops reading costs itself: its queue has room for what may be outstanding, what is above is not sent.
4. On a network, who asks must have a key that is allowed (still: one that was revoked gets nothing more), and all is
   encrypted; without ``bulk_encryption`` only tickets keep others out, and chunks travel readable.
5. Chunks leave without a copy: the memory must stay as it is until ZeroMQ has sent it, or the taker will find it wrong.

Source: zmq_setsockopt(3); pyzmq's zero-copy sends pay from about 64 KiB.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import zmq
from zmq.backend import zmq_poll

from meshray import config
from meshray.node_config import Network
from meshray.transport.curve import AllowList, Gate, KeyPair, be_client, be_server
from meshray.transport.endpoints import bind_address
from meshray.transport.sockets import refuse_living

_ANSWER_BYTES_MAX = config.CHUNK_BYTES + 64 * config.KIB


class BulkSockets:
    """One ROUTER for those who ask us, one DEALER for each node that we ask. Made in one thread, used in one other."""

    def __init__(self, endpoint: str, network: Network | None = None, allowed: AllowList | None = None) -> None:
        """Listen at ``endpoint`` (an ``ipc://`` path), or, with a ``network``, at its bulk port, for who is
        ``allowed``. Raise OSError, KeyFileError."""
        self._keys = KeyPair.load(network.key_file) if network is not None else None
        self._allowed = allowed if network is not None and network.bulk_encryption else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._gate = Gate(self._context, self._allowed) if self._allowed is not None else None
        self._router = self._open(zmq.ROUTER, config.BULK_REQUEST_BYTES_MAX)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.SNDHWM, 4 * config.PULL_CREDIT_CHUNKS)
        self._asked: dict[str, tuple[str, zmq.Socket[bytes]]] = {}
        self._names: dict[zmq.Socket[bytes], str] = {}
        self._interest: list[tuple[Any, int]] = [(self._router, zmq.POLLIN)]
        self.endpoint = endpoint
        """Where others find us."""
        try:
            if network is None:
                self._listen_here(endpoint.removeprefix("ipc://"))
            else:
                self._listen_outside(network)
        except BaseException:
            self.close()
            raise

    def _listen_here(self, path: str) -> None:
        refuse_living(path)
        self._router.bind("ipc://" + path)
        os.chmod(path, 0o600)

    def _listen_outside(self, network: Network) -> None:
        wanted = bind_address(network.bind, network.bulk_port)
        self._router.setsockopt(zmq.IPV6, int(":" in network.bind))
        assert self._keys is not None
        if self._allowed is not None:
            be_server(self._router, self._keys)
        try:
            self._router.bind(wanted)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen at {wanted}: {error.strerror}. Set another bulk_port, or a bind "
                                       "address of this machine") from error
        port = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        host = network.advertise or network.bind
        host = f"[{host}]" if ":" in host and host[0] != "[" else host
        self.endpoint = f"tcp://{host}:{port}" + (f"#{self._keys.public}" if self._allowed is not None else "")

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

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until something can be received or a watched fd is ready. True if a watched fd is."""
        return any(type(source) is int for source, _ in zmq_poll(self._interest, timeout_ms))

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, holder: str, endpoint: str, frame: bytes) -> None:
        """Send a request to the node ``holder``, whose bulk socket is at ``endpoint``."""
        known, socket = self._asked.get(holder, ("", None))
        if socket is None or known != endpoint:
            self.forget(holder)
            socket = self._open(zmq.DEALER, _ANSWER_BYTES_MAX)
            address, _, key = endpoint.partition("#")
            socket.setsockopt(zmq.IPV6, int("[" in address))
            if key and self._keys is not None:
                be_client(socket, self._keys, key)
            socket.connect(address)
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
            parts = self._router.recv_multipart(copy=False)
            if len(parts) == 2 and (self._allowed is None or self._is_allowed(parts[1])):
                found.append((parts[0].bytes, parts[1].bytes))
        return found

    def _is_allowed(self, frame: zmq.Frame) -> bool:
        """Whether the key that the sender proved is allowed still."""
        assert self._allowed is not None
        return self._allowed.name_of(str(frame.get("User-Id"))) is not None

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
        if self._gate is not None:
            self._gate.close()
        self._context.term()
        if self.endpoint.startswith("ipc://"):
            with suppress(FileNotFoundError):
                os.unlink(self.endpoint.removeprefix("ipc://"))
