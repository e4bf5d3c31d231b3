"""The table of places in a file of each node, for whoever starts nodes.

*Shell (files).* Written by nodes, read by ``meshray up``.

1. A node that starts is told where services run now, not where they were when the cluster began: it may have to find
   them before it can read the table, and those that keep their state have to be started where their disks are.
2. It lies where the node runs, and where control store's disks are kept, if there is one.
"""

from __future__ import annotations

import os

import msgspec

from meshray.node_config import NodeConfig
from meshray.processes.replacement import Places

_NAME = "places.json"


def keep(settings: NodeConfig, places: Places) -> None:
    """Write what the table says now. Raise OSError."""
    for directory in filter(os.path.isdir, (settings.run_dir, settings.state_dir)):
        path = os.path.join(directory, _NAME)
        with open(path + ".new", "wb") as file:
            file.write(msgspec.json.encode(places))
        os.replace(path + ".new", path)


def read(directory: str) -> Places | None:
    """Return what a node wrote there, None if it wrote nothing that can be read."""
    try:
        with open(os.path.join(directory, _NAME), "rb") as file:
            return msgspec.json.decode(file.read(), type=Places)
    except (OSError, msgspec.DecodeError):
        return None
