"""A process's membership in a cluster: what drivers and workers share.

Reading order: ``session`` (the turn), ``driving`` (which thread), ``submit`` (tasks out), ``executor`` (tasks in),
``actors`` and ``actor_host`` (calls out and in), ``objects`` and ``values`` (references), ``getting`` (get, wait),
``functions``, ``lineage``, ``describe``, ``connect``, ``current``.

What is not here: placement (``sched``), storage (``gcs``, ``store``), processes and their birth (``processes``).
"""
