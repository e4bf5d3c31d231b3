"""Keys: who a process is on the network, and who may talk to it.

*Shell (zmq, files, a thread per gate).* Runs in node processes, and in the command line and drivers that make keys.

1. A secret key is made on the machine that uses it, and lies in a file of mode 0600 that only its owner may read.
2. Every bound TCP socket is guarded: CURVE with a ZAP domain that is enforced. Without a living ``Gate`` in its context
   libzmq then lets nobody in; without the domain it would let everybody in.
3. A gate lets in the keys of its allow list, which any thread may change; a key that was taken out gets no new
   connection, and whoever owns the sockets closes those that it has (``AllowList.when_revoked``).
4. What a gate lets in carries its public key (``User-Id`` of every frame), so a peer cannot pose as another.

Source: ZeroMQ RFC 26 (CurveZMQ) and 27 (ZAP); libzmq src/curve_server.cpp for the enforced domain.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import zmq
from zmq.utils import z85

from meshray import config
from meshray.errors import KeyFileError
from meshray.transport.endpoints import check_key

log = logging.getLogger("meshray.keys")

DOMAIN = b"meshray"
_ZAP = "inproc://zeromq.zap.01"


class KeyPair(msgspec.Struct, frozen=True):
    """A public key and its secret, in hexadecimal; ``name`` is what people call its owner."""

    name: str
    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.name!r}, {self.public!r}, secret not shown)"

    @classmethod
    def make(cls, name: str) -> KeyPair:
        """Return a new key pair."""
        public, secret = zmq.curve_keypair()
        return cls(name, z85.decode(public).hex(), z85.decode(secret).hex())

    @classmethod
    def load(cls, path: str) -> KeyPair:
        """Read a key file. Raise KeyFileError if it is missing, readable by others, or no key file."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise KeyFileError(f"cannot read key file {path}: {error.strerror}. Make a key with meshray keys add NAME, "
                               "or name another file in MESHRAY_KEY_FILE") from error
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_mode & 0o077 or status.st_uid not in (os.geteuid(), 0):
                raise KeyFileError(f"key file {path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}, "
                                   f"user {status.st_uid}): chmod 600 it if nobody else has seen it, else make a new "
                                   "key with meshray keys rotate")
            content = file.read(config.KIB * 4)
        try:
            pair = msgspec.json.decode(content, type=cls)
            public = z85.decode(zmq.curve_public(z85.encode(bytes.fromhex(pair.secret)))).hex()
        except (msgspec.DecodeError, ValueError, zmq.ZMQError) as error:
            raise KeyFileError(f"{path} is no key file: {error}. Make one with meshray keys add NAME") from error
        if public != pair.public:
            raise KeyFileError(f"the halves of the key in {path} do not belong together: make a new one with "
                               "meshray keys rotate")
        return pair

    def save(self, path: str, *, replace: bool = False) -> None:
        """Write a key file of mode 0600. Raise FileExistsError unless ``replace``, KeyFileError if it cannot be."""
        write_private(path, msgspec.json.encode(self), replace=replace)


def write_private(path: str, content: bytes, *, replace: bool) -> None:
    """Write a file that only this user may read, whole or not at all. Raise FileExistsError, KeyFileError."""
    temporary = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except FileExistsError:
        raise
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}. Set MESHRAY_STATE_DIR to a directory of your "
                           "own") from error


class AllowList:
    """The public keys that may connect, and whose they are. Any thread may use it."""

    def __init__(self, allowed: dict[str, str] | None = None) -> None:
        """``allowed``: name -> public key."""
        self._lock = threading.Lock()
        self._names: dict[str, str] = {check_key(key): name for name, key in (allowed or {}).items()}
        self._listeners: list[Callable[[str], object]] = []

    def name_of(self, key: str) -> str | None:
        """Return whose key this is, None if it is nobody's."""
        return self._names.get(key)

    def allow(self, name: str, key: str) -> None:
        """Let the key in from now on."""
        with self._lock:
            self._names = {**self._names, check_key(key): name}

    def revoke(self, key: str) -> bool:
        """Keep the key out from now on and tell the listeners; False if it was not in."""
        with self._lock:
            if key not in self._names:
                return False
            self._names = {each: name for each, name in self._names.items() if each != key}
            listeners = list(self._listeners)
        for listener in listeners:
            listener(key)
        return True

    def when_revoked(self, listener: Callable[[str], object]) -> None:
        """Have ``listener(key)`` called, in the thread that revokes, for every key that is taken out."""
        with self._lock:
            self._listeners.append(listener)

    def keys(self) -> dict[str, str]:
        """Return public key -> name of all that may connect."""
        return self._names


class Gate:
    """The doorkeeper of one ZeroMQ context: answers libzmq's question whether a key may come in. One per context,
    made before its sockets are bound, closed before the context ends."""

    def __init__(self, context: zmq.Context[Any], allowed: AllowList) -> None:
        self.allowed = allowed
        self.refused = 0
        """Handshakes refused so far."""
        self._told: dict[str, None] = {}
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="meshray-gate", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                ready = dict(zmq.zmq_poll([(self._socket, zmq.POLLIN), (self._wake_fd, zmq.POLLIN)], -1))
                if self._wake_fd in ready:
                    return
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        except zmq.ZMQError:
            log.exception("the gate failed: from now on nobody gets in")
        finally:
            self._socket.close(linger=0)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number, domain, address, _, mechanism, *credentials = (*request[:6], *request[6:])
        key = credentials[0].hex() if mechanism == b"CURVE" and credentials else ""
        if version == b"1.0" and domain == DOMAIN and self.allowed.name_of(key) is not None:
            return [version, number, b"200", b"OK", key.encode(), b""]
        self.refused += 1
        if key not in self._told:
            self._told[key] = None
            if len(self._told) > config.REFUSED_KEYS_TOLD_MAX:
                del self._told[next(iter(self._told))]
            log.warning("refused key %s from %s: it is not in the allow list. If its owner may come in: "
                        "meshray keys add NAME %s", key or "(none)", address.decode(errors="replace"), key)
        return [version, number, b"400", b"key not allowed", b"", b""]

    def close(self) -> None:
        """End the thread and its socket: from now on nobody gets in. Closing twice is a no-op."""
        if self._thread.is_alive():
            os.eventfd_write(self._wake_fd, 1)
            self._thread.join()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1


def be_server(socket: zmq.Socket[Any], pair: KeyPair) -> None:
    """Let only keys of the context's gate in on this socket. Call it before ``bind``."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(pair.secret))
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def be_client(socket: zmq.Socket[Any], pair: KeyPair, server_key: str) -> None:
    """Have the next ``connect`` of this socket prove who we are, to the owner of ``server_key`` only."""
    socket.setsockopt(zmq.CURVE_SERVER, 0)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(pair.public))
    socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(pair.secret))
    socket.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(server_key))
