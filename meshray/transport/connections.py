"""TCP connections under ZeroMQ's hands: whom they lead to, and how to end one.

*Shell (sockets, /proc).* Runs in node processes of clusters with a network.

ZeroMQ can end a connection that it opened, but none that came in. Whoever shuts the socket down under it makes it drop
the connection by itself. A descriptor may be another connection's by then, so each is looked at again by its two ends.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress

from meshray.transport.endpoints import bind_address

End = tuple[str, int]
"""Host and port."""

NOWHERE: End = ("", 0)


_MONITORED = struct.Struct("=HI")


def monitored(parts: Sequence[bytes]) -> tuple[int, int, str]:
    """Return an event of a socket's monitor: its kind, its value (a descriptor, often) and the address. pyzmq's own
    parser would bring asyncio into every process.

    Source: zmq_socket_monitor(3).
    """
    kind, value = _MONITORED.unpack(parts[0])
    return kind, value, parts[1].decode(errors="replace")


def numeric(address: str) -> str:
    """Return the address with its host in numbers, as ZeroMQ's events have it; unchanged if the name has none now."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return address
    number = next((info[4][0] for info in found if info[0] == socket.AF_INET), found[0][4][0])
    return bind_address(str(number), int(port))


def other_end(descriptor: int) -> End:
    """Return the other end of the connection with this descriptor, NOWHERE if it has closed meanwhile."""
    try:
        with _open(descriptor) as connection:
            return _end(connection.getpeername())
    except OSError:
        return NOWHERE


def accepted(port: int) -> list[tuple[int, End]]:
    """Return the connections of this process that came in at ``port``: descriptor and other end."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError), _open(int(entry)) as connection:
            own = connection.getsockname()
            if isinstance(own, tuple) and own[1] == port:
                found.append((int(entry), _end(connection.getpeername())))
    return found


def shut(descriptor: int) -> None:
    """End a connection."""
    with suppress(OSError), _open(descriptor) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _open(descriptor: int) -> socket.socket:
    """Return a socket of our own for this descriptor. Raise OSError if it is none, or closed."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOTSOCK, "not a socket")
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise


def _end(address: tuple[str, int]) -> End:
    return address[0], address[1]
