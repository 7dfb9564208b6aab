"""A server of several processes for as long as a block lasts, and clients that note what became of every request."""

from __future__ import annotations

import http.client
import io
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import ROOT

PROGRAM = """
import json, sys
from server.logs import logging_to_stderr
from server.settings import Settings
from server.watchdog import leave
from tests.server.processes.behaving import load
settings, fronts = Settings.model_validate(json.loads(sys.argv[1])), int(sys.argv[2])
if fronts:
    from server.processes.supervisor import supervise
    code = supervise(settings, fronts, settings.engines == "shared", "tests.server.processes.behaving:load")
else:
    from server.http.app import create_app
    from server.http.serving import run_server
    with logging_to_stderr("json", "info"):
        code = run_server(create_app(settings, load), settings)
leave(code)
"""


def png(width: int = 60, height: int = 40, grey: int = 128, noise: bool = False) -> bytes:
    """One grey, or only its first pixel is."""
    image = Image.new("RGB", (width, height), (grey, grey, grey))
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        pixels[0, 0] = grey
        image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def wait_until(condition: Callable[[], bool], patience_s: float = 30.0, what: str = "") -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, f"waited in vain {what}"
        time.sleep(0.02)


class Running:
    """A server and its port. `fronts=0`: all in one process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def ask(
        self, body: bytes = b"", method: str = "POST", path: str = "/v1/segment", **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON (or text); a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            is_json = "json" in answer.headers.get("content-type", "")
            return answer.status, json.loads(content) if is_json else content.decode()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask(method="GET", path=path)

    def is_ready(self) -> bool:
        with suppress(OSError):
            return self.get("/readyz")[0] == 200
        return False

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the series of one metric that carry these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if re.match(rf"{name}[{{ ]", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def children(self) -> dict[str, int]:
        """Names and process ids of the children, in no particular order of the fronts."""
        found: dict[str, int] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    if parent == self.process.pid and len(words) > 2:
                        kind = words[2].decode().rsplit(".", 1)[-1]
                        number = sum(name.startswith(kind) for name in found)
                        found[kind if kind == "engine" else f"{kind} {number}"] = int(folder.name)
        return found

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().split("\n")[:-1]]

    def told(self) -> str:
        return "\n".join(str(line.get("message", "")) for line in self.lines())


@contextmanager
def running(bundles: Path, folder: Path, fronts: int, *, ready: bool = True, **settings: Any) -> Iterator[Running]:
    """
    Args:
        folder: for the log.
        ready: wait until it is.
        settings: among them `engines`; shared unless told.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {
        "bundles": str(bundles),
        "port": port,
        "log_format": "json",
        "log_sample": 1,
        "drain_s": 10,
        "engines": "shared",
    } | settings
    log = folder / f"log-{fronts}-{port}"
    with log.open("wb") as stderr:
        command = [sys.executable, "-c", PROGRAM, json.dumps(told), str(fronts)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
    server = Running(process, port, log)
    children: dict[str, int] = {}
    try:
        if ready:
            wait_until(lambda: server.told().count("Application startup complete") == max(1, fronts), what="for all")
            wait_until(server.is_ready, what="for ready")
            engines = fronts if told["engines"] == "each" else 1
            wait_until(lambda: server.told().count("is ready on") >= engines, what="for all engines")
        yield server
    finally:
        children = server.children()
        if process.poll() is None:
            process.kill()
        process.wait()
        for pid in children.values():  # the system ends them; a test says so, this only tidies up
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Load:
    """Clients, each on its own connection, that ask again and again until they are told to stop."""

    def __init__(self, server: Running, clients: int, body: bytes, **headers: str) -> None:
        self._server = server
        self._body = body
        self._headers = headers
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.counts: Counter[int | str] = Counter()  # by status, or by what was raised
        self.codes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive()

    def count(self, what: int | str) -> int:
        with self._lock:
            return self.counts[what]

    def _ask_on(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            what: int | str = "refused"
            code = ""
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
                    connection.connect()
                what = "broken"
                connection.request("POST", "/v1/segment", self._body, self._headers)
                answer = connection.getresponse()
                content = answer.read()
                what, code = answer.status, json.loads(content).get("code", "")
                stays = answer.headers.get("connection") != "close"
            except (OSError, http.client.HTTPException):
                stays = False
            if connection is not None and not stays:
                connection.close()
                connection = None
            with self._lock:
                self.counts[what] += 1
                if code:
                    self.codes[code] += 1
            if what in ("refused", 503):
                time.sleep(0.01)
        if connection is not None:
            connection.close()
