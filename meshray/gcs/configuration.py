"""Which chain should be next: judgements on configurations, without time or messages.

*Pure.* Used by masters.

1. A new chain keeps the order of the old one. Members leave from anywhere and join at the end.
2. A chain is never left to a server that may lack a committed write: its members are old members, or one that the old
   tail has brought up to date.

Source: van Renesse and Schneider, OSDI'04 s3.3.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from meshray.messages.chain import Chain, Configuration, Place


def without(chain: Chain, gone: Collection[str]) -> Chain:
    """Return the next chain, in which the members named in ``gone`` are left out; at least one remains."""
    places = [place for place in chain.places if place.name not in gone]
    assert places
    return Chain(chain.epoch + 1, places)


def with_tail(chain: Chain, place: Place) -> Chain:
    """Return the next chain, at whose end ``place`` stands."""
    assert all(place.name != other.name for other in chain.places)
    return Chain(chain.epoch + 1, [*chain.places, place])


def alone(chain: Chain, place: Place) -> Chain:
    """Return the next chain, which is ``place`` alone: what is left of a chain whose every process ended."""
    assert any(place.name == other.name for other in chain.places)
    return Chain(chain.epoch + 1, [place])


def changed(before: Configuration, index: int, chain: Chain, author: str) -> Configuration | None:
    """Return ``before`` with another chain for the shard ``index``; None if somebody has changed that one already."""
    if before.chains[index].epoch + 1 != chain.epoch:
        return None
    chains = list(before.chains)
    chains[index] = chain
    return msgspec.structs.replace(before, change=before.change + 1, author=author, chains=chains)


def exchanging(before: Configuration, following: tuple[str, ...], author: str) -> Configuration | None:
    """Return ``before`` on its way to the acceptors ``following``; None if another exchange is under way."""
    if before.acceptors_next or following == before.acceptors:
        return None
    return msgspec.structs.replace(before, change=before.change + 1, author=author, acceptors_next=following)


def exchanged(before: Configuration, author: str) -> Configuration | None:
    """Return ``before`` with its exchange of acceptors completed; None if none is under way."""
    if not before.acceptors_next:
        return None
    return msgspec.structs.replace(before, change=before.change + 1, author=author, acceptors=before.acceptors_next,
                                   acceptors_next=())
