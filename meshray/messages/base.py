"""What all messages share.

*Pure.* Used by every process.

1. A message is a frozen struct, encoded as a msgpack array whose first element is its tag.
2. A tag is never reused; fields are only ever appended, each with a default.
3. Commands are imperative, facts are in the past tense, refusals are named for their cause.

Tags: 1-29 tasks, 30-69 node, 70-99 scheduling, 100-129 objects, 130-169 control store, 170-199 state and logs.
"""

from __future__ import annotations

from typing import dataclass_transform

import msgspec


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Root of every message; concrete messages add ``tag=``."""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A struct that travels only inside messages, so it needs no tag."""
