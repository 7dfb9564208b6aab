"""The server as a process: how it starts, how it treats slow and vanishing clients, and how it ends."""

from __future__ import annotations

import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT
from training.nuclei.server_process import serve


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(file, "PNG")
    return file.getvalue()


def post(port: int, payload: bytes, path: str = "/v1/segment") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, payload)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, body


def metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def received(sock: socket.socket, patience_s: float = 10.0) -> bytes:
    """Everything until the server closes."""
    sock.settimeout(patience_s)
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


@pytest.fixture(scope="module")
def impatient(tiny_bundle: Path) -> Iterator[int]:
    """A server with short limits."""
    flags = ["--header-timeout-s", "0.5", "--body-timeout-s", "0.5", "--max-body-mb", "1", "--keep-alive-s", "1"]
    with serve(tiny_bundle.parent.parent, *flags) as port:
        yield port


def test_headers_that_never_end_get_a_408(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient)) as sock:
        began = time.monotonic()
        sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\n")
        answer = received(sock)
        assert 0.3 < time.monotonic() - began < 5
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_a_silent_connection_is_cut(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient)) as sock:
        assert received(sock).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_never_ends_gets_a_408(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient)) as sock:
        sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        answer = received(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    assert b"3 bytes came" in answer


def test_the_callers_deadline_covers_the_sending_of_the_body(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient)) as sock:
        sock.sendall(b"POST /v1/segment?timeout_ms=100 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        sock.settimeout(0.45)  # the body would have 0.5 s
        answer = b""
        while b'"code":"deadline_exceeded"' not in answer:
            answer += sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 504 ")


def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient)) as sock:
        sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\n\r\n")
        answer = received(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer


def test_a_chunked_body_over_the_limit_is_cut_off(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient)) as sock:
        sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall((b"%x\r\n" % 600_000 + b"x" * 600_000 + b"\r\n") * 2)
        assert received(sock).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_hangs_up_is_counted_and_the_server_goes_on(impatient: int) -> None:
    cancelled = 'seg_cancelled_total{model="tiny",stage="receive",version="1"} 1.0'
    with socket.create_connection(("127.0.0.1", impatient)) as sock:
        sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    until = time.monotonic() + 10
    while cancelled not in (told := metrics(impatient)):
        assert time.monotonic() < until, [line for line in told.splitlines() if "seg_cancelled" in line]
        time.sleep(0.02)
    assert post(impatient, png(64))[0] == 200


def test_several_requests_share_a_connection(impatient: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", impatient, timeout=10)
    for status, payload in ((200, png(32)), (400, b"no picture"), (200, png(48))):
        connection.request("POST", "/v1/segment", payload)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_busy_loses_nothing_and_ends_with_0(tiny_bundle: Path, number: signal.Signals) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "--bundles", str(tiny_bundle.parent.parent), "--port", str(port)]
    process = subprocess.Popen([*command, "--max-wait-ms", "60000"], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                if post(port, png(16))[0] == 200:
                    break
            except OSError:
                pass
            assert time.monotonic() < until
            time.sleep(0.1)
        answers: list[int] = []
        large = png(1400)  # more than fits on the way: who has sent it is inside
        sent = threading.Barrier(9)

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v1/segment", large)
            sent.wait(30)
            answers.append(connection.getresponse().status)
            connection.close()

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        sent.wait(30)
        while 'seg_queue_depth{model="tiny",version="1"} 0.0' in metrics(port):
            assert time.monotonic() < until
        process.send_signal(number)
        for thread in threads:
            thread.join(30)
        assert process.wait(30) == 0
        assert answers == [200] * 8
    finally:
        process.kill()
        process.communicate()


def run_server(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", *flags]
    environment = os.environ | variables
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_help_teaches_every_setting_with_its_flag() -> None:
    from server.settings import Settings

    shown = run_server("--help")
    assert shown.returncode == 0
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown.stdout
    assert "MASKSERVE_MAX_WAIT_MS" in shown.stdout
    for field in Settings.model_fields.values():
        assert field.description


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--bundles", "no/such/folder"), "no bundle in 'no/such/folder'"),
        (("--port", "70000"), "--port"),
        (("--max-wait-ms", "soon"), "--max-wait-ms"),
        (("--no-such-flag", "1"), "no-such-flag"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line_that_names_it(flags: tuple[str, ...], says: str) -> None:
    done = run_server(*flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_variable_sets_what_a_flag_sets() -> None:
    done = run_server(MASKSERVE_PORT="70000")
    assert done.returncode == 2
    assert re.search(r"port", done.stderr)
