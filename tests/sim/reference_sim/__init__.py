"""References in a simulated cluster: the sessions' own code under virtual time.

*Pure* but for threads that take turns. Runs in tests. Read in this order: ``fibers`` (blocking code under virtual
time), ``processes`` (drivers and actors), ``nodes``, ``programs`` (what the user code does), ``truth`` (what is
reachable), ``world`` (deaths, and the course of a run).
"""
