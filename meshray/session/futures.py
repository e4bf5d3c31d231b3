"""References as futures: for event loops and for ``concurrent.futures``.

*Pure* but for the session that completes them. Runs in drivers and workers.

1. A future is completed by the session's leader thread, never by the waiting code.
2. What ``get`` would raise is the future's exception.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any

from meshray.object_ref import PENDING, ObjectRef
from meshray.session import getting

if TYPE_CHECKING:
    from meshray.session.session import Session


def future_of(session: Session, ref: ObjectRef) -> concurrent.futures.Future[Any]:
    """Return a future that gets the value of ``ref``."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def complete(done: ObjectRef) -> None:
        _complete(session, done, future)

    if ref._state != PENDING:
        complete(ref)
    else:
        session.call(lambda: session.outcomes.when_complete(ref, complete))
    return future


def _complete(session: Session, ref: ObjectRef, future: Any) -> None:
    try:
        value = getting.value_of(session, ref)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)


async def await_ref(session: Session, ref: ObjectRef) -> Any:
    """Return the value of ``ref`` without blocking the running event loop."""
    if ref._state == PENDING:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not arrived.done():
                arrived.set_result(None)

        def complete(done: ObjectRef) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        session.call(lambda: session.outcomes.when_complete(ref, complete))
        await arrived
    return getting.value_of(session, ref)
