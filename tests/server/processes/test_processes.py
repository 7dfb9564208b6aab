"""Several processes answer as one, and none of them is missed for long."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.server.processes.behaving import HANG, KILL, NAN, POISON, SLOW, SLOW_S
from tests.server.processes.running import Load, Running, png, running, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]


@pytest.fixture
def bundles(tiny_bundle: Path) -> Path:
    return tiny_bundle.parent.parent


@pytest.fixture(autouse=True)
def nothing_stays_in_shared_memory() -> Any:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    yield
    left = set(Path("/dev/shm").iterdir()) - before if Path("/dev/shm").is_dir() else set()
    assert not {path for path in left if "maskserve" in path.name}


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return False


def without_time(answer: Any) -> Any:
    return {key: value for key, value in answer.items() if key not in ("timing_ms", "batch_size")}


# one answer


@pytest.fixture(scope="module")
def real(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], list[Any]]:
    """What a real engine answers to the same requests behind so many workers, with engines of their own or shared."""
    folder = tmp_path_factory.mktemp("real")

    def answers(workers: int, engines: str) -> list[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "server", "--bundles", str(tiny_bundle.parent.parent), "--port", str(port)]
        with (folder / f"log-{workers}").open("wb") as log:
            process = subprocess.Popen(
                [
                    *command,
                    "--workers",
                    str(workers),
                    "--engines",
                    engines,
                    "--shared-mb",
                    "6",
                    "--max-wait-ms",
                    "60000",
                ],
                cwd=ROOT,
                stderr=log,
            )
        server = Running(process, port, folder / f"log-{workers}")
        try:
            wait_until(server.is_ready)
            found = []
            for query in ("score_threshold=0", "masks=polygons&score_threshold=0.1", "masks=png"):
                for size in ((60, 40), (64, 64), (333, 57), (700, 500)):
                    status, answer = server.ask(noise(*size), path=f"/v1/segment?{query}")
                    assert status == 200
                    found.append(without_time(answer))
            many: list[Any] = [None] * 24

            def ask(number: int) -> None:
                many[number] = without_time(server.ask(noise(40 + number, 60), path="/v1/segment?score_threshold=0")[1])

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            found += many
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v1/segment?score_threshold=0", noise(90, 80), {"Accept": "image/png"})
            found.append(connection.getresponse().read())
            connection.close()
            process.terminate()
            assert process.wait(30) == 0
            return found
        finally:
            process.kill()
            process.wait()

    return answers


def noise(width: int, height: int) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_several_processes_answer_what_one_answers_bit_for_bit(real: Callable[[int, str], list[Any]]) -> None:
    assert real(2, "shared") == real(2, "each") == real(1, "each")


def test_batches_form_over_the_fronts(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2) as server:
        for round_ in range(10):
            slow = threading.Thread(target=server.ask, args=(png(grey=SLOW),))
            slow.start()
            time.sleep(0.2)
            ask = {"X_Request_Id": f"round-{round_}"}
            others = [threading.Thread(target=server.ask, args=(png(),), kwargs=ask) for _ in range(8)]
            for thread in others:
                thread.start()
            for thread in (slow, *others):
                thread.join(20)
            wait_until(lambda id_=f'"round-{round_}"': server.log.read_text().count(id_) == 8)  # type: ignore[misc]
            fast = [line for line in server.lines() if line.get("request_id") == f"round-{round_}"]
            assert {line["images"][0]["batch_size"] for line in fast} == {8}, "eight pictures, one run"
            if {line["process"] for line in fast} == {"front-1", "front-2"}:
                break
        else:
            pytest.fail("all connections went to one front, ten times")
        assert server.metric("seg_batch_size_bucket", le="8.0") == server.metric("seg_batch_size_count")


def test_connections_are_spread_over_the_fronts(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 3) as server:
        kept = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(12)]
        for connection in kept:
            connection.connect()
        for connection in kept:
            connection.request("POST", "/v1/segment", png(), {"X-Request-Id": "spread"})
            assert connection.getresponse().read()
        wait_until(lambda: server.log.read_text().count('"spread"') == 12)
        for connection in kept:
            connection.close()
        spread = Counter(line["process"] for line in server.lines() if line.get("request_id") == "spread")
        assert max(spread.values()) <= 6, spread
        assert len(spread) == 3, spread


def test_a_picture_fails_alone_and_in_the_words_of_one_process(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2) as server:
        assert server.ask(png(grey=POISON))[1]["code"] == "engine_failed"
        assert server.ask(png(grey=NAN))[1]["code"] == "model_output_invalid"
        assert server.ask(png())[0] == 200
        wait_until(lambda: "secret text of a library" in server.log.read_text(), what="for the cause in the log")
        (line,) = [line for line in server.lines() if "error" in line and line["process"] == "engine"][:1]
        assert "secret text of a library" in line["error"]["traceback"]


def test_a_client_that_hangs_up_leaves_no_job_behind(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2) as server:
        slow = threading.Thread(target=server.ask, args=(png(grey=SLOW),))
        slow.start()
        time.sleep(0.1)
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                body = png()
                sock.sendall(
                    b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                time.sleep(0.02)
        slow.join(20)
        wait_until(lambda: server.metric("seg_cancelled_total") == 5)
        assert server.metric("seg_cancelled_total", stage="queue") == 5
        assert server.metric("seg_batch_size_sum") == 1
        assert server.metric("seg_wasted_images_total") == 0
        assert server.ask(png())[0] == 200


def test_models_and_health_are_told_by_every_front(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 3) as server:
        for _ in range(12):
            assert server.get("/livez")[0] == 200
            status, ready = server.get("/readyz")
            assert (status, ready["models"]) == (
                200,
                {"tiny/1": {"state": "ready", "reason": "golden sample reproduced"}},
            )
            (model,) = server.get("/v1/models")[1]["models"]
            assert (model["engine"], model["manifest"]["name"]) == ("fake", "tiny")


# one account


@pytest.mark.parametrize(
    ("fronts", "engines"), [(0, "each"), (1, "shared"), (2, "shared"), (3, "shared"), (2, "each"), (3, "each")]
)
def test_the_metrics_equal_what_the_clients_counted(
    bundles: Path, tmp_path: Path, fronts: int, engines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.002")
    with running(bundles, tmp_path, fronts, max_wait_ms=20, engines=engines) as server:
        with Load(server, 12, png()) as good, Load(server, 2, b"no picture") as bad:
            wait_until(lambda: good.count(200) > 150 and bad.count(400) > 50)
        counts = good.counts + bad.counts
        assert set(counts) <= {200, 400, 503}
        for _ in range(2 * max(fronts, 1)):  # whichever process is asked
            for status in (200, 400, 503):
                assert server.metric("seg_requests_total", status=str(status)) == counts[status]
            assert server.metric("seg_images_total") == counts[200]
            assert server.metric("seg_batch_size_sum") == counts[200]
            assert server.metric("seg_request_seconds_count") == counts.total()
            assert server.metric("seg_failures_total") == counts[400] + counts[503]
            assert server.metric("seg_rejected_total") == counts[503]
            assert server.metric("seg_queue_depth") == 0
            assert server.metric("seg_model_ready") == 1
        started = server.metric("process_start_time_seconds")
        assert started > 0
        text = server.get("/metrics")[1]
        names = {line.split('"')[1] for line in text.splitlines() if line.startswith("process_cpu_seconds_total{")}
        kinds = {"supervisor", "engine"} if engines == "shared" else {"supervisor"}
        kind = "front" if engines == "shared" else "server"
        assert names == (kinds | {f"{kind}-{n + 1}" for n in range(fronts)} if fronts else set())
        assert server.metric("seg_queue_limit") == 64 * 16
        assert server.metric("seg_model_info") == 1


@pytest.mark.parametrize("engines", ["shared", "each"])
def test_the_limit_of_requests_inside_and_a_quota_hold_over_all_fronts(
    bundles: Path, tmp_path: Path, engines: str
) -> None:
    key = {"name": "k", "sha256": hashlib.sha256(b"s").hexdigest(), "may": ["segment", "metrics"]}
    few = {
        "name": "few",
        "sha256": hashlib.sha256(b"f").hexdigest(),
        "may": ["segment"],
        "per_second": 0.01,
        "burst": 5,
    }
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key, few]}))
    with running(bundles, tmp_path, 3, queue_limit=4, keys=str(tmp_path / "keys.json"), engines=engines) as server:
        answers: list[int] = []

        def ask(grey: int, secret: str) -> None:
            answers.append(server.ask(png(grey=grey), Authorization=f"Bearer {secret}")[0])

        inside = [threading.Thread(target=ask, args=(SLOW, "s")) for _ in range(4)]
        for thread in inside:
            thread.start()
        time.sleep(SLOW_S / 2)
        for _ in range(9):
            ask(128, "s")
        assert answers == [503] * 9
        for thread in inside:
            thread.join(20)
        assert answers[9:] == [200] * 4
        answers.clear()
        for _ in range(20):
            ask(128, "f")
        assert (answers.count(200), answers.count(429)) == (5, 15)


@pytest.mark.parametrize("engines", ["shared", "each"])
def test_a_request_of_priority_is_let_into_a_crowd_that_it_passes(
    bundles: Path, tmp_path: Path, engines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.2")
    keys = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "may": ["segment", *more]}
        for name, more in (("plain", ()), ("first", ("priority",)))
    ]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    told: dict[str, Any] = {"keys": str(tmp_path / "keys.json"), "max_batch": 1, "max_wait_ms": 700}
    with (
        running(bundles, tmp_path, 2, engines=engines, **told) as server,
        Load(server, 14, png(), Authorization="Bearer plain") as load,
    ):
        wait_until(lambda: load.count(200) > 8 and load.count(503) > 20)
        plain = [server.ask(png(), Authorization="Bearer plain")[0] for _ in range(8)]
        first = [server.ask(png(), path="/v1/segment?priority=9", Authorization="Bearer first")[0] for _ in range(8)]
    assert plain.count(503) > 4
    assert first == [200] * 8


@pytest.mark.parametrize("engines", ["shared", "each"])
def test_a_crowd_that_was_refused_is_not_let_in_all_at_once(
    bundles: Path, tmp_path: Path, engines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.2")
    waits_ms: list[int] = []
    with (
        running(bundles, tmp_path, 2, engines=engines, max_batch=1, max_wait_ms=700) as server,
        Load(server, 14, png()) as load,
    ):
        wait_until(lambda: load.count(200) > 15 and load.count(503) > 20)  # what came before the cost was known is done
        while len(waits_ms) < 40:
            status, answer = server.ask(png())
            if status == 503:
                waits_ms.append(int(re.match(r"\d+", answer["detail"])[0]))  # type: ignore[index]
            time.sleep(0.05)
    assert max(waits_ms) < 700 + 3 * 200


def test_every_line_of_every_process_is_whole_and_says_whose_it_is(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 3) as server:
        with Load(server, 12, b"no picture") as load:
            wait_until(lambda: load.count(400) > 300)
        server.process.terminate()
        assert server.process.wait(30) == 0
        lines = server.lines()
    assert {line["process"] for line in lines} == {"supervisor", "engine", "front-1", "front-2", "front-3"}
    assert sum(line["event"] == "request" for line in lines) == load.counts.total()


# one ends


def test_a_killed_front_takes_its_connections_with_it_and_nothing_else(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.002")
    with running(bundles, tmp_path, 2, max_wait_ms=5000) as server:
        with Load(server, 8, png()) as load:
            wait_until(lambda: load.count(200) > 100)
            before = server.children()
            os.kill(before["front 0"], signal.SIGKILL)
            wait_until(lambda: len(server.children()) == 3 and server.children() != before)
            done = load.count(200)
            wait_until(lambda: load.count(200) > done + 200)
        assert set(load.counts) <= {200, "broken"}
        assert 1 <= load.counts["broken"] <= 8
        assert "front-1 was ended by SIGKILL" in server.told() or "front-2 was ended by SIGKILL" in server.told()
        # a killed front may have counted an answer that it could not send any more, and lost none that it sent
        for _ in range(6):
            counted = server.metric("seg_requests_total", status="200")
            assert load.counts[200] <= counted <= load.counts[200] + load.counts["broken"]
        assert server.metric("seg_queue_depth") == 0
        assert server.children()["engine"] == before["engine"]


def test_a_killed_engine_process_gives_503_and_then_200_again(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.02")
    with running(bundles, tmp_path, 2, max_wait_ms=5000) as server:
        with Load(server, 8, png()) as load:
            wait_until(lambda: load.count(200) > 50)
            for round_ in range(2):
                engine = server.children()["engine"]
                os.kill(engine, signal.SIGKILL)
                wait_until(lambda: not server.is_ready(), what="for not ready")
                status, ready = server.get("/readyz")
                assert (status, ready["models"]["tiny/1"]["state"]) in ((503, "loading"), (200, "ready"))
                assert server.get("/livez")[0] == 200
                wait_until(server.is_ready)
                done = load.count(200)
                wait_until(lambda done=done: load.count(200) > done + 50)  # type: ignore[misc]
                assert server.children()["engine"] != engine, round_
        assert set(load.counts) == {200, 503}
        assert set(load.codes) == {"not_ready"}
        assert server.metric("seg_requests_total", status="200") == load.counts[200]
        assert server.metric("seg_requests_total", status="503") == load.counts[503]
        assert server.metric("seg_model_ready") == 1


def test_a_picture_that_kills_the_engine_harms_others_for_a_moment(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2) as server:
        status, problem = server.ask(png(grey=KILL))
        assert (status, problem["code"]) == (503, "not_ready")
        assert problem["retry_after_ms"] == 1000
        wait_until(lambda: "engine was ended by" in server.told())
        wait_until(server.is_ready)
        assert server.ask(png())[0] == 200
        assert "engine was ended by SIGKILL" in server.told()


def test_an_engine_that_hangs_gives_504_and_is_replaced(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engine_timeout_s=3) as server:
        engine = server.children()["engine"]
        answers: list[tuple[int, str]] = []

        def ask(grey: int) -> None:
            status, answer = server.ask(png(grey=grey))
            answers.append((status, answer.get("code", "")))

        threads = [threading.Thread(target=ask, args=(grey,)) for grey in (HANG, 128, 128)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join(20)
        assert 2.5 < time.monotonic() - began < 15
        assert answers == [(504, "deadline_exceeded")] * 3
        wait_until(lambda: server.children().get("engine", engine) != engine)
        wait_until(server.is_ready)
        assert server.ask(png())[0] == 200
        assert not is_alive(engine)
        assert "engine hangs: tiny/1 has not come back for 3 s" in server.told()


def test_an_engine_process_whose_loop_stands_still_is_replaced_too(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engine_timeout_s=3) as server:
        engine = server.children()["engine"]
        os.kill(engine, signal.SIGSTOP)
        assert server.ask(png())[1]["code"] == "deadline_exceeded"
        wait_until(lambda: server.children().get("engine", engine) != engine)
        wait_until(server.is_ready)
        assert server.ask(png())[0] == 200
        assert "its event loop" in server.told()


def test_a_front_whose_loop_stands_still_is_replaced_and_the_others_go_on(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2, engine_timeout_s=3) as server:
        stopped = server.children()["front 0"]
        os.kill(stopped, signal.SIGSTOP)
        for _ in range(20):
            assert server.ask(png())[0] == 200
        wait_until(lambda: not is_alive(stopped))
        wait_until(lambda: len(server.children()) == 3)
        assert "hangs: its event loop has not come back for 3 s" in server.told()


def test_full_shared_memory_refuses_and_is_free_again(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 1, shared_mb=0.13, max_wait_ms=60000) as server:
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(server.ask(png(grey=SLOW)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        refused = [answer for status, answer in answers if status == 503]
        assert refused
        assert {answer["code"] for answer in refused} == {"overloaded"}
        assert "MASKSERVE_SHARED_MB" in refused[0]["detail"]
        assert {status for status, _ in answers} == {200, 503}
        for _ in range(20):
            assert server.ask(png())[0] == 200


def test_a_picture_that_can_never_fit_is_told_what_to_turn(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 1, shared_mb=0.005) as server:
        status, problem = server.ask(png())
        assert (status, problem["code"]) == (500, "engine_failed")
        assert "MASKSERVE_SHARED_MB" in problem["detail"]


# all end


@pytest.mark.parametrize("engines", ["shared", "each"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing_and_ends_with_0(
    bundles: Path, tmp_path: Path, number: int, engines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DELAY_S", "0.05")
    with running(bundles, tmp_path, 2, max_wait_ms=60000, max_batch=1, engines=engines) as server:
        children = server.children()
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(server.ask(png())[0])) for _ in range(30)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.metric("seg_queue_depth") > 3)
        time.sleep(0.2)  # so that all are accepted
        server.process.send_signal(number)
        for thread in threads:
            thread.join(30)
        assert answers == [200] * 30
        assert server.process.wait(30) == 0
        assert not any(is_alive(pid) for pid in children.values())


def test_while_it_drains_who_is_connected_hears_so(bundles: Path, tmp_path: Path) -> None:
    with running(bundles, tmp_path, 2) as server:
        slow = threading.Thread(target=server.ask, args=(png(grey=SLOW),))
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        body = png()
        kept.connect()
        kept.sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        slow.start()
        time.sleep(0.2)
        server.process.terminate()
        time.sleep(0.1)
        kept.sock.sendall(body)
        assert kept.sock.recv(100).startswith(b"HTTP/1.1 200 ")  # it was inside before the signal
        kept.close()
        slow.join(20)
        assert server.process.wait(30) == 0


def test_a_second_signal_ends_at_once(bundles: Path, tmp_path: Path) -> None:
    with (
        running(bundles, tmp_path, 2, drain_s=60) as server,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        time.sleep(0.3)
        server.process.terminate()
        time.sleep(0.5)
        assert server.process.poll() is None
        began = time.monotonic()
        server.process.terminate()
        server.process.wait(20)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("engines", ["shared", "each"])
def test_nobody_outlives_a_killed_supervisor(bundles: Path, tmp_path: Path, engines: str) -> None:
    with running(bundles, tmp_path, 2, engines=engines) as server, Load(server, 4, png()) as load:
        wait_until(lambda: load.count(200) > 20)
        children = server.children()
        assert len(children) == (3 if engines == "shared" else 2)
        server.process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in children.values()), patience_s=10)


def test_an_engine_that_never_loads_ends_the_server_with_a_reason(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOAD", "die")
    with running(bundles, tmp_path, 2, ready=False) as server:
        assert server.process.wait(60) == 1
        assert "engine ended 5 times before it could work; giving up" in server.told()
        assert not server.children()


def test_a_port_that_is_taken_is_told_in_one_line(bundles: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "server", "--workers", "2", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(
            [*command, "--bundles", str(bundles)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert "cannot listen on 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr
