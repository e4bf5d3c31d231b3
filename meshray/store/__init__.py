"""The object store: one arena of shared memory per node, clients that allocate in it, and pulls between nodes.

Reading order:

- ``layout``      how one value lies in one contiguous range (pure)
- ``allocator``   ranges inside ranges: used by the node for extents and by clients inside extents (pure)
- ``arena_file``  the file in shared memory: map, populate, copy, pin (shell, the one door to shared memory)
- ``client``      a session's side: allocate and release without a round trip (shell)
- ``pins``        who reads what in place, and which locations are out of date: counters that all may see (shell)
- ``directory``   the node's side: which object lies where; ``room``: who leases which extent, and who waits (machine)
- ``spill``       what leaves memory when room is short, and how it comes back (machine)
- ``spill_files`` chunks on disk, named by their content (shell)
- ``manifest``    chunks and their digests (pure)
- ``pull``        a node fetches an object from other nodes (machine); its parts: ``swarm`` (which chunk of whom),
                  ``chunk_flow`` (windows), ``introductions`` (who has it), ``landing`` (room), ``chunk_sets``
- ``chunk_server`` a node tells others what it has, and gives them tickets (machine)
- ``chunk_index`` which chunks lie on this node, under whatever name (pure)
- ``service``     these machines as one, for the node process; ``events`` is their vocabulary
- ``bulk``        the thread that moves the chunks (shell); ``bulk_desk`` is what it may serve and still wants,
                  ``bulk_findings`` what it tells the control loop, and when (pure)
- ``background``  the slow effects of these machines, hashing, first touch and the disk, off the node's loop (shell)

The life of a range: free at the node, leased to a session as part of an extent, allocated by the session, written,
sealed (readable by everybody on the node), freed by the object's owner or evicted by the node, and then free again
*inside the session's extent*; an extent that holds nothing goes back to the node.

What is not here: who refers to an object and when it is freed (``session``).
"""
