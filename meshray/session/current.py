"""The session of this process, if it has one.

*Pure.* Runs in drivers and workers; the one place that remembers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshray import errors

if TYPE_CHECKING:
    from meshray.session.session import Session

_session: Session | None = None
_starter: Callable[[], None] | None = None
generation = 0
"""Grows with every new session: what is cached for one session is not used in the next."""


def session() -> Session:
    """Return the session; start an embedded cluster first if there is none."""
    if _session is None:
        if _starter is None:
            raise errors.MeshrayError("meshray is not initialized: call meshray.init() first")
        _starter()
        assert _session is not None
    return _session


def get() -> Session | None:
    """Return the session or None."""
    return _session


def set_session(new: Session | None) -> None:
    """Make ``new`` the session of this process."""
    global _session
    _session = new
    renew()


def renew() -> None:
    """Make everything that was cached for the session or job so far void."""
    global generation
    generation += 1


def set_starter(starter: Callable[[], None]) -> None:
    """Say how a session is started when one is needed (``meshray.init``)."""
    global _starter
    _starter = starter
