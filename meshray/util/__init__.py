"""Small things built on the public API, under the names that Ray programs use (``ray.util``).

Reading order: ``actor_pool`` (ActorPool), ``queue`` (Queue), ``iteration`` (as_completed, map_unordered),
``scheduling_strategies``; ``inspect_serializability`` and ``register_serializer`` come from meshray's own modules.

What is not here: anything that needs to know how meshray works inside.
"""

from __future__ import annotations

from meshray.serialization import deregister_serializer, register_serializer
from meshray.unpicklable import inspect_serializability
from meshray.util.actor_pool import ActorPool
from meshray.util.iteration import as_completed, map_unordered

__all__ = ["ActorPool", "as_completed", "deregister_serializer", "inspect_serializability", "map_unordered",
           "register_serializer"]
