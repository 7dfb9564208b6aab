"""A real server in a process of its own, on a free port of 127.0.0.1, for as long as a block lasts."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve(bundles: Path, *flags: str, patience_s: float = 60.0) -> Iterator[int]:
    """
    Yields:
        The port, once /readyz says yes.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    port = _free_port()
    command = [sys.executable, "-m", "server", "--bundles", str(bundles), "--port", str(port), *flags]
    process = subprocess.Popen(command)
    try:
        _wait_until_ready(process, port, patience_s)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen, port: int, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        if _is_ready(port):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server was not ready after {patience_s:g} s")


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
