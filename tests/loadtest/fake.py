"""A server whose behaviour is known to the microsecond: what a load tester is tested against.

In a process of its own, as the real one is: `with fake(latencies_ms=[20, 80]) as server: ...`.
An event loop wakes up to a millisecond late, so an answer's last 1.5 ms are spent looking at the clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httptools

ROOT = Path(__file__).resolve().parents[2]
SPIN_S = 0.0015
# Two masks in a picture of 2 x 2: all of it, and its left column.
INSTANCES = [
    {"category_id": 1, "category": "cell", "score": 0.9, "area": 4, "segmentation": {"size": [2, 2], "counts": "04"}},
    {"category_id": 1, "category": "cell", "score": 0.8, "area": 2, "segmentation": {"size": [2, 2], "counts": "022"}},
]


def answer(instances: list[dict[str, Any]]) -> bytes:
    content = {
        "model": "fake",
        "version": "1",
        "image": {"width": 2, "height": 2},
        "instances": instances,
        "truncated": False,
        "timing_ms": {"queue": 1.0, "inference": 2.0, "total": 3.0},
        "batch_size": 1,
    }
    return json.dumps(content, separators=(",", ":")).encode()


def problem(status: int, code: str) -> bytes:
    content = {"title": code, "status": status, "detail": f"{code}, says the fake", "code": code, "retry_after_ms": 10}
    return json.dumps(content).encode()


class Behaviour:
    """What the fake does, from keyword arguments; every `_every` is a number n: each n-th request is treated so.

    latencies_ms     taken in turn, one for each request
    service_ms       instead: one request after the other, each takes so long; the others wait
    queue_limit      with service_ms: more waiting requests than this are refused with 503
    pause_s          [at, for]: seconds after the first request during which nothing is answered
    solo, solo_ms    so many first requests are answered right and after so long (0), whatever is said here
    refuse_every, miscount_every, cut_every, garble_every, silent_every, drop_every
    needs            a header line that must be there, else 401
    close_after      a connection is closed after so many answers, without a word
    exit_after_s     the whole fake ends so long after the first request of the load
    idle_close_ms    a connection is closed after so long without a request, without a word
    """

    def __init__(self, **given: Any) -> None:
        self.given = given
        if "FAKE_SERVICE_MS" in os.environ:  # a setting that --tune turns
            given["service_ms"] = float(os.environ["FAKE_SERVICE_MS"])
        self.count = 0
        self.load_began: float | None = None
        self.free_at = 0.0
        self.waiting = 0
        self.took_ms: list[float] = []

    def every(self, name: str) -> bool:
        n: int = self.given.get(f"{name}_every", 0)
        return n > 0 and self.count > self.given.get("solo", 0) and self.count % n == 0

    def ready_at(self, now: float) -> float:
        """When a request that came just now is answered."""
        if self.count <= self.given.get("solo", 0):
            return now + float(self.given.get("solo_ms", 0)) / 1000
        if self.load_began is None:
            self.load_began = now
            if "exit_after_s" in self.given:
                asyncio.get_running_loop().call_later(self.given["exit_after_s"], os._exit, 0)
        if "service_ms" in self.given:
            self.free_at = max(now, self.free_at) + self.given["service_ms"] / 1000
            ready = self.free_at
        else:
            latencies = self.given.get("latencies_ms", [0])
            ready = now + latencies[(self.count - 1) % len(latencies)] / 1000
        if "pause_s" in self.given:
            at, length = self.given["pause_s"]
            begin = self.load_began + at
            if begin <= ready < begin + length:
                ready = begin + length
        return ready


class Fake(asyncio.Protocol):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self.path = b""
        self.headers: list[str] = []
        self.answers = 0
        self.loop = asyncio.get_running_loop()
        self.idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.path, self.headers = b"", []
        if self.idle:
            self.idle.cancel()

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append(f"{name.decode()}: {value.decode()}")

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        does = self.behaviour
        if self.path == b"/took":
            self.write(200, json.dumps(does.took_ms).encode())
            return
        if self.path == b"/readyz":
            self.write(200, b"{}")
            return
        does.count += 1
        if does.given.get("needs", "") not in ("", *self.headers):
            self.write(401, problem(401, "unauthorized"))
        elif does.every("refuse") or does.waiting >= does.given.get("queue_limit", 1 << 30):
            self.write(503, problem(503, "overloaded"))
        elif does.every("drop"):
            self.transport.abort()
        elif not does.every("silent"):
            instances = INSTANCES
            if does.every("miscount"):
                instances = INSTANCES[:1]
            if does.every("cut"):
                mask = {"size": [2, 2], "counts": "03"}
                instances = [INSTANCES[0], INSTANCES[1] | {"segmentation": mask}]
            body = b"{not JSON" if does.every("garble") else answer(instances)
            ready = does.ready_at(now)
            does.waiting += 1
            self.loop.call_later(max(0.0, ready - now - SPIN_S), self.finish, body, now, ready)

    def finish(self, body: bytes, began: float, ready: float) -> None:
        while time.perf_counter() < ready:
            pass
        self.behaviour.waiting -= 1
        self.behaviour.took_ms.append(1000 * (time.perf_counter() - began))
        self.write(200, body)
        self.answers += 1
        if self.answers == self.behaviour.given.get("close_after"):
            self.loop.call_later(0.002, self.transport.close)

    def write(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
        self.transport.write(head.encode() + body)
        if idle_ms := self.behaviour.given.get("idle_close_ms"):
            self.idle = self.loop.call_later(idle_ms / 1000, self.transport.close)


async def serve(port: int, given: dict[str, Any]) -> None:
    behaviour = Behaviour(**given)
    server = await asyncio.get_running_loop().create_server(lambda: Fake(behaviour), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def fake(**given: Any) -> Iterator[str]:
    """The address of a running fake."""
    command = [sys.executable, "-m", "tests.loadtest.fake", "0", json.dumps(given)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), json.loads(sys.argv[2])))
