"""The ``meshray`` command. Installed as ``meshray.cli``; a leaf that nothing imports.

Reading order: ``main`` (the group, exit codes, errors), ``rows`` (what nodes tell), ``clusters`` (up, down), ``status``,
``listing``, ``logs``, ``timeline``, ``doctor``, ``demo``.

What is not here: starting and stopping (``processes.local_cluster``), checking cluster files (``cluster_config``),
talking to nodes (``processes.tool``). Modules import each other relatively, since the directory is ``cli/`` in a checkout.
"""
