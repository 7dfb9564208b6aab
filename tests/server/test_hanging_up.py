"""A client that hangs up: its work is dropped, and asyncio has nothing left to complain about."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from server.http.segmenting import _unless_client_goes


async def disconnect_at_once() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def test_dropped_work_leaves_no_exception_that_nobody_retrieved() -> None:
    complaints: list[dict[str, Any]] = []

    async def stopped_in_the_middle() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("a step that fails while it is being dropped") from None

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        with pytest.raises(ClientDisconnect):
            await _unless_client_goes(asyncio.gather(stopped_in_the_middle()), disconnect_at_once)
        gc.collect()

    asyncio.run(run())
    assert complaints == []
