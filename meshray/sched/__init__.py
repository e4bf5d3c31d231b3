"""Scheduling: who may run what, where.

Reading order:

1. ``policy``: every judgement as a pure function: who is served first, whom to ask back, when to spill, where to place.
   To try another policy, replace this one file. ``reasons`` says in words why something can run nowhere.
2. ``events``: what a local scheduler is told and what it asks for, beside messages.
3. ``ledger``: the node's resources, to the 1/10 000 unit and the GPU index.
4. ``pool``: the node's workers and how many should be there.
5. ``demands``: owners, their claims, and the leases that answer them.
6. ``actors``: actors that live here, from creation over restarts to death.
7. ``spill``: claims and actors that should run elsewhere, and the leases that other nodes granted.
8. ``lending``: the same seen from the node that grants.
9. ``reassign``: leases that serve another class of the session that holds them.
10. ``local``: ``LocalScheduler``, the facade of 3 to 9 for the node process.
11. ``global_scheduler``: ``GlobalScheduler``, a replica's soft view and its placements.

All machines here are pure. What is deliberately not here: processes and sockets (``processes``), the actor table and
its watchers (the node process), the owner's side of leases (``session.submit``).

Source: OSDI'18 s4.2.2 (bottom-up scheduling); leases as in Wang et al., NSDI'21 s4.
"""
