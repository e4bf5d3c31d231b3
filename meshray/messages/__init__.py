"""The wire vocabulary: every message of every dialog, one module per dialog.

Reading order: ``base`` (rules), ``tasks`` (owner and worker), ``node`` (session and node), ``sched`` (nodes and global
schedulers), ``objects`` (references, arena, pulls), ``gcs`` (control store and its clients), ``chain`` (among its
servers), ``state`` (status, lists, logs), ``keys`` (who may come in).

What is not here: encoding (``transport.codec``) and behaviour (the machines). Golden bytes of each message lie in
``tests/golden``; a changed line there needs a version bump in ``transport.codec``.
"""

from __future__ import annotations

from meshray.messages import chain, gcs, keys, node, objects, sched, state, tasks

ALL = (*tasks.MESSAGES, *node.MESSAGES, *sched.MESSAGES, *objects.MESSAGES, *gcs.MESSAGES,
       *chain.MESSAGES, *state.MESSAGES, *keys.MESSAGES)
"""Every message class, in tag order by dialog."""
