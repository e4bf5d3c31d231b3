"""The files of one host of ``perf.hosts``: keeps a mount namespace in which the host has what a machine has for itself.

*Shell (mount).* ``unshare --mount --propagation private python perf/host_files.py PLAN``, as root: makes the mounts,
writes ``ready``, and lives as long as its standard input. Needs only the standard library.

1. Every mount exists in this namespace only, so all of them are gone when the last process in it has ended.
2. Own directories replace the machine's; code that they would hide is there all the same, read-only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

_RDONLY, _REMOUNT, _BIND = 1, 32, 4096
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Call mount(2). Raise OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def furnish(own: dict[str, str], memory: list[str], root: str, code: list[str]) -> None:
    """Put ``own`` (place -> folder or file that is there instead) and empty ``memory`` in place, then what they hide:
    ``root``, which is the host's, and ``code``."""
    # Held open, because a mount on /tmp hides what is mounted next.
    folders = {place: os.open(folder, os.O_PATH) for place, folder in own.items()}
    kept = {path: os.open(path, os.O_PATH) for path in sorted({root, *code})}
    for place, fd in folders.items():
        mount(f"/proc/self/fd/{fd}", place, "", _BIND)
    for place in memory:
        mount("meshray-host", place, "tmpfs", 0, "mode=1777")
    for path, fd in kept.items():
        if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(fd)):
            continue
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", path, "", _BIND)
        if path != root:
            mount("", path, "", _BIND | _REMOUNT | _RDONLY)


def main() -> None:
    """Furnish the host, tell it, wait for the end of the input."""
    # A Ctrl-C in the terminal means the program, which cleans up on its hosts before it lets them go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        furnish(**json.loads(sys.argv[1]))
    except OSError as error:
        sys.exit(error.strerror)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
