"""Benchmarks: rows that run on meshray and on its peers, and what the machine itself can do.

Reading order: ``rows`` (what is measured, written once against Ray's API), ``row_kinds`` (how one row is timed),
``systems`` (meshray, Ray, Dask, a process pool behind one interface), ``limits`` (the same rows done by bare means),
``subject`` (the process that runs rows of one system), ``orchestra`` (several subjects in turns), ``compare`` (the
table). ``footprint`` sums memory over process trees. ``gcs`` measures the control store beside
``gcs_bare``, ``failover`` the death of its replicas. ``flat_memory`` and ``spinning`` are programs of their own,
``test_rows`` the rows under pytest-benchmark. ``hosts`` makes hosts of namespaces, for what needs a network.

Run ``python -m perf.compare --peer ray``, or ``pytest perf --benchmark-only``.

What is not here: assertions on speed. A figure counts only beside its peer's and its limit's from the same run.
"""
