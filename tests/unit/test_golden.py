"""Golden bytes of every message: the wire changes only on purpose.

``tests/golden/wire-N.txt`` has one line per message of wire version N: module and class, tag, frame in hexadecimal. The
example instances are made from the type hints, so a new message needs no code here. After a change that is meant::

    python tests/unit/test_golden.py --regen

A line that changes for a wire version that was released needs a new version in ``transport.codec``.
"""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshray.messages import ALL
from meshray.transport.codec import SIGNATURE, BadFrame, decode, encode

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / f"wire-{SIGNATURE[3]}.txt"
EXAMPLES: dict[type, Any] = {int: 300, float: 0.5, str: "name", bytes: b"\x00\xff", bool: True, type(None): None}


def example(hint: Any) -> Any:
    """Return a value of the hinted type, the same one every time; containers get one element, options are filled."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in EXAMPLES:
        return EXAMPLES[hint]
    if hint is Any:
        return "anything"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return instance(hint)
    if origin in (typing.Union, types.UnionType):
        return example(next(each for each in arguments if each is not type(None)))
    if origin is typing.Literal:
        return arguments[0]
    if origin is list:
        return [example(arguments[0])]
    if origin is dict:
        return {example(arguments[0]): example(arguments[1])}
    if origin is tuple:
        return tuple(example(each) for each in arguments if each is not Ellipsis)
    raise TypeError(f"no example for {hint!r}: add it here")


def instance(kind: type) -> Any:
    """Return a message with every field filled."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: example(hints[name]) for name in kind.__struct_fields__})


def line_of(kind: type) -> str:
    """Return the golden line of one message class."""
    return f"{label(kind)} {kind.__struct_config__.tag} {encode(instance(kind)).hex()}"


def label(kind: type) -> str:
    """Name a message class by its dialog and itself."""
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def golden() -> dict[str, str]:
    """Return the golden lines by message."""
    return {line.split()[0]: line for line in GOLDEN.read_text().splitlines()}


@pytest.mark.parametrize("kind", ALL, ids=label)
def test_bytes_are_golden(kind: type) -> None:
    meant = "if this change is meant: python tests/unit/test_golden.py --regen"
    assert golden().get(label(kind)) == line_of(kind), meant


@pytest.mark.parametrize("kind", ALL, ids=label)
def test_golden_bytes_decode_to_the_same_message(kind: type) -> None:
    assert decode(bytes.fromhex(golden()[label(kind)].split()[2])) == instance(kind)


@pytest.mark.parametrize("kind", ALL, ids=label)
def test_every_cut_of_a_frame_is_bad_or_shorter(kind: type) -> None:
    frame = encode(instance(kind))
    for length in range(len(frame)):
        assert isinstance(decode(frame[:length]), BadFrame)


def test_no_golden_line_is_left_over() -> None:
    assert set(golden()) == {label(kind) for kind in ALL}


def test_tags_are_unique() -> None:
    tags = [kind.__struct_config__.tag for kind in ALL]
    assert len(set(tags)) == len(tags)


if __name__ == "__main__":
    if sys.argv[1:] != ["--regen"]:
        sys.exit("usage: python tests/unit/test_golden.py --regen")
    GOLDEN.write_text("".join(line_of(kind) + "\n" for kind in ALL))
    print(f"{GOLDEN}: {len(ALL)} messages")
