"""Modules that this process has and workers cannot import.

*Shell (import system).* Runs in drivers and workers.

1. A module is private if code was executed into it (a notebook, ``exec``), or if it was loaded from a file that no
   import would find (pytest's importlib mode, ``spec_from_file_location``). ``__main__`` is the caller's business.
2. A module is looked at once. Extension modules are never private: what made them is importable.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType


def find_new(checked: set[str]) -> list[ModuleType]:
    """Return the private ones among the loaded modules that are not in ``checked``, and add all to it."""
    new = sys.modules.keys() - checked
    checked |= new
    modules = [(name, sys.modules.get(name)) for name in new]
    return [module for name, module in modules if type(module) is ModuleType and _is_private(name, module)]


def _is_private(name: str, module: ModuleType) -> bool:
    fields = vars(module)
    if name == "__main__" or fields.get("__name__") != name:
        return False
    file = fields.get("__file__")
    if not isinstance(file, str):
        # A namespace that code was executed in has __builtins__; modules made by extensions have not.
        return fields.get("__spec__") is None and "__builtins__" in fields
    if "." in name:
        return False
    folder = os.path.dirname(file)
    if os.path.basename(file).startswith("__init__."):
        folder = os.path.dirname(folder)
    return folder not in sys.path and not (folder == os.getcwd() and "" in sys.path) and not _can_be_found(name)


def _can_be_found(name: str) -> bool:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            found = find is not None and find(name, None) is not None
        except Exception:  # a finder that fails does not find
            found = False
        if found:
            return True
    return False
