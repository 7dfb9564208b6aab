"""What the proof runs on: a real server that can be restarted, and a real Prometheus that reads it, both on 127.0.0.1.

with Server(bundles, "--queue-limit", "4") as server, prometheus(folder, server.port) as base:
    query_range(base, "up", began, time.time(), step_s=1)
"""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx

from tests.conftest import ROOT
from tests.tools import tool

MONITORING = ROOT / "monitoring"
PATIENCE_S = 60.0

Labels = dict[str, str]
Series = tuple[Labels, list[tuple[float, float]]]  # labels, and (time, value) of every finite sample


class Server:
    """`python -m server` on a port of its own, the same before and after a restart."""

    def __init__(self, bundles: Path, *flags: str) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", "server", "--bundles", str(bundles), "--port", str(self.port), *flags]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = process = subprocess.Popen(self._command, cwd=ROOT)
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}/readyz"), process)

    def stop(self) -> None:
        if self._process is not None:
            end(self._process)
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """A Prometheus with our configuration and our rules, but for the target, and a second where ours has more.

    Args:
        folder: where its configuration and its data go.
        target: port of the server it reads.

    Yields:
        Its address, once it has read the server.
    """
    config = (MONITORING / "prometheus.yml").read_text(encoding="utf-8")
    changes = {
        '{targets: ["server:8000"]}': f'{{targets: ["127.0.0.1:{target}"], labels: {{instance: "server:8000"}}}}',
        "scrape_interval: 5s": "scrape_interval: 1s\n  scrape_timeout: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
    }
    for ours, changed in changes.items():
        assert config.count(ours) == 1, ours
        config = config.replace(ours, changed)
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    (folder / "rules.yml").write_bytes((MONITORING / "rules.yml").read_bytes())
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command, cwd=folder)
    try:
        wait_until(lambda: answers(f"{base}/-/ready"), process)
        wait_until(lambda: is_up(base), process)
        yield base
    finally:
        end(process)


def ask(base: str, path: str, **parameters: object) -> dict:
    """`data` of an answer of Prometheus' API; a query that it does not understand is an AssertionError."""
    response = httpx.get(f"{base}/api/v1/{path}", params={key: str(value) for key, value in parameters.items()})
    answer = response.json()
    assert answer["status"] == "success", answer
    return answer["data"]


def query_range(base: str, expression: str, start: float, end: float, step_s: float) -> list[Series]:
    """Every series of an expression that has a finite sample."""
    found = ask(base, "query_range", query=expression, start=start, end=end, step=step_s)["result"]
    series = [(entry["metric"], [(float(at), float(value)) for at, value in entry["values"]]) for entry in found]
    finite = [(labels, [(at, value) for at, value in samples if math.isfinite(value)]) for labels, samples in series]
    return [(labels, samples) for labels, samples in finite if samples]


def is_up(base: str) -> bool:
    """Whether the newest scrape of the server worked."""
    return any(entry["value"][1] == "1" for entry in ask(base, "query", query='up{job="maskserve"}')["result"])


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """
    Raises:
        RuntimeError: it took too long, or the process it depends on ended.
    """
    until = time.monotonic() + PATIENCE_S
    while not condition():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > until:
            raise RuntimeError(f"nothing came of it in {PATIENCE_S:g} s")
        time.sleep(0.1)


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
