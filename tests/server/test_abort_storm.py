"""A storm of callers who hang up: what they asked for is hardly ever begun, and every one of them is counted."""

from __future__ import annotations

import asyncio
import io
import random
import re
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from server.http.app import create_app
from server.settings import Settings
from tests.server.fakes import FakeEngine, FakeLoader

CALLERS = 400
PER_SECOND = 150.0  # half again as many as the engine does
SLACK_S = 0.05


class Numbered(FakeEngine):
    """Remembers when it began with which picture: a picture's colour is its number."""

    def __init__(self) -> None:
        super().__init__()
        self.delay_s = 0.01
        self.began: dict[int, float] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        now = time.perf_counter()
        for red, green in inputs["images"][:, 0, 0, :2].astype(int):
            self.began[red + 256 * green] = now
        return super().run(inputs)


def request(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (number % 256, number // 256, 200)).save(file, "PNG")
    body = file.getvalue()
    return b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def call(port: int, number: int, at: float, patience_s: float) -> float | None:
    """When the caller hung up, or None when the answer was quicker."""
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(number))
    try:
        await asyncio.wait_for(reader.readexactly(12), patience_s)
        return None
    except TimeoutError:
        return time.perf_counter()
    finally:
        writer.transport.abort()


async def storm(port: int) -> list[float | None]:
    rng = random.Random(3)
    start = time.perf_counter() + 0.1
    callers = [call(port, n, start + n / PER_SECOND, rng.expovariate(1 / 0.04)) for n in range(CALLERS)]
    return await asyncio.gather(*callers)


async def page_of(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    page = await reader.read()
    writer.close()
    return page.decode()


def total(page: str, name: str) -> float:
    """Of one series, or of all of that name."""
    series = re.escape(name) if "{" in name else rf"{name}(?:\{{.*\}})?"
    return sum(float(value) for value in re.findall(rf"(?m)^{series} (\S+)$", page))


@pytest.mark.slow
def test_work_is_not_begun_for_callers_who_have_gone(tiny_bundle: Path) -> None:
    loader = FakeLoader()
    loader.engine = engine = Numbered()
    told = {"bundles": tiny_bundle.parent.parent, "queue_limit": 1000, "max_wait_ms": 60_000, "max_batch": 1}
    config = uvicorn.Config(create_app(Settings.model_validate(told), loader), log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            port = listening.getsockname()[1]
            while not server.started:
                time.sleep(0.01)
            time.sleep(0.5)  # the fake model is loaded
            gone = asyncio.run(storm(port))
            time.sleep(0.5)
            page = asyncio.run(page_of(port))
        finally:
            server.should_exit = True
            thread.join(20)
    left = {number: at for number, at in enumerate(gone) if at is not None}
    late = [number for number, at in left.items() if engine.began.get(number, 0.0) - at > SLACK_S]
    print(f"{len(left)} of {CALLERS} hung up, {len(engine.began)} were run, {len(late)} begun too late")
    assert len(left) > CALLERS / 4
    assert len(late) <= CALLERS / 100
    assert total(page, "seg_queue_depth") == 0
    assert total(page, "seg_requests_total") == CALLERS
    cancelled = total(page, "seg_cancelled_total")
    assert cancelled == total(page, 'seg_requests_total{model="tiny",status="499",version="1"}')
    assert total(page, 'seg_cancelled_total{model="tiny",stage="queue",version="1"}') > 0.8 * cancelled
    # who hung up while the answer was on its way counts as answered; nobody else does
    assert len(left.keys() - engine.began.keys()) <= cancelled <= len(left)
