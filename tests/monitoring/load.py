"""A load that makes every metric move: good requests in all forms, mistakes, refusals, and clients that hang up.

Each function is one kind of caller and does its thing once; `run` lets some of them call again and again for a while.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
from PIL import Image

Caller = Callable[[int, bytes], None]

FORMS = ("masks=rle", "masks=polygons", "masks=png", "masks=none", "max_instances=3")


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG")
    return file.getvalue()


def post(port: int, payload: bytes, query: str = "", path: str = "/v1/segment", accept: str = "*/*") -> int:
    """The status of an answer."""
    url = f"http://127.0.0.1:{port}{path}?{query}"
    return httpx.post(url, content=payload, headers={"accept": accept}, timeout=30).status_code


def forms(port: int, picture: bytes) -> None:
    """The same picture in every form of an answer."""
    for form in FORMS:
        post(port, picture, form)
    post(port, picture, accept="image/png")


def album(port: int, picture: bytes) -> None:
    """Two pictures in one request."""
    files = [("image", ("a.png", picture)), ("image", ("b.png", picture))]
    httpx.post(f"http://127.0.0.1:{port}/v1/segment", files=files, timeout=30)


def mistakes(port: int, picture: bytes) -> None:
    """400, 400, 404, 422, and 504 for a deadline nobody can meet."""
    post(port, b"no picture")
    post(port, picture[: len(picture) // 2])
    post(port, picture, path="/v1/models/nobody/segment")
    post(port, picture, "masks=water")
    post(port, picture, "timeout_ms=1")


def hang_up(port: int, picture: bytes) -> None:
    """Two clients that leave: one in the middle of its body, one while its picture is worked on."""
    head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(head + picture[:100])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(head + picture)
        time.sleep(0.02)


def crowd(port: int, picture: bytes, people: int = 12) -> None:
    """Many at once; a server with a small --queue-limit refuses some."""
    with ThreadPoolExecutor(people) as pool:
        list(pool.map(lambda _: post(port, picture), range(people)))


@contextlib.contextmanager
def held(port: int, places: int) -> Iterator[None]:
    """So many requests inside whose bodies do not end: with --queue-limit `places`, everybody else gets a 503."""
    with contextlib.ExitStack() as stack:
        for _ in range(places):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            sock.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        yield


def run(port: int, pictures: list[bytes], callers: Sequence[tuple[Caller, float]], seconds: float) -> None:
    """Let callers call in turn for some seconds, each with a pause between its calls.

    Raises:
        Exception: the first error of a caller; a refusal is none.
    """
    until = time.monotonic() + seconds
    stop = threading.Event()

    def work(caller: Caller, pause_s: float, start: int) -> None:
        turn = start
        while time.monotonic() < until and not stop.is_set():
            caller(port, pictures[turn % len(pictures)])
            turn += 1
            stop.wait(pause_s)

    with ThreadPoolExecutor(len(callers)) as pool:
        tasks = [pool.submit(work, caller, pause, start) for start, (caller, pause) in enumerate(callers)]
        try:
            for task in tasks:
                task.result()
        finally:
            stop.set()
