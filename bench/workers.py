"""`python -m bench.workers`: images a second and memory with 1, 2 and 3 workers, in turns, with two engines.

`nuclei` is the bundled network; `cheap` has its inputs and outputs but answers at once, as a GPU nearly would: what is
left is HTTP, decoding, masks, and the way between the processes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.sample import draw
from server.engines.choice import Wanted
from server.loading import Loaded
from server.manifest import read_bundle

PROGRAM = """
import json, sys
from server.logs import logging_to_stderr
from server.settings import Settings
from server.watchdog import leave
settings, workers, kind = Settings.model_validate(json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
where = {"nuclei": "server.loading:load", "cheap": "bench.workers:load"}[kind]
if workers > 1:
    from server.processes.supervisor import supervise
    code = supervise(settings, workers, settings.engines == "shared", where)
else:
    import importlib
    from server.http.app import create_app
    from server.http.serving import run_server
    load = getattr(importlib.import_module(where.split(":")[0]), "load")
    with logging_to_stderr("json", "error"):
        code = run_server(create_app(settings, load), settings)
leave(code)
"""


class Cheap:
    """Answers every picture with the same nine discs, computed once for each size."""

    name = "cheap"
    slots = 1

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], dict[str, NDArray[Any]]] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        batch, height, width = inputs["images"].shape[:3]
        if (height, width) not in self._known:
            inside = np.zeros((height, width), np.float32)
            offsets = np.zeros((2, height, width), np.float32)
            rows, columns = np.mgrid[:height, :width].astype(np.float32)
            for number in range(9):
                y, x = height * (number // 3 + 0.5) / 3, width * (number % 3 + 0.5) / 3
                disc = (rows - y) ** 2 + (columns - x) ** 2 < (min(height, width) / 10) ** 2
                inside[disc] = 0.9
                offsets[0][disc], offsets[1][disc] = y - rows[disc], x - columns[disc]
            self._known[height, width] = {"inside": inside, "offsets": offsets}
        known = self._known[height, width]
        return {name: np.broadcast_to(tensor, (batch, *tensor.shape)) for name, tensor in known.items()}

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.run(inputs)

    def give_back(self) -> None:
        pass

    def close(self) -> None:
        pass


def load(folder: Path, wanted: Wanted) -> Loaded:
    return Loaded(read_bundle(folder), Cheap(), pace_s=1e-9)


@contextmanager
def serving(bundles: Path, workers: int, kind: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"bundles": str(bundles), "port": port, "log_level": "error", "max_wait_ms": 60000, "queue_limit": 256}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(told), str(workers), kind])
    try:
        until = time.monotonic() + 60
        while b" 200 " not in ask(port, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[:20]:
            if time.monotonic() > until:
                raise RuntimeError("not ready after 60 s")
            time.sleep(0.1)
        time.sleep(1.0)  # until the last front is there too
        yield process, port
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, request: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(request)
            return b"".join(iter(lambda: sock.recv(65536), b""))
    except OSError:
        return b""


def load_it(port: int, request: bytes, clients: int, seconds: float) -> float:
    """Images a second of so many callers that never pause."""
    done = [0] * clients
    end = time.monotonic() + seconds

    def call(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            while time.monotonic() < end:
                sock.sendall(request)
                answer = sock.recv(1 << 20)
                head, _, body = answer.partition(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(head[:100])
                left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
                while left > 0:
                    left -= len(sock.recv(1 << 20))
                done[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - began)


def memory_mb(pid: int) -> float:
    """Proportional memory of a process and its children: what is shared counts once."""
    family = [pid, *(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    total = 0.0
    for member in family:
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024 / 1e6
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--engines", nargs="+", default=["nuclei", "cheap"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    file = io.BytesIO()
    Image.fromarray(draw((512, 512), seed=0)).save(file, "JPEG", quality=90)
    picture = file.getvalue()
    request = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(picture), picture)
    print(
        f"512x512 JPEG, {chosen.clients} callers, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'engine':>8} {'workers':>8} {'images/s':>9} {'of each turn':>24} {'PSS MB':>8}", flush=True)
    for kind in chosen.engines:
        rates: dict[int, list[float]] = {workers: [] for workers in chosen.workers}
        memory: dict[int, float] = {}
        for _ in range(chosen.turns):
            for workers in chosen.workers:
                with serving(chosen.bundles, workers, kind) as (process, port):
                    load_it(port, request, chosen.clients, 1.0)
                    rates[workers].append(load_it(port, request, chosen.clients, chosen.seconds))
                    memory[workers] = memory_mb(process.pid)
        for workers in chosen.workers:
            each = " ".join(f"{rate:.1f}" for rate in rates[workers])
            median = statistics.median(rates[workers])
            print(f"{kind:>8} {workers:>8} {median:>9.1f} {each:>24} {memory[workers]:>8.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
