"""Work that is dropped when nobody waits for its answer any more.

answer = await unless_client_goes(work(), receive)     # or ClientDisconnect, as soon as the connection has ended

The work stays in the caller's own task, and one other listens: cheaper than a task for each, and one fewer turn of the
event loop on the way back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def unless_client_goes(work: Awaitable[T], receive: Receive) -> T:
    """Wait for `work`, but cancel it when the client hangs up. Whoever else cancels the caller is obeyed as ever.

    Raises:
        ClientDisconnect: the client hung up; what the work said to that is dropped.
    """
    caller = asyncio.current_task()
    if caller is None:
        raise RuntimeError("called outside of a task. This is a bug in server/http.")
    gone = over = False

    def heard(listener: asyncio.Task[None]) -> None:
        nonlocal gone
        if listener.cancelled() or over:  # told too late: there is an answer
            return
        listener.exception()  # who cannot be heard has gone too; asked for, so that asyncio does not log it
        gone = True
        caller.cancel()

    listener = asyncio.ensure_future(_disconnect(receive))
    listener.add_done_callback(heard)
    try:
        result = await work
        if not gone:
            return result
    except (Exception, asyncio.CancelledError):
        if not gone:
            raise
    finally:
        over = True
        listener.cancel()
    caller.uncancel()  # it was ours
    raise ClientDisconnect()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
