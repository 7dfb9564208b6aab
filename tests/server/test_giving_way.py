"""The thread that talks asks less of the cores than those that compute, wherever both are in one process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.giving_way import NICENESS
from tests.server.test_process import png, post
from training.nuclei.server_process import serve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities are those of whole processes")

SETTLE_S = 1.0  # after which no process that was starting is still about to change anything


def descendants(parent: int) -> Iterator[int]:
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from descendants(child)


def niceness(process: int) -> tuple[int, list[int]]:
    """Of its first thread, which has the event loop, and of all others."""
    threads = [int(folder.name) for folder in Path(f"/proc/{process}/task").iterdir()]
    others = [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads if thread != process]
    return os.getpriority(os.PRIO_PROCESS, process), others


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "processes", "giving_way"),
    [
        (["--workers", "1"], 1, 1),
        (["--workers", "2", "--engines", "each"], 3, 2),
        (["--workers", "2", "--engines", "shared"], 4, 0),
    ],
    ids=["one process", "whole servers", "fronts"],
)
def test_event_loops_beside_engines_give_way_and_nothing_that_computes_does(
    tiny_bundle: Path, flags: list[str], processes: int, giving_way: int
) -> None:
    here = os.getpriority(os.PRIO_PROCESS, 0)
    if here + NICENESS > 19:
        pytest.skip(f"the tests run with a niceness of {here} already")
    before = set(descendants(os.getpid()))
    with serve(tiny_bundle.parent.parent, *flags) as port:
        until = time.monotonic() + 30
        while True:
            assert post(port, png(200))[0] == 200
            found = [niceness(process) for process in set(descendants(os.getpid())) - before]
            loops = [loop - here for loop, _ in found]
            if len(found) == processes and loops.count(NICENESS) == giving_way:
                break
            assert time.monotonic() < until, found
        time.sleep(SETTLE_S)
        found = [niceness(process) for process in set(descendants(os.getpid())) - before]
    loops = [loop - here for loop, _ in found]
    assert loops.count(NICENESS) == giving_way
    assert set(loops) <= {0, NICENESS}
    assert {other - here for _, others in found for other in others} == {0}
