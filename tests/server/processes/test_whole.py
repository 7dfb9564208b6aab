"""Whole servers on one port: what is theirs alone; what they share with the other form is in test_processes.py."""

from __future__ import annotations

import http.client
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.processes.handing import EVEN_S
from tests.server.processes.behaving import HANG, KILL, SLOW, SLOW_S
from tests.server.processes.running import Load, Running, png, running, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]


@pytest.fixture
def bundles(tiny_bundle: Path) -> Path:
    return tiny_bundle.parent.parent


@contextmanager
def connections(server: Running, count: int) -> Iterator[list[http.client.HTTPConnection]]:
    made = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(count)]
    try:
        yield made
    finally:
        for connection in made:
            connection.close()


def spread(server: Running, connections: list[http.client.HTTPConnection], name: str) -> Counter[str]:
    """Which process answers each of these connections."""
    for connection in connections:
        connection.request("POST", "/v1/segment", png(), {"X-Request-Id": name})
        assert connection.getresponse().read()
    wait_until(lambda: server.log.read_text().count(f'"{name}"') == len(connections))
    return Counter(line["process"] for line in server.lines() if line.get("request_id") == name)


def become_even(server: Running, kept: list[http.client.HTTPConnection], name: str) -> None:
    for number in range(30):
        if sorted(spread(server, kept, f"{name}-{number}").values()) == [len(kept) // 2] * 2:
            return
        time.sleep(EVEN_S)
    pytest.fail(f"{len(kept)} connections do not become even")


def test_a_killed_server_takes_its_connections_with_it_and_the_others_stay_ready(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.002")
    with running(bundles, tmp_path, 2, engines="each", max_wait_ms=5000) as server:
        with Load(server, 8, png()) as load:
            wait_until(lambda: load.count(200) > 100)
            before = server.children()
            os.kill(before["whole 0"], signal.SIGKILL)
            for _ in range(20):
                assert server.is_ready()
                time.sleep(0.02)
            wait_until(lambda: len(server.children()) == 2 and server.children() != before)
            done = load.count(200)
            wait_until(lambda: load.count(200) > done + 200)
        assert set(load.counts) <= {200, "broken"}, "a server that still loads takes no connections"
        assert 1 <= load.counts["broken"] <= 8
        for _ in range(4):
            counted = server.metric("seg_requests_total", status="200")
            assert load.counts[200] <= counted <= load.counts[200] + load.counts["broken"]
        assert server.metric("seg_queue_depth") == 0
        assert server.metric("seg_model_ready") == 1


def test_after_a_death_connections_become_even_again(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engines="each") as server:
        with connections(server, 8) as kept:
            become_even(server, kept, "before")
        before = server.children()
        os.kill(before["whole 0"], signal.SIGKILL)
        wait_until(lambda: len(server.children()) == 2 and server.children() != before)
        with connections(server, 8) as kept:
            assert len(spread(server, kept, "meanwhile")) == 1
            wait_until(lambda: server.told().count("is ready on") == 3)
            become_even(server, kept, "after")


def test_a_picture_that_kills_its_server_breaks_its_own_connection(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engines="each") as server:
        with pytest.raises((http.client.HTTPException, OSError)):
            server.ask(png(grey=KILL))
        assert server.ask(png())[0] == 200
        wait_until(lambda: "was ended by SIGKILL" in server.told())
        wait_until(lambda: len(server.children()) == 2)


def test_an_engine_that_hangs_gives_504_and_its_server_is_replaced(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engines="each", engine_timeout_s=2) as server:
        before = set(server.children().values())
        answers: list[tuple[int, str]] = []

        def ask() -> None:
            status, answer = server.ask(png(grey=HANG))
            answers.append((status, answer.get("code", "")))

        hanging = threading.Thread(target=ask)
        hanging.start()
        time.sleep(0.2)
        for _ in range(4):
            assert server.ask(png())[0] in (200, 504)  # by the other server, or behind the one that hangs
        hanging.join(20)
        assert answers == [(504, "deadline_exceeded")]
        wait_until(lambda: len(set(server.children().values()) - before) == 1)
        wait_until(lambda: server.told().count("is ready on") == 3)
        assert server.ask(png())[0] == 200


def test_a_server_whose_loop_stands_still_is_replaced_and_the_others_go_on(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engines="each", engine_timeout_s=2) as server:
        wait_until(lambda: server.told().count("is ready on") == 2)  # the other one too
        stopped = server.children()["whole 0"]
        os.kill(stopped, signal.SIGSTOP)
        for _ in range(20):
            status, answer = server.ask(png())
            assert status == 200, answer
        wait_until(lambda: stopped not in server.children().values())
        assert "hangs: its event loop has not come back for 2 s" in server.told()


def test_a_server_that_never_loads_ends_all_with_a_reason(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOAD", "die")
    with running(bundles, tmp_path, 2, engines="each", ready=False) as server:
        assert server.process.wait(60) == 1
        assert "ended 5 times before it could work; giving up" in server.told()
        assert not server.children()


def test_only_a_lone_request_runs_on_all_cores(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.02")
    monkeypatch.setenv("FAKE_TELL", str(tmp_path / "runs"))
    with running(bundles, tmp_path, 2, engines="each") as server:
        for _ in range(5):
            assert server.ask(png())[0] == 200
        assert (tmp_path / "runs").read_text() == "a" * 5
        with Load(server, 6, png()) as load:  # two would take turns in being alone
            wait_until(lambda: load.count(200) > 80)
    crowd = (tmp_path / "runs").read_text()[5:]
    assert crowd.count("a") < 0.2 * len(crowd), "the first and the last are alone, and now and then one between"


def test_a_request_behind_a_slow_one_goes_on_to_an_idle_server_in_its_connection(bundles: Path, tmp_path: Path) -> None:
    noise = png(700, 500, noise=True)  # a million bytes: most of them come after the connection has gone on
    with running(bundles, tmp_path, 2, engines="each", threads=2) as server:
        with connections(server, 4) as kept:
            become_even(server, kept, "before")
            homes = {}
            for number, connection in enumerate(kept):
                (homes[number],) = spread(server, [connection], f"home-{number}")
            first, second = [number for number in homes if homes[number] == homes[0]]
            kept[first].request("POST", "/v1/segment", png(grey=SLOW), {"X-Request-Id": "slow"})
            time.sleep(0.1)
            began = time.monotonic()
            for body in (png(), noise, png()):
                kept[second].request("POST", "/v1/segment", body, {"X-Request-Id": "quick"})
                answer = kept[second].getresponse()
                assert (answer.status, answer.headers.get("connection")) == (200, None)
                answer.read()
            assert time.monotonic() - began < SLOW_S - 0.1
            assert kept[first].getresponse().read()
            wait_until(lambda: server.log.read_text().count('"quick"') == 3)
            who = [line["process"] for line in server.lines() if line.get("request_id") == "quick"]
            assert set(who) == {"server-1", "server-2"} - {homes[0]}
        assert server.metric("seg_requests_total", status="200") == server.log.read_text().count('"status":200')


def test_a_server_keeps_what_nobody_else_could_do_sooner(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engines="each", threads=2) as server, connections(server, 2) as kept:
        become_even(server, kept, "before")
        homes = [spread(server, [connection], f"home-{number}") for number, connection in enumerate(kept)]
        for turn in range(20):
            assert [spread(server, [kept[i]], f"turn-{turn}-{i}") for i in (0, 1)] == homes
