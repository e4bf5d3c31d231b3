"""Envelopes and relayed dialogs: the bytes, the routes on both ends, bounces, and names that are taken."""

from __future__ import annotations

import pytest

from meshray import config
from meshray.transport import relay
from meshray.transport.codec import BadFrame
from meshray.transport.endpoints import Via
from meshray.transport.relay import (
    ANSWER,
    ANSWER_BOUNCED,
    OPENING,
    OPENING_BOUNCED,
    Dialogs,
    Envelope,
    LinkNews,
    bounce_of,
)

ENVELOPE = Envelope(OPENING, "node-2", "worker-1", "node-1", "driver-1")
GOLDEN = "4d524501" "9500a66e6f64652d32a8776f726b65722d31a66e6f64652d31a86472697665722d31"
NEWS_GOLDEN = "4d524c01" "92a66e6f64652d31cd012c"


def test_the_bytes_are_golden():
    assert relay.encode(ENVELOPE).hex() == GOLDEN
    assert relay.decode(bytes.fromhex(GOLDEN)) == ENVELOPE
    assert relay.encode_news(LinkNews("node-1", 300)).hex() == NEWS_GOLDEN
    assert relay.decode_news(bytes.fromhex(NEWS_GOLDEN)) == LinkNews("node-1", 300)


def test_every_cut_of_an_envelope_is_bad_or_a_value():
    frame = relay.encode(ENVELOPE)
    for length in range(len(frame)):
        assert isinstance(relay.decode(frame[:length]), BadFrame)
    assert isinstance(relay.decode(b"MRY\x01" + frame[4:]), BadFrame)
    assert isinstance(relay.decode_news(relay.encode_news(LinkNews("n"))[:-1]), BadFrame)


class End:
    """A process with its dialogs; its node fills in who it is, as ``switch`` does."""

    def __init__(self, node, process, *, names=()):
        self.node, self.process, self.names = node, process, (node, *names)
        self.dialogs = Dialogs()

    def envelope(self, route):
        sent = relay.decode(self.dialogs.remotes[route].head)
        source = sent.from_node if sent.kind == ANSWER and sent.from_node in self.names else self.node
        return Envelope(sent.kind, sent.node, sent.process, source, self.process)


def test_a_dialog_looks_as_if_both_ends_were_connected():
    opener, other = End("node-1", "driver-1"), End("node-2", "shard-0-0", names=("head",))
    route = opener.dialogs.open("shard-0-0", Via("head", "shard-0-0"))
    assert route == b">shard-0-0"
    assert opener.dialogs.open("shard-0-0", Via("head", "shard-0-0")) == route
    asked = opener.envelope(route)
    assert asked == Envelope(OPENING, "head", "shard-0-0", "node-1", "driver-1")
    assert other.dialogs.arrived(asked) == b"driver-1"
    answer = other.envelope(b"driver-1")
    assert answer == Envelope(ANSWER, "node-1", "driver-1", "head", "shard-0-0")
    assert opener.dialogs.arrived(answer) == route


def test_both_may_open_a_dialog_with_each_other():
    one, two = End("node-1", "a"), End("node-2", "b")
    out, back = one.dialogs.open("b", Via("node-2", "b")), two.dialogs.open("a", Via("node-1", "a"))
    assert two.dialogs.arrived(one.envelope(out)) == b"a"
    assert one.dialogs.arrived(two.envelope(back)) == b"b"
    assert one.dialogs.arrived(two.envelope(b"a")) == b">b"
    assert two.dialogs.arrived(one.envelope(b"b")) == b">a"


def test_node_processes_go_by_their_node():
    dialogs = Dialogs("node-1", "node")
    assert dialogs.arrived(Envelope(OPENING, "node-1", "node", "node-2", "node")) == b"node-2"
    route = dialogs.open("node-2", Via("node-2", "node"))
    assert relay.decode(dialogs.remotes[route].head) == Envelope(OPENING, "node-2", "node", "node-1", "node")
    assert dialogs.arrived(Envelope(ANSWER, "node-1", "node", "node-2", "node")) == b">node-2"


def test_what_cannot_be_delivered_comes_back_on_the_route_that_it_was_sent_on():
    opener, other = End("node-1", "driver-1"), End("node-2", "worker-1")
    route = opener.dialogs.open("worker-1", Via("node-2", "worker-1"))
    asked = opener.envelope(route)
    back = bounce_of(asked)
    assert back == Envelope(OPENING_BOUNCED, "node-1", "driver-1", "node-2", "worker-1")
    assert opener.dialogs.arrived(back) == route
    other.dialogs.arrived(asked)
    lost = bounce_of(other.envelope(b"driver-1"))
    assert lost.kind == ANSWER_BOUNCED
    assert other.dialogs.arrived(lost) == b"driver-1"
    assert b"driver-1" not in other.dialogs.remotes, "nobody is there any more"
    assert bounce_of(back) is None
    assert bounce_of(lost) is None


def test_an_answer_of_somebody_else_is_dropped():
    opener = End("node-1", "driver-1")
    opener.dialogs.open("shard-0-0", Via("head", "shard-0-0"))
    assert opener.dialogs.arrived(Envelope(ANSWER, "node-1", "driver-1", "node-3", "shard-0-0")) is None
    assert opener.dialogs.arrived(Envelope(OPENING_BOUNCED, "node-1", "driver-1", "node-3", "shard-0-0")) is None
    assert opener.dialogs.arrived(Envelope(ANSWER_BOUNCED, "node-1", "driver-1", "node-3", "x")) is None


def test_a_name_leads_to_the_node_that_used_it_last():
    """A shard server comes back under its name when its node starts again, and the node has a new id then."""
    end = End("node-1", "master-0")
    for node in ("node-2", "node-3"):
        assert end.dialogs.arrived(Envelope(OPENING, "node-1", "master-0", node, "shard-0-1")) == b"shard-0-1"
        assert end.envelope(b"shard-0-1").node == node


def test_an_answer_calls_us_what_the_question_did():
    """A node is called by its id and by its name: who asked by one does not know the answers of the other."""
    end = End("node-1", "shard-0-0", names=("head",))
    for name in ("head", "node-1", "head"):
        end.dialogs.arrived(Envelope(OPENING, name, "shard-0-0", "node-2", "driver-1"))
        assert end.envelope(b"driver-1").from_node == name


@pytest.mark.parametrize("name", [">driver-9", ">"])
def test_a_name_that_looks_like_an_own_dialog_is_refused(name):
    end = End("node-1", "worker-1")
    assert end.dialogs.arrived(Envelope(OPENING, "node-1", "worker-1", "node-2", name)) is None
    assert end.dialogs.refused == 1


def test_the_table_of_those_who_opened_a_dialog_is_bounded(monkeypatch):
    monkeypatch.setattr(config, "RELAYED_PEERS_MAX", 3)
    end = End("node-1", "shard-0-0")
    own = end.dialogs.open("worker-1", Via("node-2", "worker-1"))
    for index in range(10):
        end.dialogs.arrived(Envelope(OPENING, "node-1", "shard-0-0", "node-2", f"driver-{index}"))
    assert set(end.dialogs.remotes) == {own, b"driver-7", b"driver-8", b"driver-9"}


def test_closing_twice_is_no_error():
    end = End("node-1", "a")
    route = end.dialogs.open("b", Via("node-2", "b"))
    assert end.dialogs.close("b")
    assert not end.dialogs.close("b")
    assert route not in end.dialogs.remotes
