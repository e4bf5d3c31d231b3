"""The grammar of endpoints: where a process can be reached.

*Pure.* Used by every process.

::

    ipc://<path>                          a process of this machine
    tcp://<host>:<port>#<64 hex digits>   the control port of a node, and the public key that it must prove to have
    via://<node>/<process>                a process of another machine, through its node; ``<node>`` is the node's id or
                                          name, ``<process>`` the process's name, ``node`` for the node process itself

1. Only nodes listen on TCP. All others are reached through their node (``transport.switch``).
2. A TCP endpoint without its key is no endpoint: whoever connects knows whom it talks to.
"""

from __future__ import annotations

import re

import msgspec

NODE_PROCESS = "node"
"""What a node process is called in ``via`` endpoints and in its sessions."""

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\[\]:#/]+):(?P<port>\d{1,5})(#(?P<key>.*))?")
_VIA = re.compile(r"via://(?P<node>[^/]+)/(?P<process>[^/]+)")
_KEY = re.compile(r"[0-9a-f]{64}")


class Ipc(msgspec.Struct, frozen=True):
    """A Unix socket."""

    path: str


class Tcp(msgspec.Struct, frozen=True):
    """A node's port. ``key`` is its public key in hexadecimal."""

    host: str
    port: int
    key: str

    @property
    def address(self) -> str:
        """What ZeroMQ connects to."""
        return f"tcp://{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.address}#{self.key}"


class Via(msgspec.Struct, frozen=True):
    """A process behind a node."""

    node: str
    process: str

    def __str__(self) -> str:
        return f"via://{self.node}/{self.process}"


Endpoint = Ipc | Tcp | Via


def parse(endpoint: str) -> Endpoint:
    """Return what ``endpoint`` names. Raise ValueError that says what is wrong with it."""
    if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://"):
        return Ipc(endpoint.removeprefix("ipc://"))
    if endpoint.startswith("tcp://"):
        return _parse_tcp(endpoint)
    via = _VIA.fullmatch(endpoint)
    if via is not None:
        return Via(via["node"], via["process"])
    raise ValueError(f"{endpoint!r} is no endpoint: it is ipc://PATH, tcp://HOST:PORT#KEY or via://NODE/PROCESS")


def _parse_tcp(endpoint: str) -> Tcp:
    match = _TCP.fullmatch(endpoint)
    if match is None:
        raise ValueError(f"{endpoint!r} is no address of a node: it is tcp://HOST:PORT#KEY, an IPv6 host in brackets")
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise ValueError(f"{endpoint!r} has port {port}: ports are 1 to 65535")
    if match["key"] is None:
        raise ValueError(f"{endpoint!r} lacks the node's public key: append # and its 64 hex digits, which "
                         "meshray keys list shows on the cluster")
    return Tcp(match["host"], port, check_key(match["key"]))


def home_of(endpoint: str) -> str:
    """Return what the endpoints of all processes of one node have in common."""
    return endpoint.rpartition("/")[0]


def process_of(endpoint: str) -> str:
    """Return the name of the process that is reached there."""
    return endpoint.rpartition("/")[2].removesuffix(".sock")


def homes_of(node: str, name: str, endpoint: str) -> tuple[str, ...]:
    """Return the homes of the processes of the node with this id and name, which itself is reached at ``endpoint``."""
    behind = (f"via://{node}", f"via://{name}")
    return (home_of(endpoint), *behind) if endpoint.startswith("ipc://") else behind


def check_key(key: str) -> str:
    """Return the public key in lower case. Raise ValueError if it is none."""
    lower = key.strip().lower()
    if not _KEY.fullmatch(lower):
        raise ValueError(f"{key!r} is no public key: a key has 64 hexadecimal digits")
    return lower


def bind_address(host: str, port: int) -> str:
    """Return the ZeroMQ address to listen at; port 0 is any free one."""
    inside = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"tcp://{inside}:{port or '*'}"
