"""docs/examples/segment.py, run as a person runs it: against the real server, and one that misbehaves on demand."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from docs.examples.segment import counts_to_runs
from tests.conftest import ROOT
from training.nuclei.server_process import serve

SCRIPT = ROOT / "docs" / "examples" / "segment.py"


def command(*arguments: object, python: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *python, str(SCRIPT), *map(str, arguments)]


def segment(*arguments: object, python: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, python=python),
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def draw(path: Path, width: int = 96, height: int = 64, exif_orientation: int | None = None) -> Path:
    """A noisy picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.effect_noise((width, height), 60).convert("RGB")
    exif = Image.Exif()
    if exif_orientation:
        exif[0x0112] = exif_orientation
    picture.save(path, exif=exif)
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# --- the real server


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose model, untrained as it is, sees objects in any picture: its threshold is lowered."""
    bundles = tmp_path_factory.mktemp("bundles")
    copy = shutil.copytree(tiny_bundle, bundles / "tiny" / "1")
    manifest = read(copy / "manifest.json")
    manifest["masks"] |= {"threshold": 0.3, "min_votes": 1.0}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with serve(bundles, "--max-body-mb", "1", "--threads", "1") as port:
        yield f"http://127.0.0.1:{port}"


def test_one_picture_becomes_coco_results_that_pycocotools_reads(url: str, tmp_path: Path) -> None:
    picture = draw(tmp_path / "cell.png")
    done = segment(picture, "--url", url, "--score-threshold", 0, "--out", tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / "results.json")
    assert len(results) > 1
    assert {result["image_id"] for result in results} == {1}
    assert read(tmp_path / "results.images.json")["images"] == [
        {"id": 1, "file_name": "cell.png", "width": 96, "height": 64}
    ]

    loaded = COCO(str(tmp_path / "results.images.json")).loadRes(str(tmp_path / "results.json"))
    assert len(loaded.anns) == len(results)
    for annotation, result in zip(loaded.dataset["annotations"], results, strict=True):
        assert loaded.annToMask(annotation).shape == (64, 96)
        assert loaded.annToMask(annotation).sum() == result["area"]
    assert re.search(
        rf"^1 of 1 pictures answered, {len(results)} instances, .* pictures/s, 0 failed$", done.stdout, re.M
    )


def test_a_bad_file_fails_alone_and_the_exit_code_tells(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    draw(folder / "a.png")
    (folder / "b.png").write_bytes(b"this is no picture")
    draw(folder / "deep" / "c.jpg")
    (folder / "notes.txt").write_text("not for segmentation")
    done = segment(folder, "--url", url, "--out", tmp_path / "results.json")
    assert done.returncode == 1
    failures = [line for line in done.stderr.splitlines() if "FAILED" in line]
    assert len(failures) == 1
    assert re.search(
        r"FAILED b\.png: content is not a known kind .*\(400 bad_image, request [0-9a-f]{32}\)$", failures[0]
    )
    images = read(tmp_path / "results.images.json")["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [(1, "a.png"), (3, "deep/c.jpg")]
    assert done.stdout.startswith("2 of 3 pictures answered")


def test_overlays_are_upright_like_the_masks(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    draw(folder / "lying.jpg", width=96, height=64, exif_orientation=6)
    Image.fromarray(np.full((40, 50), 30_000, np.uint16)).save(folder / "deep.png")
    out = tmp_path / "results.json"
    done = segment(folder, "--url", url, "--overlays", tmp_path / "looks", "--out", out)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "looks" / "lying.jpg.png") as painted:
        assert painted.size == (64, 96)
    with Image.open(tmp_path / "looks" / "deep.png.png") as painted:
        assert painted.size == (50, 40)
        assert painted.getpixel((0, 0)) != (255, 255, 255)  # 16 bits are not clipped to white
    assert [(image["width"], image["height"]) for image in read(tmp_path / "results.images.json")["images"]] == [
        (50, 40),
        (64, 96),
    ]
    assert f"wrote 2 overlays to {tmp_path / 'looks'}" in done.stdout


def test_a_refusal_in_the_middle_of_the_upload_is_told_as_the_server_tells_it(url: str, tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(bytes(30_000_000))
    done = segment(tmp_path / "huge.png", "--url", url, "--retries", 0)
    assert done.returncode == 1
    assert "the body is 30.0 MB; the limit is 1 MB" in done.stderr
    assert "413 body_too_large" in done.stderr


def test_a_parameter_the_server_refuses_is_explained(url: str, tmp_path: Path) -> None:
    done = segment(draw(tmp_path / "a.png"), "--url", url, "--score-threshold", 7)
    assert done.returncode == 1
    assert "'score_threshold' is '7'" in done.stderr
    assert "(422 bad_parameter, request " in done.stderr


def test_a_model_is_chosen_by_name(url: str, tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png")
    assert segment(picture, "--url", url, "--model", "tiny").returncode == 0
    done = segment(picture, "--url", url, "--model", "giant")
    assert done.returncode == 1
    assert "404 unknown_model" in done.stderr


# --- a server that does what the test says


class Seen(NamedTuple):
    """A request as it came."""

    at_s: float
    target: str
    headers: dict[str, str]
    payload: bytes
    connection: tuple[str, int]


class Reply(NamedTuple):
    status: int = 200
    content: dict[str, Any] | None = None
    headers: dict[str, str] = {}  # noqa: RUF012
    after_s: float = 0.0  # a long one hangs, until the server is closed
    hang_up: bool = False


Behaviour = Callable[[Seen, int], Reply]


def answer(*instances: dict[str, Any], width: int = 96, height: int = 64) -> Reply:
    return Reply(content={"image": {"width": width, "height": height}, "instances": instances, "truncated": False})


def refusal(status: int = 503, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    content = {"detail": "work waits;\n come back", "code": "overloaded", "request_id": "r-77"} | more
    return Reply(status, content, {"Content-Type": "application/problem+json"} | (headers or {}))


class Fake(NamedTuple):
    url: str
    seen: list[Seen]


@contextmanager
def fake(behave: Behaviour) -> Iterator[Fake]:
    """A server that answers the n-th request (from 0) with `behave(request, n)`."""
    seen: list[Seen] = []
    lock, closing = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            payload = self.rfile.read(int(self.headers["Content-Length"]))
            request = Seen(time.monotonic(), self.path, dict(self.headers), payload, self.client_address)
            with lock:
                number = len(seen)
                seen.append(request)
            reply = behave(request, number)
            if closing.wait(reply.after_s) or reply.hang_up:
                self.close_connection = True
                return
            body = json.dumps(reply.content).encode()
            self.send_response(reply.status)
            for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...  # clients that leave are the point of some tests

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Fake(f"http://127.0.0.1:{server.server_port}", seen)
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def one_after_another(*replies: Reply) -> Behaviour:
    return lambda _, number: replies[number]


def gaps_s(seen: list[Seen]) -> list[float]:
    return [later.at_s - earlier.at_s for earlier, later in pairwise(seen)]


def test_a_busy_server_is_asked_again_and_not_before_it_said(tmp_path: Path) -> None:
    replies = [refusal(retry_after_ms=700, headers={"Retry-After": "1"}), refusal(retry_after_ms=900), answer()]
    with fake(one_after_another(*replies)) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url, "--out", tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    first, second = gaps_s(server.seen)
    assert 0.7 <= first < 1.6
    assert 0.9 <= second < 1.9
    assert len({request.headers["X-Request-Id"] for request in server.seen}) == 3
    assert "FAILED" not in done.stderr


def test_without_retry_after_ms_the_header_counts(tmp_path: Path) -> None:
    replies = [refusal(status=429, headers={"Retry-After": "1"}), answer()]
    with fake(one_after_another(*replies)) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert 1.0 <= gaps_s(server.seen)[0] < 2.0


def test_retries_are_bounded_and_the_last_refusal_is_told_in_one_line(tmp_path: Path) -> None:
    with fake(lambda *_: refusal(retry_after_ms=10)) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url, "--retries", 2)
    assert done.returncode == 1
    assert len(server.seen) == 3
    why = "work waits; come back (503 overloaded, request r-77); tries: 3"
    assert done.stderr == f"1/1 FAILED a.png: {why}\n"


def test_a_client_that_is_too_much_for_the_server_slows_down_until_every_picture_is_answered(tmp_path: Path) -> None:
    for number in range(12):
        draw(tmp_path / "cells" / f"{number}.png")
    idle = threading.Semaphore(1)

    def one_at_a_time(*_: object) -> Reply:
        if not idle.acquire(blocking=False):
            return refusal(retry_after_ms=20)
        try:
            time.sleep(0.2)
            return answer()
        finally:
            idle.release()

    with fake(one_at_a_time) as server:
        done = segment(tmp_path / "cells", "--url", server.url, "--parallel", 6, "--retries", 2)
    assert done.returncode == 0, done.stderr
    assert len(server.seen) > 12


def test_a_pause_of_an_hour_is_not_waited_for(tmp_path: Path) -> None:
    with fake(lambda *_: refusal(retry_after_ms=3_600_000)) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url)
    assert done.returncode == 1
    assert len(server.seen) == 1


def test_an_answer_that_will_not_change_is_not_asked_for_again(tmp_path: Path) -> None:
    with fake(lambda *_: refusal(status=500, code="internal")) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url)
    assert done.returncode == 1
    assert len(server.seen) == 1
    assert "(500 internal, request r-77)" in done.stderr


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(502, None, {"Content-Type": "text/html"}), "Bad Gateway (502, request"),
        (Reply(200, {"segments_info": []}), "no instances"),
        (Reply(200, None, {"Content-Type": "text/html"}), "no instances"),
    ],
)
def test_what_is_no_maskserve_answer_is_told_so(tmp_path: Path, reply: Reply, words: str) -> None:
    with fake(lambda *_: reply) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_lost_connection_is_opened_again(tmp_path: Path) -> None:
    with fake(one_after_another(Reply(hang_up=True), answer())) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert len(server.seen) == 2


def test_a_picture_without_an_answer_in_time_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    for name in ("a", "b", "c"):
        draw(folder / f"{name}.png")
    slow = (folder / "b.png").read_bytes()
    with fake(lambda request, _: answer()._replace(after_s=30.0 if request.payload == slow else 0.0)) as server:
        began = time.monotonic()
        done = segment(folder, "--url", server.url, "--timeout-s", 0.7, "--parallel", 1, "--out", tmp_path / "r.json")
        assert time.monotonic() - began < 10
    assert done.returncode == 1
    assert "FAILED b.png: no answer within 0.7 s (request " in done.stderr
    assert [image["file_name"] for image in read(tmp_path / "r.images.json")["images"]] == ["a.png", "c.png"]
    assert all("timeout_ms=700.0" in request.target for request in server.seen)


def test_answers_in_parallel_keep_their_file_names_on_few_connections(tmp_path: Path) -> None:
    widths = {f"{'sub/' * (width % 2)}{width}.png": width for width in range(40, 64)}
    for name, width in widths.items():
        draw(tmp_path / "cells" / name, width=width)

    def behave(request: Seen, number: int) -> Reply:
        with Image.open(io.BytesIO(request.payload)) as picture:
            width, height = picture.size
        return answer({"category_id": width, "category": str(width)}, width=width, height=height)._replace(
            after_s=0.05 * (number % 3)
        )

    with fake(behave) as server:
        done = segment(tmp_path / "cells", "--url", server.url, "--parallel", 3, "--out", tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    images = read(tmp_path / "results.images.json")["images"]
    assert {image["file_name"]: image["width"] for image in images} == widths
    assert [image["id"] for image in images] == list(range(1, 25))
    names = {image["id"]: image["file_name"] for image in images}
    results = read(tmp_path / "results.json")
    assert {names[result["image_id"]]: result["category_id"] for result in results} == widths
    assert len({request.connection for request in server.seen}) <= 3


def test_what_is_asked_travels_in_the_query_and_the_key_in_its_header(tmp_path: Path) -> None:
    with fake(lambda *_: answer()) as server:
        picture = draw(tmp_path / "a.png")
        asked = ("--score-threshold", 0.25, "--max-instances", 9, "--classes", "cat,big dog", "--model", "my/pets")
        done = segment(picture, "--url", f"{server.url}/behind/a/proxy/", *asked, MASKSERVE_API_KEY="s3cret")
    assert done.returncode == 0, done.stderr
    (request,) = server.seen
    assert request.target == (
        "/behind/a/proxy/v1/models/my%2Fpets/segment"
        "?timeout_ms=60000.0&score_threshold=0.25&max_instances=9&classes=cat%2Cbig+dog"
    )
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert request.payload == picture.read_bytes()


def test_overlays_paint_the_masks_and_nothing_else(tmp_path: Path) -> None:
    masks = np.zeros((2, 64, 96), np.uint8)
    masks[0, 10:30, 5:50] = 1
    masks[1, 20:64, 40:96] = 1
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    instances = [{"category_id": 1, "segmentation": {"counts": one["counts"].decode()}} for one in encoded]
    picture = draw(tmp_path / "a.png")
    with fake(lambda *_: answer(*instances)) as server:
        done = segment(picture, "--url", server.url, "--overlays", tmp_path / "looks")
    assert done.returncode == 0, done.stderr
    before, after = (np.asarray(Image.open(path)) for path in (picture, tmp_path / "looks" / "a.png.png"))
    np.testing.assert_array_equal((before != after).any(axis=-1), masks.any(axis=0))


def test_an_overlay_of_another_size_than_the_answer_is_not_painted(tmp_path: Path) -> None:
    with fake(lambda *_: answer(width=95)) as server:
        done = segment(draw(tmp_path / "a.png"), "--url", server.url, "--overlays", tmp_path / "looks")
    assert done.returncode == 1
    assert "FAILED a.png: answered for" in done.stderr
    assert not (tmp_path / "looks" / "a.png.png").exists()


def test_ctrl_c_stops_soon_and_says_what_was_written(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        draw(tmp_path / "cells" / f"{name}.png")
    arguments = (tmp_path / "cells", "--parallel", 2, "--out", tmp_path / "results.json")
    with fake(lambda _, number: answer()._replace(after_s=0.0 if number < 2 else 50.0)) as server:
        process = subprocess.Popen(
            command(*arguments, "--url", server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 20
        while len(server.seen) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 4
    assert process.returncode == 130
    assert out.startswith("stopped: 2 of 4 pictures answered")
    assert f"wrote {tmp_path / 'results.json'} and {tmp_path / 'results.images.json'}" in out
    assert "Traceback" not in err
    assert "FAILED" not in err
    assert len(read(tmp_path / "results.images.json")["images"]) == 2


def test_a_terminal_gets_a_bar_with_the_failures_above_it(tmp_path: Path) -> None:
    draw(tmp_path / "cells" / "a.png")
    draw(tmp_path / "cells" / "b.png")
    ours, theirs = pty.openpty()
    try:
        with fake(one_after_another(refusal(status=500), answer())) as server:
            arguments = (tmp_path / "cells", "--url", server.url, "--out", tmp_path / "results.json", "--parallel", 1)
            done = subprocess.run(
                command(*arguments), stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60, check=False
            )
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    assert re.search(r"\r\x1b\[KFAILED a\.png: work waits; .*\r\n\[#{15} {15}\] 1/2  \d+ s left\r", shown)
    assert re.search(r"\[#{30}\] 2/2  0 s left\r\n$", shown)


def test_results_need_nothing_but_python_and_overlays_say_what_they_need(tmp_path: Path) -> None:
    bare = ("-S", "-E")  # without site-packages
    picture = draw(tmp_path / "a.png")
    with fake(lambda *_: answer()) as server:
        to = ("--url", server.url, "--out", tmp_path / "results.json")
        assert segment(picture, *to, python=bare).returncode == 0
        done = segment(picture, *to, "--overlays", tmp_path / "looks", python=bare)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "--overlays needs Pillow and numpy: python -m pip install pillow numpy"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "--url", "http://127.0.0.1:9"], "cannot reach http://127.0.0.1:9 ("),
        (["a.png", "--url", "localhost:8000"], "--url is 'localhost:8000'"),
        (["a.png", "--parallel", "0"], "must be above 0"),
        (["a.png", "--out", "nowhere/results.json"], "there is no folder nowhere"),
        (["b.png"], "b.png does not exist"),
        (["empty"], "no pictures in empty"),
        ([".", "--overlays", "looks"], "--overlays lies among the pictures"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    done = segment(*arguments)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]


def test_help_teaches_with_an_example() -> None:
    done = segment("--help")
    assert done.returncode == 0
    assert "python segment.py cells/ --out results.json --overlays looks/" in done.stdout
    assert 'COCO("results.images.json").loadRes("results.json")' in done.stdout


# --- run lengths


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
def test_run_lengths_are_read_as_pycocotools_reads_them(mask: np.ndarray) -> None:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    runs = counts_to_runs(encoded["counts"].decode())
    values = np.arange(len(runs)) % 2
    np.testing.assert_array_equal(np.repeat(values, runs).reshape(mask.shape, order="F"), mask)
