"""Whole programs on real processes.

Reading order: ``support`` (waiting, signals between test and task, leaks, two-node clusters), then one file per topic.
Tests wait on predicates with deadlines and never for time to pass; a task that must run "long" waits for a ``Gate``.
What is not here: decisions of single machines (``tests/unit``), schedules under loss and delay (``tests/sim``).
"""
