"""Messages to bytes and back.

*Pure.* Used by every process.

1. A frame is a 4-byte signature followed by the message in msgpack. The signature names the protocol and its version:
   ZeroMQ reconnects silently, so every single frame must say what it is (ZeroMQ RFC 18 argues the same).
2. A frame that does not decode is a value (``BadFrame``), never an exception: a peer cannot make a machine raise.
3. Decoding is typed and never runs code; control processes do not unpickle.
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

from meshray.messages import ALL
from meshray.messages.base import Message

SIGNATURE = b"MRY\x01"
"""Protocol ``MRY``, wire version 1."""


class BadFrame(msgspec.Struct, frozen=True):
    """A frame that is not ours; ``reason`` is for the log."""

    reason: str


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Union[ALL])  # noqa: UP007


def encode(message: Message) -> bytes:
    """Return the frame of ``message``."""
    return SIGNATURE + _encoder.encode(message)


def decode(frame: bytes) -> Any:
    """Return the message in ``frame``, or ``BadFrame``."""
    if frame[:4] != SIGNATURE:
        return BadFrame(f"signature {bytes(frame[:4])!r} is not {SIGNATURE!r}: another version or protocol")
    try:
        return _decoder.decode(memoryview(frame)[4:])
    except (msgspec.DecodeError, RecursionError) as error:
        return BadFrame(f"malformed message: {error}")
