"""The log: every line whole, nothing secret in it, nothing forged, and nobody waits for it."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from server.http.access import MAX_IMAGES, Picture, Record, Request, RequestLog, segmentation
from server.http.app import create_app
from server.logs import Background, Event, JsonLines, TextLines, escape
from server.settings import Settings
from tests.conftest import ROOT
from tests.server.fakes import FakeLoader

SECRET = "tops3cret"
NASTY = 'a\r\n{"event":"request"}\x1b[2J\x9b31m\u2028\u202e\x00b'


def png(width: int = 60, height: int = 40, grey: int = 128) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


def form(*parts: bytes) -> bytes:
    """A multipart body; the names of its files speak to the terminal."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="f1le\x1b[2J\x9b.png"\r\n\r\n'
    return b"".join(head + part + b"\r\n" for part in parts) + b"--x--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def wait_until(condition: Callable[[], bool], patience_s: float = 30.0) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


# lines


def line_of(formatter: logging.Formatter, message: object, *args: object, exc_info: Any = None) -> str:
    record = logging.LogRecord("some", logging.WARNING, "", 0, message, args, exc_info)
    record.created = 1769861044.1234
    return formatter.format(record)


@given(st.text())
def test_any_text_is_one_line_of_ascii_json_and_comes_back(text: str) -> None:
    line = line_of(JsonLines(), "%s", text)
    assert line.isascii()
    assert line.isprintable() or "\x7f" in text
    assert json.loads(line)["message"] == text
    assert json.loads(line_of(JsonLines(), Event("some", {"text": text})))["text"] == text


@given(st.text())
def test_any_text_is_one_printable_line_for_a_person(text: str) -> None:
    assert line_of(TextLines(), "%s", text).isprintable()
    if text.isprintable():
        assert escape(text) == text


def test_half_a_surrogate_pair_does_not_lose_the_line() -> None:
    assert json.loads(line_of(JsonLines(), "a%sb", "\ud800"))["message"] == "a\ud800b"
    assert line_of(TextLines(), "a%sb", "\ud800").endswith("WARN  a\\ud800b")


def test_the_time_is_utc_with_milliseconds() -> None:
    assert json.loads(line_of(JsonLines(), "x"))["ts"] == "2026-01-31T12:04:04.123Z"


def test_a_traceback_is_one_field_or_lines_behind_a_bar() -> None:
    try:
        raise RuntimeError(f"12:00:00.000 INFO  all is well {NASTY}")
    except RuntimeError:
        caught = sys.exc_info()
    error = json.loads(line_of(JsonLines(), "x", exc_info=caught))["error"]
    assert error["type"] == "RuntimeError"
    assert error["traceback"].startswith("Traceback")
    assert NASTY in error["traceback"]
    first, *others = line_of(TextLines(), "x", exc_info=caught).split("\n")
    assert first.endswith("WARN  x")
    assert others
    assert all(line.startswith("    | ") and line.isprintable() for line in others)


def test_a_message_that_does_not_fit_its_arguments_is_told_not_raised() -> None:
    written: list[bytes] = []
    handler = Background(written.append, JsonLines())
    handler.emit(logging.LogRecord("some", logging.INFO, "", 0, "%d", ("x",), None))
    handler.close()
    assert "could not be formatted" in json.loads(written[0])["message"]


# the queue


def test_a_writer_that_stalls_stalls_nobody_and_what_was_dropped_is_counted() -> None:
    free, written = threading.Event(), []

    def write(data: bytes) -> None:
        assert free.wait(30)
        written.append(json.loads(data))

    handler = Background(write, JsonLines(), max_lines=10)
    for number in range(100):
        handler.emit(logging.LogRecord("some", logging.INFO, "", 0, "line %d", (number,), None))
    free.set()
    wait_until(lambda: bool(written) and written[-1]["event"] == "dropped")
    *lines, dropped = written
    assert [line["message"] for line in lines] == [f"line {number}" for number in range(len(lines))]
    assert dropped["level"] == "warning"
    assert len(lines) + dropped["lines"] == 100
    handler.emit(logging.LogRecord("some", logging.INFO, "", 0, "after", (), None))
    handler.close()
    assert written[-1]["message"] == "after"


def test_a_stderr_that_is_gone_harms_nobody() -> None:
    def write(data: bytes) -> None:
        raise BrokenPipeError

    handler = Background(write, TextLines())
    for _ in range(3):
        handler.emit(logging.LogRecord("some", logging.INFO, "", 0, "x", (), None))
    handler.close()


# requests


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Fields of the request lines so far."""
    caplog.set_level(logging.INFO, "maskserve")
    return lambda: [
        record.msg.fields | {"level": record.levelname} for record in caplog.records if isinstance(record.msg, Request)
    ]


@contextmanager
def application(tiny_bundle: Path, loader: FakeLoader, **changes: Any) -> Iterator[TestClient]:
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "threads": 2} | changes)
    with TestClient(create_app(settings, loader), raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_a_request_is_told_with_its_pictures_and_its_time(tiny_bundle: Path, seen: Callable) -> None:
    with application(tiny_bundle, FakeLoader(), log_sample=1.0) as client:
        answer = client.post("/v1/models/tiny/versions/1/segment", content=png(60, 40), headers={"X-Request-Id": "me"})
    (line,) = seen()
    stages, ms = line.pop("stages"), line.pop("ms")
    assert list(stages) == ["receive", "decode", "preprocess", "queue", "inference", "masks", "encode"]
    assert sum(stages.values()) == pytest.approx(ms, abs=0.01)
    assert line == {
        "level": "INFO",
        "request_id": "me",
        "method": "POST",
        "path": "/v1/models/{model}/versions/{version}/segment",
        "model": "tiny",
        "version": "1",
        "status": 200,
        "image_count": 1,
        "images": [{"width": 60, "height": 40, "instances": 3, "batch_size": 1}],
        "instances": 3,
        "response_bytes": len(answer.content),
    }


def test_a_share_of_0_logs_no_success_and_every_failure(tiny_bundle: Path, seen: Callable) -> None:
    with application(tiny_bundle, FakeLoader(), log_sample=0.0) as client:
        for path in ("/", "/metrics", "/livez", "/v1/models", "/v1/models/none", "/nothing"):
            client.get(path)
        assert client.post("/v1/segment", content=png()).status_code == 200
        assert client.post("/v1/segment", content=b"no picture").status_code == 400
        assert client.post("/v1/models/none/segment", content=png()).status_code == 404
        assert client.post("/v1/segment?masks=zzz", content=png()).status_code == 422
        assert client.get("/v1/segment").status_code == 405
        assert client.post("/v1/segment", content=form(png(), b"none"), headers=FORM).status_code == 200
    assert [(line["status"], line["codes"], line["level"]) for line in seen()] == [
        (400, ["bad_image"], "WARNING"),
        (404, ["unknown_model"], "WARNING"),
        (422, ["bad_parameter"], "WARNING"),
        (405, ["method_not_allowed"], "WARNING"),
        (200, ["bad_image"], "WARNING"),
    ]
    assert (seen()[-1]["failed"], seen()[-1]["image_count"]) == (1, 1)


def test_a_bug_brings_its_traceback_also_from_one_picture_of_several(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with application(tiny_bundle, FakeLoader(), log_sample=0.0) as client:
        for body, headers, status in ((png(grey=13), {}, 500), (form(png(), png(grey=13)), FORM, 200)):
            assert client.post("/v1/segment", content=body, headers=headers).status_code == status
            record = caplog.records[-1]
            line = json.loads(JsonLines().format(record))
            assert (line["level"], line["status"], line["codes"]) == ("error", status, ["engine_failed"])
            assert line["error"]["type"] == "EngineFailed"
            assert "secret text of a library" in line["error"]["traceback"]


def test_other_paths_are_logged_when_they_meet_a_bug_only(
    tiny_bundle: Path, seen: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = FakeLoader()
    loader.may_load.clear()
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "log_sample": 1.0})
    with TestClient(create_app(settings, loader), raise_server_exceptions=False) as client:
        assert client.get("/readyz").status_code == 503
        loader.may_load.set()
        assert not seen()
        monkeypatch.setattr("server.metrics.Metrics.exposition", lambda self: 1 / 0)
        assert client.get("/metrics").status_code == 500
    (line,) = seen()
    assert (line["path"], line["status"], line["codes"]) == ("other", 500, ["internal"])
    assert line["ms"] > 0


def finished(request_id: str, seconds: float = 0.01) -> Record:
    record = Record(request_id, "/v1/segment", status=200)
    record.stages.last = record.stages.began + seconds
    return record


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_share_is_kept_and_the_same_request_is_chosen_again(share: float, seen: Callable) -> None:
    for _ in range(2):
        requests = RequestLog(share)
        for number in range(3000):
            requests.write(finished(f"request-{number}"), "POST")
    chosen = [line["request_id"] for line in seen()]
    half = len(chosen) // 2
    assert chosen[:half] == chosen[half:]
    assert half == pytest.approx(3000 * share, abs=60 * (0 < share < 1))


def test_a_storm_of_refusals_is_sampled_and_other_failures_are_not(seen: Callable) -> None:
    requests = RequestLog(0.0)
    for number in range(100):
        record = finished(f"refused-{number}")
        record.status, record.failed = 503, ["overloaded"]
        requests.write(record, "POST")
    record = finished("broken")
    record.status, record.failed = 400, ["bad_image"]
    requests.write(record, "POST")
    assert [line["request_id"] for line in seen()] == ["broken"]


def test_a_slow_request_is_logged_whatever_the_share(seen: Callable) -> None:
    RequestLog(0.0).write(finished("quick", 0.9), "POST")
    RequestLog(0.0).write(finished("slow", 1.1), "POST")
    assert [line["request_id"] for line in seen()] == ["slow"]


def test_a_request_of_many_pictures_has_a_line_of_bounded_length() -> None:
    record = finished("many")
    record.images = [Picture((30, 40), 2, 8)] * 1000
    fields = Request(record, "POST").fields
    assert (fields["image_count"], fields["instances"], len(fields["images"])) == (1000, 2000, MAX_IMAGES)


def test_the_path_of_a_line_is_the_routes() -> None:
    assert segmentation("/v1/segment") == ("/v1/segment", (None, None))
    nasty = segmentation(f"/v1/models/{NASTY}/segment")
    assert nasty == ("/v1/models/{model}/segment", (NASTY, None))
    nasty = segmentation(f"/v1/models/x/versions/{NASTY}/segment")
    assert nasty == ("/v1/models/{model}/versions/{version}/segment", ("x", NASTY))
    assert segmentation("/v1/models/x/other") == (None, None)


def test_a_person_reads_one_compact_line() -> None:
    record = finished("9f0c", 0.108)
    record.model, record.version, record.images = "nuclei", "1", [Picture((384, 512), 113, 4)]
    record.stages.seconds = {"receive": 0.0, "decode": 0.0019, "queue": 0.0001, "inference": 0.098}
    assert line_of(TextLines(), Request(record, "POST")).endswith(
        "nuclei/1 200 108 ms  512x384 113 instances  [decode 1.9 queue 0.1 inference 98]  id=9f0c"
    )
    gone = Record("9f0d", "/v1/segment", status=499)
    assert "/v1/segment 499 client gone 0.0 ms  id=9f0d" in str(Request(gone, "POST"))


@pytest.mark.parametrize("changes", [{"log_sample": 1.5}, {"log_sample": -1}, {"log_format": "xml"}, {"log_level": 3}])
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(changes)


def test_json_takes_a_share_and_text_takes_all() -> None:
    assert Settings.model_validate({"log_format": "json"}).log_share == 0.01
    assert Settings.model_validate({"log_format": "text"}).log_share == 1.0
    assert Settings.model_validate({"log_format": "text", "log_sample": 0.5}).log_share == 0.5


# processes


@contextmanager
def running(bundles: Path, stderr: IO[bytes] | int, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server whose stderr is ours, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "--bundles", str(bundles), "--port", str(port), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
    try:
        wait_until(lambda: is_ready(port))
        yield process, port
    finally:
        process.kill()
        process.wait()


def is_ready(port: int) -> bool:
    with suppress(OSError):
        return ask(port, b"", method="GET", path="/readyz") == 200
    return False


def ask(port: int, body: bytes, method: str = "POST", path: str = "/v1/segment", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def send_raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(data)
        return sock.recv(65536)


@pytest.fixture(scope="module")
def whole_run(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """stderr of a server with keys, from its start to SIGTERM, and visitors of every kind between."""
    folder = tmp_path_factory.mktemp("run")
    key = {"name": "k", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "may": ["segment", "metrics"]}
    (folder / "keys.json").write_text(json.dumps({"keys": [key]}))
    flags = ["--workers", "1", "--log-sample", "1", "--keys", str(folder / "keys.json")]
    bearer = f"Bearer {SECRET}"
    log = folder / "stderr"
    with log.open("wb") as stderr, running(tiny_bundle.parent.parent, stderr, *flags) as (process, port):
        assert (
            ask(port, png(), path="/v1/segment?score_threshold=0.123", Authorization=bearer, X_Request_Id="good") == 200
        )
        assert ask(port, b"no picture", Authorization=bearer, X_Request_Id="bad image") == 400
        assert ask(port, png(), path="/v1/models/m0del%0a%1b%5b2J/segment?q=qu3ry%0a", Authorization=bearer) == 404
        assert ask(port, form(png(), b"none"), Authorization=bearer, **FORM) == 200
        assert ask(port, png(), Authorization=f"Bearer wr0ng{SECRET}") == 401
        raw = (
            b" HTTP/1.1\r\nHost: h0st\r\nContent-Length: 1000\r\nAuthorization: "
            + bearer.encode()
            + b"\r\nX-Request-Id: "
        )
        send_raw(port, b"POST /v1/segment?qu3ry" + raw + b'n4sty\x9b2J","level":"\xff\r\n\r\n')
        send_raw(port, b"POST /v1/segment" + raw + b"n4sty\x1b[2J\r\n\r\n")  # which uvicorn refuses in its own words
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"POST /v1/segment" + raw + b"gone\r\n\r\nabc")
            time.sleep(0.2)
        wait_until(lambda: b'"gone"' in log.read_bytes())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    return log.read_bytes()


def test_every_line_of_a_whole_run_is_one_json_object(whole_run: bytes) -> None:
    lines = [json.loads(line) for line in whole_run.decode("ascii").split("\n")[:-1]]
    assert whole_run.endswith(b"\n")
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
        assert line["level"] in ("info", "warning", "error")
        assert line["event"] in ("request", "log")
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 400, 404, 200, 401, 422, 499]
    assert requests[0]["request_id"] == "good"
    assert all(re.fullmatch(r"[0-9a-f]{32}", line["request_id"]) for line in requests[1:-1])
    assert all("error" not in line for line in lines)
    messages = " ".join(line.get("message", "") for line in lines)
    for told in (
        "found tiny/1 in",
        "Uvicorn running on http://127.0.0.1:",
        "tiny/1 is ready on",
        "SIGTERM",
        "Finished",
    ):
        assert told in messages


@pytest.mark.parametrize("word", [SECRET, "wr0ng", "qu3ry", "0.123", "f1le", "m0del", "n4sty", "h0st", "Bearer"])
def test_no_key_and_no_word_of_a_client_is_in_the_log(whole_run: bytes, word: str) -> None:
    assert word.encode() not in whole_run


def test_no_character_of_the_log_speaks_to_the_terminal(whole_run: bytes) -> None:
    assert all(32 <= byte < 127 or byte == 10 for byte in whole_run)


def test_a_stalled_stderr_delays_no_answer_and_no_end(tiny_bundle: Path) -> None:
    with running(tiny_bundle.parent.parent, subprocess.PIPE) as (process, port):
        slowest = 0.0
        for _ in range(300):  # a pipe holds some 150 lines of these
            began = time.monotonic()
            assert ask(port, b"no picture") == 400
            slowest = max(slowest, time.monotonic() - began)
        assert ask(port, png()) == 200
        assert slowest < 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        lines = process.stderr.read().decode().split("\n")
        process.stderr.close()
    assert 50 < len([json.loads(line) for line in lines[:-1]]) < 300


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_a_terminal_gets_text_of_every_request(tiny_bundle: Path) -> None:
    ours, theirs = os.openpty()
    data: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the end of a terminal
            while chunk := os.read(ours, 65536):
                data.append(chunk)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with running(tiny_bundle.parent.parent, theirs, "--workers", "1") as (process, port):
        os.close(theirs)
        assert ask(port, png(), X_Request_Id="mine") == 200
        assert ask(port, b"no picture") == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    reader.join(10)
    os.close(ours)
    text = b"".join(data).decode()
    assert re.search(
        r"(?m)^\d\d:\d\d:\d\d\.\d{3} INFO  tiny/1 200 [\d.]+ ms  60x40 \d+ instances  \[.*\]  id=mine\r$", text
    )
    assert re.search(
        r"(?m)^\d\d:\d\d:\d\d\.\d{3} WARN  tiny/1 400 bad_image [\d.]+ ms  \[.*\]  id=[0-9a-f]{32}\r$", text
    )


STRANGERS = """
import asyncio, gc, logging, threading, warnings
from server.logs import logging_to_stderr

async def forget():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

class Last:
    def __del__(self):
        raise ValueError("last\\nwords")

with logging_to_stderr("json", "info"):
    warnings.warn("old\\nways", stacklevel=1)
    thread = threading.Thread(target=lambda: {}["key"])
    thread.start()
    thread.join()
    asyncio.run(forget())
    Last()
    gc.collect()
    logging.getLogger("library").info("hidden? %s", "no")
    logging.getLogger("library").debug("hidden? yes")
"""


def test_warnings_threads_and_asyncio_speak_the_same_form() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRANGERS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line.get("error", {}).get("type")) for line in lines] == [
        ("py.warnings", None),
        ("maskserve", "KeyError"),
        ("asyncio", "ZeroDivisionError"),
        ("maskserve", "ValueError"),
        ("library", None),
    ]
    assert "old\nways" in lines[0]["message"]
    assert lines[-1]["message"] == "hidden? no"


def test_a_start_that_fails_says_so_in_plain_words() -> None:
    command = [sys.executable, "-m", "server", "--bundles", "no/such/folder", "--log-format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("cannot start: no bundle in")
    assert done.stderr.count("\n") == 1
