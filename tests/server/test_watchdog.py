"""A blocked event loop is told, and an engine that hangs takes nobody with it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.http.app import create_app
from server.settings import Settings
from server.watchdog import LoopWatch, RunClock, until_it_hangs
from tests.conftest import ROOT
from tests.server.fakes import FakeLoader
from tests.server.test_http import assert_problem, metric, png, wait_until


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Messages of the log."""
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler = Keep()
    logging.getLogger("maskserve").addHandler(handler)
    yield told
    logging.getLogger("maskserve").removeHandler(handler)


def test_a_loop_that_is_blocked_is_told_with_the_place_while_it_is_and_when_it_ends(lines: list[str]) -> None:
    late: list[float] = []

    def a_call_that_blocks() -> None:
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            time.sleep(0.01)

    async def story() -> None:
        watch = LoopWatch(late.append, ping_s=0.02, blocked_s=0.15)
        await asyncio.sleep(0.1)
        assert late
        assert max(late) < 0.15
        assert not lines
        a_call_that_blocks()
        await asyncio.sleep(0.1)
        watch.close()

    asyncio.run(story())
    assert 0.3 < max(late) < 2
    blocked, over = lines
    assert blocked.startswith("the event loop has been blocked for 0.15 s, in ")
    assert "a_call_that_blocks" in blocked
    assert "/" not in blocked
    assert over.startswith("the event loop answers again, after 0.")


def test_the_lag_is_a_metric(tiny_bundle: Path) -> None:
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent})
    with TestClient(create_app(settings, FakeLoader())) as client:
        wait_until(lambda: metric(client, "seg_event_loop_lag_seconds_count") > 0)


def test_a_run_has_a_beginning_and_an_end() -> None:
    now = [10.0]
    marks: list[float] = []

    def run(inputs: dict) -> dict:
        now[0] += 5
        assert clock.lasts_s() == 5
        if inputs:
            raise RuntimeError("broken")
        return {}

    clock = RunClock(marks.append, lambda: now[0])
    watched = clock.timed(run)
    assert clock.lasts_s() == 0
    watched({})
    with pytest.raises(RuntimeError):
        watched({"a": None})  # type: ignore[dict-item]
    assert clock.lasts_s() == 0
    assert marks == [10.0, 0.0, 15.0, 0.0]


def test_of_two_runs_at_once_the_older_one_counts() -> None:
    now, free, marks = [1.0], [threading.Event(), threading.Event()], list[float]()
    clock = RunClock(marks.append, lambda: now[0])
    watched = [clock.timed(lambda inputs, event=event: event.wait(10) and {}) for event in free]  # type: ignore[misc]
    threads = [threading.Thread(target=run, args=({},)) for run in watched]
    for thread in threads:
        thread.start()
        wait_until(lambda: len(clock._began) == threads.index(thread) + 1)  # noqa: B023  # waited for at once
        now[0] += 1.0
    assert clock.since == 1.0
    free[0].set()
    threads[0].join()
    assert clock.since == 2.0
    free[1].set()
    threads[1].join()
    assert clock.since == 0.0
    assert marks == [1.0, 1.0, 2.0, 0.0]


def test_short_runs_one_after_the_other_are_no_hang() -> None:
    now = [1.0]
    clock = RunClock(clock=lambda: now[0])

    async def story() -> None:
        waiting = asyncio.create_task(until_it_hangs(clock, 0.05))
        for _ in range(20):
            clock._began = {1: now[0]}
            now[0] += 0.04
            await asyncio.sleep(0.01)
        assert not waiting.done()
        now[0] += 0.04
        await asyncio.wait_for(waiting, 5)

    asyncio.run(story())


def test_an_engine_that_hangs_gives_504_then_503_and_the_process_is_told_dead(
    tiny_bundle: Path, lines: list[str]
) -> None:
    loader = FakeLoader()
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "engine_timeout_s": 0.3})
    loader.engine.patience_s = 5.0
    with TestClient(create_app(settings, loader), raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/segment", content=png()).status_code == 200
        loader.engine.free.clear()
        answers: list[Any] = []
        posts = [
            threading.Thread(target=lambda: answers.append(client.post("/v1/segment", content=png()))) for _ in range(3)
        ]
        for post in posts:
            post.start()
        for post in posts:
            post.join(10)
        for answer in answers:
            assert_problem(answer, 504, "deadline_exceeded")
        assert_problem(client.post("/v1/segment", content=png()), 503, "not_ready")
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["models"]["tiny/1"] == {
            "state": "failed",
            "reason": "the engine hangs: a run has lasted more than 0.3 s",
        }
        assert client.get("/livez").status_code == 503
        assert metric(client, "seg_model_ready") == 0
        assert len([line for line in lines if "hangs" in line]) == 1
        loader.engine.free.set()


PROGRAM = """
import sys, threading
sys.path.insert(0, ".")
from pathlib import Path
import server.http.app as app
from server.http.serving import run_server
from server.logs import logging_to_stderr
from server.settings import Settings
from server.watchdog import leave
from tests.server.fakes import FakeLoader

loader = FakeLoader()
loader.engine.patience_s = 3600.0
settings = Settings(bundles=Path(sys.argv[1]), port=0, engine_timeout_s=0.5, drain_s=2, log_format="text")
with logging_to_stderr("text", "info"):
    application = app.create_app(settings, loader)
    threading.Timer(0.5, loader.engine.free.clear).start()
    def ask():
        import http.client, re, time
        from tests.server.test_http import png
        time.sleep(1)
        port = int(sys.argv[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/v1/segment", png())
        print(connection.getresponse().status, flush=True)
    settings = settings.model_copy(update={"port": int(sys.argv[2])})
    threading.Thread(target=ask, daemon=True).start()
    code = run_server(application, settings)
leave(code)
"""


def test_a_process_whose_engine_hangs_answers_and_ends_with_1(
    tiny_bundle: Path, unused_port: Callable[[], int]
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_bundle.parent.parent), str(unused_port())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "504\n", done.stderr
    assert done.returncode == 1
    assert "hangs" in done.stderr
    assert "Traceback" not in done.stderr
