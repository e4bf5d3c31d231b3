"""The global control store: what a cluster must remember, in shards that are chains of replicas.

Reading order:

Rows and their history

- ``limits``     every maximum, with its reason
- ``tables``     the tables, their keys, their typed rows, and which shard a key belongs to
- ``log``        what one Write becomes: the entry that is persisted and handed down the chain
- ``rows``, ``clients``, ``watches``   how operations are decided, which Writes were done before, who is told of what
- ``removals``   what was removed lately, for watchers that change their tail

A chain

- ``chain``      the member: what happens to a write, and what if the head, a middle or the tail dies
- ``head``, ``tail``, ``downstream``, ``read_lease``   its parts: deciding, answering, resending, leases
- ``feeding``, ``joining``   how a server gets everything while the chain goes on: the tail's side and its own
- ``shard_server``   the server around it: member, joiner or idle, and an acceptor
- ``storage``    the server's disk, the one door to LMDB

Who is in it

- ``register``   the configuration register: acceptors and proposers
- ``master``, ``roster``, ``configuration``   who notices that a server is gone, and what the next chain is
- ``lives``      the names of processes, and which came later

The other side

- ``client``     splits batches over shards, resends, follows configurations, machine
- ``requests``, ``writes``, ``reads``, ``subscriptions``   the client's parts: what it asked, and what it watches

How a write travels: ``client.write`` -> Write -> the head decides, emits ``Persist`` -> the host commits the whole turn
in one transaction -> ``Persisted`` -> Extend -> the successor does the same -> ... -> the tail answers Written, feeds
Changed to watchers, and soon after Extended goes back up.

What if the tail dies? Its node tells the masters (or it is silent); a master writes the next chain into the register
and sends it to the others (``master``); the tail's predecessor is the tail then (``chain``, ``adopt``).

What is not here on purpose: operations on several rows at once that are atomic across shards, queries other than by
key and prefix, and anything about scheduling or objects: rows are bytes to a shard, only ``tables`` knows their shape.
"""
