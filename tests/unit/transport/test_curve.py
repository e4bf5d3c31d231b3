"""Key files and the gate.

The sockets here talk over loopback; what a whole cluster refuses is tested in ``integration/test_network``.
"""

from __future__ import annotations

import os
import stat

import pytest
import zmq

from meshray.errors import KeyFileError
from meshray.transport.curve import AllowList, Gate, KeyPair, be_client, be_server

WAIT_MS = 5000
SILENCE_MS = 300


def test_a_key_file_is_private_and_comes_back(tmp_path):
    pair, path = KeyPair.make("laptop"), str(tmp_path / "state" / "laptop.key")
    pair.save(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert KeyPair.load(path) == pair
    assert os.listdir(tmp_path / "state") == ["laptop.key"]


def test_a_key_is_never_overwritten_by_accident(tmp_path):
    path = str(tmp_path / "a.key")
    KeyPair.make("a").save(path)
    with pytest.raises(FileExistsError):
        KeyPair.make("b").save(path)
    newer = KeyPair.make("b")
    newer.save(path, replace=True)
    assert KeyPair.load(path) == newer


def test_a_secret_does_not_show(tmp_path):
    pair = KeyPair.make("laptop")
    assert pair.secret not in repr(pair)
    assert pair.secret not in str([pair])


@pytest.mark.parametrize(("content", "mode", "said"), [
    (None, 0o600, "cannot read key file .*meshray keys add NAME"),
    (b"{", 0o600, "is no key file"),
    (b'{"name": "x", "public": "00", "secret": "zz"}', 0o600, "is no key file"),
    (b'{"name": "x", "public": "00", "secret": "0000"}', 0o600, "is no key file"),
    ("swapped", 0o600, "do not belong together"),
    ("good", 0o640, "can be read by others .mode 0640"),
])
def test_bad_key_files_are_refused(tmp_path, content, mode, said):
    path = tmp_path / "x.key"
    pair, other = KeyPair.make("x"), KeyPair.make("y")
    if content == "swapped":
        pair = KeyPair("x", other.public, pair.secret)
    if isinstance(content, str):
        pair.save(str(path))
    elif content is not None:
        path.write_bytes(content)
    if path.exists():
        path.chmod(mode)
    with pytest.raises(KeyFileError, match=said):
        KeyPair.load(str(path))


def test_the_allow_list_tells_of_revoked_keys():
    a, b = KeyPair.make("a"), KeyPair.make("b")
    allowed, gone = AllowList({"a": a.public}), []
    allowed.when_revoked(gone.append)
    assert allowed.name_of(a.public) == "a"
    assert allowed.name_of(b.public) is None
    allowed.allow("b", b.public.upper())
    assert allowed.keys() == {a.public: "a", b.public: "b"}
    assert allowed.revoke(a.public)
    assert not allowed.revoke(a.public)
    assert gone == [a.public]
    assert allowed.keys() == {b.public: "b"}
    with pytest.raises(ValueError, match="64 hexadecimal"):
        allowed.allow("c", "abc")


class Door:
    """A guarded ROUTER on loopback, and visitors."""

    def __init__(self) -> None:
        self.pair = KeyPair.make("server")
        self.friend = KeyPair.make("friend")
        self.allowed = AllowList({"friend": self.friend.public})
        self.context = zmq.Context()
        self.gate = Gate(self.context, self.allowed)
        self.socket = self.context.socket(zmq.ROUTER)
        be_server(self.socket, self.pair)
        self.socket.bind("tcp://127.0.0.1:*")
        self.address = self.socket.getsockopt(zmq.LAST_ENDPOINT).decode()
        self.visitors = zmq.Context()
        self.inside = []

    def visit(self, pair, *, server_key=None):
        visitor = self.visitors.socket(zmq.DEALER)
        visitor.setsockopt(zmq.LINGER, 0)
        if pair is not None:
            be_client(visitor, pair, server_key or self.pair.public)
        visitor.connect(self.address)
        visitor.send(b"let me in")
        self.inside.append(visitor)

    def hears(self, wait_ms):
        return self.socket.recv_multipart(copy=False) if self.socket.poll(wait_ms) else None

    def close(self):
        for visitor in self.inside:
            visitor.close(linger=0)
        self.visitors.term()
        self.gate.close()
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def door():
    made = Door()
    yield made
    made.close()


def test_an_allowed_key_comes_in_and_is_known(door):
    door.visit(door.friend)
    heard = door.hears(WAIT_MS)
    assert heard[1].bytes == b"let me in"
    assert heard[1].get("User-Id") == door.friend.public


@pytest.mark.parametrize("kind", ["plain", "stranger", "impostor", "wrong server"])
def test_nobody_else_comes_in(door, kind):
    stranger = KeyPair.make("stranger")
    if kind == "plain":
        door.visit(None)
    elif kind == "stranger":
        door.visit(stranger)
    elif kind == "impostor":
        door.visit(KeyPair("friend", door.friend.public, stranger.secret))
    else:
        door.visit(door.friend, server_key=stranger.public)
    assert door.hears(SILENCE_MS) is None
    door.visit(door.friend)
    assert door.hears(WAIT_MS) is not None, "the door still opens for friends"


def test_a_revoked_key_gets_no_new_connection(door):
    door.allowed.revoke(door.friend.public)
    door.visit(door.friend)
    assert door.hears(SILENCE_MS) is None
    assert door.gate.refused > 0


def test_without_a_gate_nobody_comes_in(door):
    door.gate.close()
    door.gate.close()
    door.visit(door.friend)
    assert door.hears(SILENCE_MS) is None
