"""The control store in a simulated world, and what must hold of it there and of real processes.

Checkers: ``history`` (what clients saw, row by row), ``linearizability`` and ``versions`` (two independent checks of
it), ``chain_order`` (what the members' disks must have in common), ``watching`` (what watchers were told). They know
neither the simulation nor the processes: both record the same histories.

World: ``schedule`` (virtual time, clocks that go wrong), ``network`` (what can happen to a message), ``process`` (a
machine in turns, with crashes and freezes anywhere between), ``disk`` (what survives), ``world`` (a shard with its
clients), ``workload`` (what clients do), ``scenarios`` (what goes wrong, of one seed), ``judgement`` (what must hold in
the end). ``python -m tests.sim.gcs_seeds`` runs many seeds.
"""
