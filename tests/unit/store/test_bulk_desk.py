"""Tickets, places, transfers: what is served to whom, and what is still wanted."""

from __future__ import annotations

from meshray import config
from meshray.store.bulk_desk import Desk
from meshray.store.events import BeginTransfer, EndTransfer, Grant, Revoke

CHUNK = config.CHUNK_BYTES
SIZE = 2 * CHUNK + 5


def test_a_ticket_opens_one_object_and_only_its_chunks() -> None:
    desk = Desk()
    desk.grant(Grant(b"t", b"x", 64, SIZE))
    desk.grant(Grant(b"u", b"y", 1 << 30, SIZE))
    assert desk.served(b"t", b"x", 0) == (64, CHUNK) and desk.served(b"t", b"x", 2) == (64 + 2 * CHUNK, 5)
    for ticket, object_, chunk in ((b"", b"x", 0), (b"u", b"x", 0), (b"t", b"x", 3), (b"t", b"x", -1), (b"t", b"z", 0)):
        assert desk.served(ticket, object_, chunk) is None
    desk.check()


def test_tickets_end_one_by_one_and_with_their_object() -> None:
    desk = Desk()
    for ticket in (b"t", b"u"):
        desk.grant(Grant(ticket, b"x", 64, SIZE))
    desk.revoke(Revoke(tickets=[b"t", b"never"]))
    assert desk.served(b"t", b"x", 0) is None and desk.served(b"u", b"x", 0) is not None
    desk.revoke(Revoke([b"x", b"never"]))
    assert desk.served(b"u", b"x", 0) is None
    desk.check()


def test_of_an_object_on_its_way_only_what_came_is_served_and_later_all_of_it() -> None:
    desk = Desk()
    desk.grant(Grant(b"t", b"x", -1, SIZE))
    assert desk.served(b"t", b"x", 0) is None
    desk.begin(BeginTransfer(1, b"x", 128, SIZE, bytes(96)))
    transfer = desk.wanted(b"x", 1)
    assert transfer is not None and transfer.range_of(1) == (128 + CHUNK, CHUNK) and desk.served(b"t", b"x", 1) is None
    transfer.done[1] = 1
    assert desk.served(b"t", b"x", 1) == (128 + CHUNK, CHUNK) and desk.served(b"t", b"x", 0) is None
    assert desk.wanted(b"x", 1) is None and desk.wanted(b"x", 3) is None and desk.wanted(b"y", 0) is None
    desk.end(EndTransfer(1, complete=True))
    assert desk.served(b"t", b"x", 0) == (128, CHUNK) and desk.wanted(b"x", 0) is None
    desk.check()


def test_a_transfer_that_ended_is_not_written_and_not_served() -> None:
    desk = Desk()
    desk.grant(Grant(b"t", b"x", -1, SIZE))
    desk.begin(BeginTransfer(1, b"x", 0, SIZE, bytes(96)))
    desk.begin(BeginTransfer(2, b"x", 4 * CHUNK, SIZE, bytes(96)))
    desk.end(EndTransfer(1))
    wanted = desk.wanted(b"x", 0)
    assert wanted is not None and wanted.number == 2
    desk.end(EndTransfer(2))
    assert desk.wanted(b"x", 0) is None and desk.served(b"t", b"x", 0) is None
    desk.check()


def test_an_object_is_served_from_where_the_last_grant_says() -> None:
    desk = Desk()
    desk.grant(Grant(b"t", b"x", 64, SIZE))
    desk.grant(Grant(b"t", b"x", -1, SIZE, bytes(range(96))))
    assert desk.served(b"t", b"x", 1) == bytes(range(32, 64))
    assert desk.served(b"t", b"x", 3) is None and desk.served(b"t", b"x", -1) is None
    assert desk.unreadable(b"x") and not desk.unreadable(b"x") and desk.served(b"t", b"x", 1) is None
    desk.grant(Grant(b"t", b"x", -1, SIZE, bytes(96)))
    desk.check()
    desk.grant(Grant(b"t", b"x", 128, SIZE))
    assert desk.served(b"t", b"x", 0) == (128, CHUNK) and not desk.unreadable(b"x")
    desk.grant(Grant(b"t", b"x", -1, SIZE, bytes(96)))
    desk.revoke(Revoke([b"x"]))
    desk.grant(Grant(b"t", b"x", -1, SIZE))
    assert desk.served(b"t", b"x", 0) is None
    desk.check()
