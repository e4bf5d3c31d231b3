"""State directories: what a machine keeps of clusters when nothing of them runs.

*Shell (environment).* Runs in nodes, drivers and the command line.

Layout, all of it readable by its owner only::

    <state>/keys/<name>.key                  key pairs of this machine's nodes and drivers
    <state>/<cluster>/<node>.keys.json       the allow list as the node knew it last
    <state>/<cluster>/<node>/gcs/<server>/   disks of the control store, of clusters with ``keep_state``

``<state>`` is ``MESHRAY_STATE_DIR``, else ``$XDG_STATE_HOME/meshray``, else ``~/.local/state/meshray``.
"""

from __future__ import annotations

import os
from contextlib import suppress

from meshray.errors import KeyFileError

STATE_VARIABLE = "MESHRAY_STATE_DIR"
KEY_VARIABLE = "MESHRAY_KEY_FILE"
_SUFFIX = ".key"


def state_dir() -> str:
    """Return the path of this user's state directory on this machine, which may not exist yet."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return os.path.abspath(chosen)
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(os.path.abspath(home), "meshray")


def key_file(name: str) -> str:
    """Return the path of the key pair ``name`` of this machine."""
    return os.path.join(state_dir(), "keys", name + _SUFFIX)


def key_names() -> list[str]:
    """Return the names of the key pairs of this machine."""
    with suppress(FileNotFoundError):
        return sorted(entry.removesuffix(_SUFFIX) for entry in os.listdir(os.path.join(state_dir(), "keys"))
                      if entry.endswith(_SUFFIX))
    return []


def allow_list_file(cluster: str, node: str) -> str:
    """Return where a node keeps its allow list."""
    return os.path.join(state_dir(), cluster, f"{node}.keys.json")


def control_store_dir(cluster: str, node: str) -> str:
    """Return where a node keeps its disks of the control store."""
    return os.path.join(state_dir(), cluster, node)


def find_key_file() -> str:
    """Return the key file by which this user joins clusters: MESHRAY_KEY_FILE, else the one of this machine. Raise
    KeyFileError when there is none, or more than one and none is called driver."""
    chosen = os.environ.get(KEY_VARIABLE)
    if chosen:
        return os.path.abspath(chosen)
    names = key_names()
    if len(names) == 1 or "driver" in names:
        return key_file("driver" if "driver" in names else names[0])
    if names:
        raise KeyFileError(f"this machine has several keys ({', '.join(names)}): name the file of one in "
                           f"{KEY_VARIABLE}, or call one driver")
    raise KeyFileError(f"this machine has no key (looked in {state_dir()}): make one with meshray keys add driver, "
                       "and add it on a machine of the cluster")
