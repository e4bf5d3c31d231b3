"""Lives: which process a server of the control store is, and which of its processes came later.

*Pure.* Used by shard servers and masters. A life is named ``pid-number-random``; its disk counts the numbers. A joiner
adds ``/attempt`` to it. A name of another form is before all others.
"""

from __future__ import annotations


def pid_of(life: str) -> str:
    """Return the process of a life, which the system may give to another one later."""
    return life.partition("-")[0]


def number_of(life: str) -> int:
    """Return which life of its server this is."""
    return _number(life.split("-")[1:2])


def attempt_of(joining: str) -> tuple[int, int]:
    """Return which life of its server wants to join, and for which time; later ones are greater."""
    life, _, attempt = joining.partition("/")
    return number_of(life), _number([attempt])


def _number(digits: list[str]) -> int:
    return int(digits[0]) if digits and digits[0].isdecimal() else 0
