"""Runs against a server whose behaviour is known."""

from __future__ import annotations

import random
import re
import socket
import time
from pathlib import Path

import pytest

from tests.loadtest.conftest import LoadTest
from tests.loadtest.fake import fake

SOLO = 5  # requests that the tester sends alone, before the load
NO_WARMUP = ("--warmup", 0)


def shuffled(values: list[float]) -> list[float]:
    random.Random(4).shuffle(values)
    return values


def test_percentiles_are_those_of_the_server_within_2_percent(loadtest: LoadTest) -> None:
    known = {"p50": 247, "p90": 367, "p95": 382, "p99": 394, "max": 397}
    for _ in range(4):  # a machine that stops for a moment moves the highest ones; a tester that is wrong always is
        with fake(latencies_ms=shuffled([100 + 3 * k for k in range(100)]), solo=SOLO) as url:
            tested = loadtest(url, "--rate", 80, "--arrivals", "constant", "--duration", 1.25, *NO_WARMUP)
        shown = tested.result["latency_ms"]
        if all(abs(shown[name] - ms) <= 0.02 * ms for name, ms in known.items()):
            break
    assert {name: shown[name] for name in known} == pytest.approx(known, rel=0.02)


@pytest.mark.slow
def test_two_speeds_are_told_apart_at_the_right_percentile(loadtest: LoadTest) -> None:
    with fake(latencies_ms=[60] * 19 + [400], solo=SOLO) as url:
        tested = loadtest(url, "--rate", 100, "--arrivals", "constant", "--duration", 8, *NO_WARMUP)
    shown = tested.result["latency_ms"]
    assert shown["p50"] == pytest.approx(60, abs=2)
    assert shown["p99"] == pytest.approx(400, rel=0.02)
    assert tested.result["offered_per_s"] == pytest.approx(100)


def test_a_stall_is_charged_to_everyone_who_was_due_in_it(loadtest: LoadTest) -> None:
    with fake(latencies_ms=[5], solo=SOLO, pause_s=[0.3, 0.4]) as url:
        tested = loadtest(url, "--rate", 125, "--arrivals", "constant", "--duration", 1.2, *NO_WARMUP)
    shown = tested.result["latency_ms"]
    # 50 of 150 were due while nothing was answered, and waited for between 0.4 s and nothing: the p90 for 0.28 s.
    assert shown["p50"] < 20
    assert shown["p90"] == pytest.approx(280, abs=25)
    assert shown["p99"] == pytest.approx(390, abs=25)


def test_the_client_too_is_charged_when_its_connections_run_out(loadtest: LoadTest) -> None:
    with fake(latencies_ms=[100], solo=SOLO) as url:  # 20 a second on 1 connection that carries 10
        tested = loadtest(
            url, "--rate", 20, "--arrivals", "constant", "--duration", 0.5, *NO_WARMUP, "--connections", 1
        )
    assert tested.result["connections"] == 1
    assert tested.result["latency_ms"]["max"] == pytest.approx(550, rel=0.15)
    assert "went out late" in tested.out


def test_what_finds_no_connection_in_time_is_counted_as_not_sent(loadtest: LoadTest, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("0\n" * 10)
    with fake(latencies_ms=[100], solo=SOLO) as url:  # three are answered, the fourth is too late, the others wait
        tested = loadtest(url, "--trace", trace, "--connections", 1, "--timeout-s", 0.35)
    assert tested.result["good"] == 3
    assert tested.failures == {"timeout": 1, "not_sent": 6}
    assert "all 1 connections were busy" in tested.out


def test_errors_go_by_the_code_the_server_gives(loadtest: LoadTest) -> None:
    with fake(solo=SOLO, refuse_every=3) as url:
        tested = loadtest(url, "--rate", 100, "--arrivals", "constant", "--duration", 0.6, *NO_WARMUP)
    assert tested.failures == {"overloaded": 20}
    (refused,) = tested.result["failures"]
    assert refused["status"] == 503
    assert 0 < refused["median_ms"] <= refused["p95_ms"]
    assert f"(p95 {refused['p95_ms']:.1f})" in tested.out
    assert tested.code == 0  # nothing was promised


def test_a_promise_counts_what_failed(loadtest: LoadTest) -> None:
    words = ("--rate", 250, "--arrivals", "constant", "--duration", 0.4, *NO_WARMUP, "--p99-ms", 200)
    with fake(solo=SOLO, refuse_every=50) as url:
        broken = loadtest(url, *words)
        tolerated = loadtest(url, *words, "--max-errors", 5)
    assert broken.code == 1
    assert broken.report["promise"]["held"] is False
    assert "BROKEN" in broken.out
    assert tolerated.code == 1  # 98 % is not 99 %
    with fake(solo=SOLO) as url:
        assert loadtest(url, *words).code == 0
        assert loadtest(url, *words[:-1], 0.001).code == 1


@pytest.mark.parametrize(
    ("mistake", "kind"), [("miscount", "wrong_count"), ("cut", "bad_answer"), ("garble", "bad_answer")]
)
def test_wrong_answers_are_found_and_end_with_1(loadtest: LoadTest, mistake: str, kind: str) -> None:
    with fake(solo=SOLO, **{f"{mistake}_every": 10}) as url:
        tested = loadtest(url, "--rate", 200, "--arrivals", "constant", "--duration", 0.5, *NO_WARMUP)
    assert tested.failures == {kind: 10}
    assert tested.report["wrong_answers"] == 10
    assert tested.code == 1


def test_a_server_that_says_nothing_is_not_waited_for_forever(loadtest: LoadTest) -> None:
    began = time.monotonic()
    with fake(solo=SOLO, silent_every=4) as url:
        tested = loadtest(url, "--rate", 40, "--arrivals", "constant", "--duration", 1, *NO_WARMUP, "--timeout-s", 0.3)
    assert tested.failures == {"timeout": 10}
    assert tested.result["failures"][0]["median_ms"] == pytest.approx(300, abs=60)
    assert time.monotonic() - began < 8


def test_a_lost_connection_is_an_error_and_the_others_go_on(loadtest: LoadTest) -> None:
    with fake(solo=SOLO, drop_every=10) as url:
        tested = loadtest(url, "--rate", 100, "--duration", 0.5, *NO_WARMUP)
    # A request on a connection that had been used before is sent again, and then is no tenth one.
    assert tested.result["resent"] + tested.failures.get("closed", 0) >= 4
    assert tested.result["good"] >= 40


@pytest.mark.parametrize("closing", [{"close_after": 3}, {"idle_close_ms": 10}])
def test_a_server_that_closes_idle_connections_costs_no_request(loadtest: LoadTest, closing: dict[str, int]) -> None:
    with fake(latencies_ms=[2], solo=SOLO, **closing) as url:
        tested = loadtest(url, "--rate", 100, "--duration", 0.5, *NO_WARMUP)
    assert tested.failures == {}
    assert tested.result["good"] == tested.result["requests"]


def test_a_closed_loop_keeps_its_number_of_clients(loadtest: LoadTest) -> None:
    with fake(latencies_ms=[50], solo=SOLO) as url:
        tested = loadtest(url, "--concurrency", 4, "--duration", 0.8, "--warmup", 0.2)
    assert tested.result["connections"] == 4
    assert 55 < tested.result["throughput_per_s"] < 83  # 4 / 50 ms, when nothing disturbs
    assert "--rate" in tested.out  # what to do next


def test_a_closed_loop_does_not_hammer_a_server_that_refuses(loadtest: LoadTest) -> None:
    with fake(solo=SOLO, refuse_every=1) as url:
        tested = loadtest(url, "--concurrency", 2, "--duration", 0.5, *NO_WARMUP)
    assert tested.failures["overloaded"] <= 22
    assert tested.code == 1  # no right answer at all


def test_a_ramp_and_a_trace_are_sent_as_they_are(loadtest: LoadTest, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("5.0\n5.1 a.png\n5.4\n")
    with fake(solo=SOLO) as url:
        ramp = loadtest(url, "--ramp", "20:100", "--duration", 0.5, *NO_WARMUP)
        replayed = loadtest(url, "--trace", trace)
        unknown = loadtest(url, "--trace", trace, "--images", _folder(tmp_path / "others"))
    assert ramp.result["requests"] == 30
    assert replayed.report["points"]["due_s"] == [0.0, 0.1, 0.4]
    assert unknown.code == 2
    assert "'a.png'" in unknown.err


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "b.png").write_bytes(b"b")
    (path / "notes.txt").write_text("no picture")
    return path


def test_the_number_of_requests_is_bounded_and_the_report_says_so(loadtest: LoadTest) -> None:
    with fake(solo=SOLO) as url:
        opened = loadtest(url, "--rate", 100, "--duration", 1, *NO_WARMUP, "--max-requests", 20)
        closed = loadtest(url, "--concurrency", 2, "--duration", 1, *NO_WARMUP, "--max-requests", 20)
    for tested in (opened, closed):
        assert tested.result["requests"] == 20
        assert "--max-requests" in tested.out


def test_nobody_there_is_said_with_the_command_that_starts_somebody(loadtest: LoadTest) -> None:
    with socket.socket() as probe:  # bound, and not listening: nobody else takes the port either
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        tested = loadtest(f"http://127.0.0.1:{port}", "--rate", 10)
        waited = loadtest(f"http://127.0.0.1:{port}", "--wait-s", 0.3)
    assert tested.code == waited.code == 2
    assert f"python -m server --port {port}" in tested.err
    assert "was not ready after 0.3 s" in waited.err


def test_a_server_that_goes_away_during_the_run_is_reported(loadtest: LoadTest) -> None:
    with fake(solo=SOLO, exit_after_s=0.3) as url:
        tested = loadtest(url, "--rate", 50, "--arrivals", "constant", "--duration", 0.6, *NO_WARMUP)
    assert tested.failures["connect_failed"] >= 8
    assert tested.result["good"] >= 8


def test_a_key_is_sent_and_never_written(loadtest: LoadTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    words = ("--rate", 50, "--duration", 0.5, *NO_WARMUP, "--html", page)
    with fake(solo=SOLO, needs="Authorization: Bearer s3cret") as url:
        refused = loadtest(url, *words)
        monkeypatch.setenv("MASKSERVE_API_KEY", "s3cret")
        let_in = loadtest(url, *words)
        monkeypatch.delenv("MASKSERVE_API_KEY")
        by_header = loadtest(url, *words, "--header", "Authorization: Bearer s3cret")
    assert refused.code == 2
    assert "MASKSERVE_API_KEY" in refused.err
    for tested in (let_in, by_header):
        assert tested.code == 0
        assert not re.search("s3cret", f"{tested.report}{tested.out}{tested.err}{page.read_text()}")


def test_the_numbers_of_a_report_add_up(loadtest: LoadTest) -> None:
    with fake(latencies_ms=[10, 30], solo=SOLO, refuse_every=7) as url:
        tested = loadtest(url, "--rate", 80, "--duration", 1, "--warmup", 1)
    result = tested.result
    measured = [piece for piece in result["slices"] if piece["measured"]]
    assert result["good"] + sum(tested.failures.values()) == result["requests"]
    assert sum(piece["due"] for piece in measured) == result["requests"]
    assert sum(piece["good"] for piece in measured) == result["good"]
    assert sum(piece["due"] for piece in result["slices"]) == len(tested.report["points"]["due_s"])
    assert tested.report["model"] == "fake/1"
    assert result["server"]["mean_ms"]["inference"] == 2.0
    assert tested.report["alone"]["instances"] == {"a.png": 2}
