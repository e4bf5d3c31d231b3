"""A process's membership in a cluster: what drivers and workers share.

Reading order: ``session`` (the turn), ``driving`` (which thread), ``submit`` (tasks out), ``executor`` and
``task_values`` (tasks in), ``actors`` and ``actor_host`` (calls out and in), ``references``, ``objects`` and
``values``, ``getting`` (get, wait), ``functions``, ``lineage``, ``describe``, ``connect``, ``current``.

What is not here: placement (``sched``), storage (``gcs``, ``store``), processes and their birth (``processes``).
"""
