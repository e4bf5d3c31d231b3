"""The object store: one arena of shared memory per node, clients that allocate in it, and pulls between nodes.

Reading order:

- ``layout``      how one value lies in one contiguous range (pure)
- ``allocator``   ranges inside ranges: used by the node for extents and by clients inside extents (pure)
- ``arena_file``  the file in shared memory: map, populate, copy, pin (shell, the one door to shared memory)
- ``client``      a session's side: allocate and release without a round trip (shell)
- ``directory``   the node's side: who leases which extent, which object lies where (machine)
- ``manifest``    chunks and their digests (pure)
- ``pull``        a node fetches an object from other nodes (machine); its parts: ``swarm`` (which chunk of whom),
                  ``chunk_flow`` (windows), ``introductions`` (who has it), ``landing`` (room), ``chunk_sets``
- ``chunk_server`` a node tells others what it has, and gives them tickets (machine)
- ``chunk_index`` which chunks lie on this node, under whatever name (pure)
- ``service``     these machines as one, for the node process; ``events`` is their vocabulary
- ``bulk``        the thread that moves the chunks (shell); ``bulk_desk`` is what it may serve and still wants (pure)
- ``background``  the two slow effects of these machines, hashing and first touch, off the node's loop (shell)

The life of a range: free at the node, leased to a session as part of an extent, allocated by the session, written,
sealed (readable by everybody on the node), freed by the object's owner, and then free again *inside the session's
extent*; an extent that holds nothing goes back to the node.

What is not here: who refers to an object and when it is freed (``session``), and spilling.
"""
