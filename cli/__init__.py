"""The ``meshray`` command. Installed as ``meshray.cli``; a leaf that nothing imports.

Reading order: ``main`` (the group, errors), ``exits`` (exit codes), ``rows`` (what nodes tell), ``connection``,
``clusters`` (up, down), ``status``, ``listing``, ``logs``, ``timeline``, ``doctor``, ``demo``.

What is not here: starting and stopping (``processes.local_cluster``), checking cluster files (``cluster_config``),
talking to nodes (``processes.tool``). Modules import each other relatively: in a checkout the directory is ``cli/``.
"""
