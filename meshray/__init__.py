"""meshray: distributed Python. Ordinary functions become tasks, classes become actors, values become shared objects.

*Pure.* The public names, imported when they are first used: ``import meshray`` itself costs a few milliseconds.

    import meshray

    @meshray.remote
    def square(x):
        return x * x

    print(meshray.get([square.remote(i) for i in range(4)]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from meshray.version import __version__ as __version__

if TYPE_CHECKING:
    from meshray import exceptions as exceptions
    from meshray import util as util
    from meshray.actor import ActorClass as ActorClass
    from meshray.actor import ActorHandle as ActorHandle
    from meshray.api import available_resources as available_resources
    from meshray.api import cancel as cancel
    from meshray.api import cluster_resources as cluster_resources
    from meshray.api import get as get
    from meshray.api import get_actor as get_actor
    from meshray.api import get_gpu_ids as get_gpu_ids
    from meshray.api import init as init
    from meshray.api import is_initialized as is_initialized
    from meshray.api import kill as kill
    from meshray.api import method as method
    from meshray.api import nodes as nodes
    from meshray.api import put as put
    from meshray.api import remote as remote
    from meshray.api import shutdown as shutdown
    from meshray.api import timeline as timeline
    from meshray.api import wait as wait
    from meshray.object_ref import ObjectRef as ObjectRef
    from meshray.remote_function import RemoteFunction as RemoteFunction
    from meshray.runtime_context import get_runtime_context as get_runtime_context

_WHERE = {
    **dict.fromkeys(("available_resources", "cancel", "cluster_resources", "get", "get_actor", "get_gpu_ids", "init",
                     "is_initialized", "kill", "method", "nodes", "put", "remote", "shutdown", "timeline", "wait"),
                    "meshray.api"),
    "ActorClass": "meshray.actor", "ActorHandle": "meshray.actor", "ObjectRef": "meshray.object_ref",
    "RemoteFunction": "meshray.remote_function", "get_runtime_context": "meshray.runtime_context",
}
_MODULES = frozenset({"actor", "exceptions", "util"})

__all__ = sorted([*_WHERE, "exceptions", "util", "__version__"])


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is not None:
        value = getattr(importlib.import_module(module), name)
    elif name in _MODULES:
        value = importlib.import_module(f"meshray.{name}")
    else:
        raise AttributeError(f"module 'meshray' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
