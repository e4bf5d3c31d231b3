"""The grammar of endpoints: what each means, and what is said of one that is wrong."""

from __future__ import annotations

import pytest

from meshray.transport.endpoints import Ipc, Tcp, Via, bind_address, check_key, parse

KEY = "0123456789abcdef" * 4


@pytest.mark.parametrize(("text", "meaning"), [
    ("ipc:///run/x/node.sock", Ipc("/run/x/node.sock")),
    (f"tcp://10.0.0.1:7001#{KEY}", Tcp("10.0.0.1", 7001, KEY)),
    (f"tcp://head.example:7001#{KEY.upper()}", Tcp("head.example", 7001, KEY)),
    (f"tcp://[fe80::1]:7001#{KEY}", Tcp("[fe80::1]", 7001, KEY)),
    ("via://node-12/driver-7", Via("node-12", "driver-7")),
])
def test_endpoints_mean_what_they_say(text, meaning):
    assert parse(text) == meaning
    assert isinstance(meaning, Ipc) or parse(str(meaning)) == meaning


@pytest.mark.parametrize(("text", "said"), [
    ("", "is no endpoint"),
    ("ipc://", "is no endpoint"),
    ("http://x", "is no endpoint"),
    ("via://node", "is no endpoint"),
    ("via://a/b/c", "is no endpoint"),
    ("tcp://host", "HOST:PORT#KEY"),
    ("tcp://fe80::1:7001#" + KEY, "IPv6 host in brackets"),
    ("tcp://host:7001", "lacks the node's public key"),
    ("tcp://host:70000#" + KEY, "ports are 1 to 65535"),
    ("tcp://host:0#" + KEY, "ports are 1 to 65535"),
    ("tcp://host:7001#abc", "64 hexadecimal digits"),
    ("tcp://host:7001#" + "g" * 64, "64 hexadecimal digits"),
])
def test_what_is_wrong_is_named(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_key_is_taken_with_spaces_and_capitals():
    assert check_key(f" {KEY.upper()}\n") == KEY


@pytest.mark.parametrize(("host", "port", "address"), [
    ("0.0.0.0", 7001, "tcp://0.0.0.0:7001"), ("::", 0, "tcp://[::]:*"), ("[::1]", 5, "tcp://[::1]:5"),
])
def test_bind_addresses(host, port, address):
    assert bind_address(host, port) == address
