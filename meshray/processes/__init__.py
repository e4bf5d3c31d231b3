"""The processes: the only place where control store, scheduling and objects meet.

Reading order: ``boot`` (the first process of a node forks the others), ``node`` (the machine of the node process),
``node_process`` (its shell), ``zygote`` (forks workers), ``worker``, ``shard``, ``global_scheduler``; ``launch`` and
``run_dirs`` start and find nodes, ``tool`` asks them, ``worker_logs`` follows what workers write.

What is not here: decisions (in ``sched``, ``gcs``, ``store``) and what drivers and workers share (``session``).
"""
