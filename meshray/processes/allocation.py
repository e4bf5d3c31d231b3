"""How the C library allocates in processes that receive large messages.

*Shell (ctypes).* Runs in the node process, once, before its bulk plane starts.

glibc takes each large block from the kernel and gives it back when it is freed, so every chunk that ZeroMQ receives is
written to fresh pages, and faulting them in costs more than the copy itself. Blocks that are kept and reused have their
pages already.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes

from meshray import config

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Have blocks up to ``MALLOC_MMAP_BYTES`` come from memory that was freed before; no-op without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, config.MALLOC_MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, config.MALLOC_KEPT_BYTES)
