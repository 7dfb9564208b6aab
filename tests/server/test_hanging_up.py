"""A client that hangs up: its work is dropped, and asyncio has nothing left to complain about."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from server.http.hanging_up import unless_client_goes


async def disconnect_at_once() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def stay() -> dict[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError("heard until the end")


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run it, and see that asyncio has nothing to say."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await story
        await asyncio.sleep(0)
        gc.collect()
        assert asyncio.all_tasks() == {asyncio.current_task()}  # nobody listens on

    asyncio.run(watched())
    assert complaints == []


async def stopped_in_the_middle() -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise RuntimeError("a step that fails while it is being dropped") from None


@pytest.mark.parametrize("pictures", [1, 3])
def test_dropped_work_leaves_no_exception_that_nobody_retrieved(pictures: int) -> None:
    async def story() -> None:
        steps = [stopped_in_the_middle() for _ in range(pictures)]
        with pytest.raises(ClientDisconnect):
            await unless_client_goes(steps[0] if pictures == 1 else asyncio.gather(*steps), disconnect_at_once)

    run(story())


def test_work_that_will_not_be_stopped_is_dropped_all_the_same_and_the_caller_goes_on() -> None:
    async def stubborn() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 7

    async def story() -> None:
        with pytest.raises(ClientDisconnect):
            await unless_client_goes(stubborn(), disconnect_at_once)
        caller = asyncio.current_task()
        assert caller is not None
        assert caller.cancelling() == 0
        await asyncio.sleep(0.01)  # not cancelled

    run(story())


def test_a_connection_that_cannot_be_heard_is_one_that_ended() -> None:
    async def broken() -> dict[str, Any]:
        raise OSError("the transport is gone")

    async def story() -> None:
        with pytest.raises(ClientDisconnect):
            await unless_client_goes(asyncio.sleep(60), broken)

    run(story())


def test_who_hangs_up_as_the_answer_is_ready_harms_nobody() -> None:
    async def story() -> None:
        hung_up = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def work() -> int:
            await asyncio.sleep(0)
            hung_up.set()
            return 7

        assert await unless_client_goes(work(), receive) == 7
        await asyncio.sleep(0.01)  # what was heard too late cancels nothing

    run(story())


def test_other_messages_are_no_goodbye() -> None:
    async def story() -> None:
        messages = [{"type": "http.request"}, {"type": "http.request"}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await stay()

        assert await unless_client_goes(asyncio.sleep(0.01, 7), receive) == 7

    run(story())


def test_an_error_of_the_work_is_its_own() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def story() -> None:
        with pytest.raises(ZeroDivisionError):
            await unless_client_goes(fails(), stay)

    run(story())


def test_a_deadline_around_and_within_is_kept() -> None:
    async def hurried() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await unless_client_goes(asyncio.sleep(60), stay)
        with pytest.raises(TimeoutError):
            await unless_client_goes(hurried(), stay)
        with pytest.raises(ClientDisconnect):
            async with asyncio.timeout(60):
                await unless_client_goes(asyncio.sleep(60), disconnect_at_once)

    run(story())


def test_whoever_else_cancels_the_caller_is_obeyed() -> None:
    async def story() -> None:
        task = asyncio.create_task(unless_client_goes(asyncio.sleep(60), stay))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story())
