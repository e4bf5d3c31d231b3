"""The one door to ZeroMQ: a process's socket, with every option set in one place.

*Shell (zmq).* Runs in every process.

1. A process has one ROUTER. It is bound at the process's endpoint, and it also connects out; a peer we connected to
   is addressed as ``b">" + name``, a peer that connected to us by its bare name. The two can never collide, even when
   both sides connect at once (two plain ROUTERs would silently drop one of the pipes).
2. A route therefore says who opened the dialog; answers go back on the route they came by, so each dialog is first in,
   first out in both directions.
3. Routing is mandatory: a message to a peer that is not there is reported, not dropped.
4. Linger is bounded, high-water marks are off (every queue above has its own named limit), frames are bounded.
5. An ipc path is never stolen from a living process: binding refuses a path that somebody answers on.
6. A dialog with a service outlives its process: what is sent meanwhile waits, and the next process has it soon.

Source: ZeroMQ RFC 28 (ROUTER), zmq_setsockopt(3).
"""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
import stat
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import zmq
from zmq.backend import Socket, zmq_poll

from meshray import config, ids

Route = bytes
OUT = b">"
_IPC_PATH_MAX = 107
_CLOSED_MAX = 10_000


class AddressInUse(OSError):
    """The endpoint belongs to a living process."""


def route_to(name: str) -> Route:
    """Return the route of a peer that we connect to."""
    return OUT + name.encode()


def name_of(route: Route) -> str:
    """Return the peer's name, whichever side opened the dialog."""
    return route.removeprefix(OUT).decode(errors="replace")


def ipc_endpoint(directory: str, name: str) -> str:
    """Return the ipc endpoint of process ``name`` in ``directory``; raise ValueError when the path is too long."""
    path = os.path.join(directory, name)
    if len(path.encode()) > _IPC_PATH_MAX:
        raise ValueError(
            f"run directory path is too long for a Unix socket: {path!r} has {len(path.encode())} bytes, "
            f"at most {_IPC_PATH_MAX} are possible. Set MESHRAY_RUN_ROOT to a shorter directory"
        )
    return "ipc://" + path


def process_endpoint(run_dir: str, process: str) -> str:
    """Return the ipc endpoint of a node's process."""
    return ipc_endpoint(run_dir, process + ".sock")


class Wire(Protocol):
    """What a host needs of a process's place in the mesh: ``Peers``, or what stands around it in a cluster with a
    network (``behind_node``, ``switch``)."""

    name: str
    endpoint: str
    bounced: deque[tuple[Route, bytes]]
    """Messages that came back undelivered after ``send`` had taken them: route and frame."""

    @property
    def readable(self) -> Sequence[int]:
        """The watched descriptors that were readable when ``wait`` returned last."""
        ...

    def connect(self, name: str, endpoint: str) -> Route:
        """Open a dialog and return its route."""
        ...

    def disconnect(self, name: str) -> None:
        """Close a dialog that we opened."""
        ...

    def send(self, route: Route, frame: bytes, *buffers: Any) -> bool:
        """Send; False if the peer is not there."""
        ...

    def receive(self, count_max: int, *, ready: bool = False) -> list[list[bytes]]:
        """Return waiting messages."""
        ...

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until something is ready; True if a message is for certain."""
        ...

    def watch_fd(self, fd: int) -> None:
        """Let ``wait`` also return when ``fd`` is readable."""
        ...

    def unwatch_fd(self, fd: int) -> None:
        """Undo ``watch_fd``."""
        ...

    def close(self, linger_ms: int = 0) -> None:
        """Close all sockets."""
        ...


class SessionWire(Wire, Protocol):
    """What a session needs beside that: an event loop may wait for its socket."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when messages may wait."""
        ...

    def has_input(self) -> bool:
        """Whether a message waits."""
        ...


class Peers:
    """One process's place in the mesh. Not thread-safe: one thread at a time may use it (see ``session.driving``)."""

    def __init__(self, name: str, endpoint: str) -> None:
        """Open the socket as ``name`` and bind it to ``endpoint`` (``ipc://`` path). Raise AddressInUse or OSError."""
        self.name = name
        self.endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = self.socket = self._open(name)
        self._send_part = partial(Socket.send, self._socket)
        """The method below pyzmq's own in Python, which would double the time of sending."""
        self._connected: dict[Route, str] = {}
        self._at: dict[str, str] = {}
        """Endpoint -> the name that we connected to there."""
        self._closed: dict[Route, None] = {}
        """Routes of dialogs that we closed lately, oldest first."""
        self._inner: dict[Route, Route] = {}
        """Route -> what ZeroMQ knows it by, for names that were used before."""
        self._outer: dict[Route, Route] = {}
        self._reopened = 0
        self.bounced: deque[tuple[Route, bytes]] = deque()
        self.readable: Sequence[int] = ()
        try:
            self._bind(endpoint)
        except BaseException:
            self.close()
            raise
        self._interest: list[tuple[Any, int]] = [(self._socket, zmq.POLLIN)]
        self._only = self._interest[:1]
        self._fd = int(self._socket.getsockopt(zmq.FD))

    def _open(self, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.IDENTITY, name.encode())
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, config.MESSAGE_BYTES_MAX)
        socket.setsockopt(zmq.HANDSHAKE_IVL, config.HANDSHAKE_TIMEOUT_NS // config.MILLISECOND_NS)
        socket.setsockopt(zmq.RECONNECT_IVL, 5)
        return socket

    def _bind(self, endpoint: str) -> None:
        if endpoint.startswith("ipc://"):
            refuse_living(endpoint.removeprefix("ipc://"))
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen at {endpoint}: {error.strerror}") from error
        if endpoint.startswith("ipc://"):
            os.chmod(endpoint.removeprefix("ipc://"), 0o600)

    def watch_fd(self, fd: Any) -> None:
        """Let ``wait`` also return when ``fd`` (a descriptor or another ZeroMQ socket) is readable."""
        self._interest.append((fd, zmq.POLLIN))

    def unwatch_fd(self, fd: Any) -> None:
        """Undo ``watch_fd``."""
        self._interest.remove((fd, zmq.POLLIN))

    def connect(self, name: str, endpoint: str) -> Route:
        """Open a dialog with ``name`` at ``endpoint`` and return its route. Connecting twice is a no-op."""
        route = OUT + name.encode()
        known = self._connected.get(route)
        # Another name at our endpoint was there before us and is gone: to disconnect from it is to listen no more.
        if known == endpoint or (endpoint == self.endpoint and name != self.name):
            return route
        if known is not None:
            self.disconnect(name)
        before = self._at.get(endpoint)
        if before is not None:
            # A process has one name: the one that had been there is gone. ZeroMQ would connect both routes to the new
            # one, which takes them for one peer, and would close both with the first.
            self.disconnect(before)
        self._at[endpoint] = name
        inner = route
        if route in self._closed:
            # libzmq aborts when the name of a connection that is still being closed is used again.
            self._reopened += 1
            inner = self._inner[route] = b"%s\0%d" % (route, self._reopened)
            self._outer[inner] = route
        pause_ns = config.RECONNECT_MAX_NS if name.startswith(ids.ONCE) else config.RECONNECT_SERVICE_MAX_NS
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, pause_ns // config.MILLISECOND_NS)
        self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, inner)
        self._socket.connect(endpoint)
        self._connected[route] = endpoint
        return route

    def is_connected(self, name: str) -> bool:
        """Whether we opened a dialog with ``name``."""
        return OUT + name.encode() in self._connected

    def disconnect(self, name: str) -> None:
        """Close the dialog that we opened with ``name``; what was not sent is dropped. Closing twice is a no-op."""
        route = OUT + name.encode()
        endpoint = self._connected.pop(route, None)
        if endpoint is not None:
            del self._at[endpoint]
            self._closed[route] = None
            if len(self._closed) > _CLOSED_MAX:
                del self._closed[next(iter(self._closed))]
            self._outer.pop(self._inner.pop(route, b""), None)
            try:
                self._socket.disconnect(endpoint)
            except zmq.ZMQError as error:
                if error.errno not in (errno.ENOENT, zmq.ENOTSOCK):
                    raise

    def send(self, route: Route, frame: bytes, *buffers: Any) -> bool:
        """Send ``frame`` (and ``buffers``, large ones without a copy). False if the peer is not there."""
        send_part, send = self._send_part, self._socket.send
        try:
            send_part(self._inner.get(route, route) if self._inner else route, zmq.SNDMORE)
            if not buffers:
                send_part(frame)
                return True
            send_part(frame, zmq.SNDMORE)
            for buffer in buffers[:-1]:
                send(buffer, zmq.SNDMORE, copy=False)
            send(buffers[-1], copy=False)
            return True
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise

    def receive(self, count_max: int, *, ready: bool = False) -> list[list[bytes]]:
        """Return up to ``count_max`` waiting messages, each ``[route, frame, *buffers]``, without blocking.

        ``ready``: ``wait`` has just said that there is one. Asking with ``zmq_poll`` and taking the second part as a
        Frame, which knows whether more follow, costs 5 us a message; asking for EVENTS and RCVMORE costs 12.
        """
        recv: Any = self._socket.recv
        only = self._only
        messages: list[list[bytes]] = []
        while len(messages) < count_max and (ready or zmq_poll(only, 0)):
            ready = False
            route = recv()
            part = recv(copy=False)
            message = [route, part.bytes]
            while part.more:
                part = recv(copy=False)
                message.append(part.bytes)
            messages.append(message)
        if self._outer:
            for message in messages:
                message[0] = self.outer(message[0])
        return messages

    def outer(self, route: Route) -> Route:
        """Return the route by which others know what came from ZeroMQ on ``route``."""
        return self._outer.get(route, route)

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until a message or watched fd is ready, at most ``timeout_ms`` (-1: no limit). True if a message is."""
        ready = zmq_poll(self._interest, timeout_ms)
        has_message = bool(ready) and ready[0][0] is self._socket
        self.readable = [fd for fd, _ in ready if type(fd) is int] if len(ready) > has_message else ()
        return has_message

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when messages may wait (edge-triggered: then ask ``has_input``)."""
        return self._fd

    def has_input(self) -> bool:
        """Whether a message waits."""
        return bool(zmq_poll(self._only, 0))

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket, giving unsent messages ``linger_ms``, and remove the ipc path."""
        if self._socket.closed:
            return
        self._socket.close(linger=linger_ms)
        self._context.term()
        if self.endpoint.startswith("ipc://"):
            with suppress(FileNotFoundError):
                os.unlink(self.endpoint.removeprefix("ipc://"))

    @property
    def connected(self) -> Sequence[Route]:
        """Routes of the dialogs that we opened."""
        return tuple(self._connected)


def refuse_living(path: str) -> None:
    """Remove a dead process's socket at ``path``; raise AddressInUse if somebody listens there."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise AddressInUse(f"{path} exists and is not a socket: remove it or choose another run directory")
    except FileNotFoundError:
        return
    with stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        else:
            raise AddressInUse(f"{path} belongs to a running process: stop it, or choose another run directory")
    with suppress(FileNotFoundError):
        os.unlink(path)
