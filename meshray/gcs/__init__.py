"""The global control store: what a cluster must remember, in shards that are chains of replicas.

Reading order:

- ``limits``     every maximum, with its reason
- ``tables``     the tables, their keys, their typed rows, and which shard a key belongs to
- ``log``        what one Write becomes: the entry that is persisted, and that a chain would hand down
- ``rows``       how a member decides operations against what is committed and what is on its way to the disk
- ``clients``    which Writes were done before (exactly-once)
- ``watches``    who is told of which change
- ``chain``      the member of a chain: puts the three together, machine
- ``storage``    the member's disk, the one door to LMDB
- ``client``     the other side: splits batches over shards, resends, follows configurations, machine
- ``requests``, ``writes``, ``reads``, ``subscriptions``   the client's parts: what it asked, and what it watches

How a write travels: ``client.write`` -> Write -> ``ChainMember`` decides, emits ``Persist`` -> the host commits the
whole turn in one transaction -> ``Persisted`` -> the member answers Written and feeds Changed to watchers.

What is not here on purpose: operations on several rows at once that are atomic across shards, queries other than by
key and prefix, and anything about scheduling or objects: rows are bytes to a shard, only ``tables`` knows their shape.

Whoever decides when to give up a member, and what the next chain is, is outside of a member: it obeys the epoch that
it was given and refuses all others.
"""
