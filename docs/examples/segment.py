"""Segment a picture, or every picture in a folder, with a maskserve server.

    python segment.py cells/ --out results.json --overlays looks/

writes results.json, a list of COCO results, one per instance: {"image_id": 1, "category_id": 1, "score": 0.98, ...};
results.images.json, which tells the file of each image_id, made so that pycocotools reads the two together:
    COCO("results.images.json").loadRes("results.json")
and every picture with its masks painted over it, as looks/<file name>.png (needs Pillow and numpy).

A folder is searched to the bottom for jpg, png, webp, bmp, tif and gif; ids count its pictures from 1 in the order of
their names. A picture that fails gets one line on stderr, is in no output, and does not stop the others. The key for a
server that wants one is read from the environment: MASKSERVE_API_KEY.

Exit code: 0 every picture was answered, 1 some were not, 2 nothing could be asked, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import colorsys
import contextlib
import http.client
import importlib.util
import json
import os
import queue
import random
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
MAX_WAIT_S = 60.0  # a server that asks for a longer pause is not waited for


class Picture(NamedTuple):
    id: int
    path: Path
    name: str  # as the outputs call it: the path below the folder


class Failed(Exception):
    """A picture went without an answer. The text says why; `retry_after_s` is None when asking again is no use."""

    def __init__(self, why: str, retry_after_s: float | None = None):
        super().__init__(" ".join(why.split()))  # one line, whatever came
        self.came_at_s = time.monotonic()
        self.retry_after_s = retry_after_s


Answer = dict[str, Any]  # {"image": {"width", "height"}, "instances": [...], "truncated", ...}
Jobs = queue.SimpleQueue[Picture]
Outcomes = queue.SimpleQueue[tuple[Picture, Answer | Failed] | None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="PICTURE_OR_FOLDER")
    add("--url", default="http://127.0.0.1:8000", help="where the server is (default: %(default)s)")
    add("--model", metavar="NAME", help="which model; not needed when the server has one, or a default")
    add("--score-threshold", metavar="T", help="0 to 1: the lowest score to answer (default: the model's)")
    add("--max-instances", metavar="N", help="at most so many per picture, best first (default: all)")
    add("--classes", metavar="A,B", help="only these, by name or id (default: all)")
    add("--out", type=Path, metavar="FILE", help="write COCO results here, e.g. results.json")
    add("--overlays", type=Path, metavar="DIR", help="write painted pictures here")
    add("--parallel", type=int, default=4, metavar="N", help="requests at a time (default: %(default)s)")
    add("--retries", type=int, default=5, metavar="N", help="more tries when the server is busy (default: %(default)s)")
    add("--timeout-s", type=float, default=60.0, metavar="S", help="wait so long for an answer (default: %(default)g)")
    args = parser.parse_args()

    if not args.url.startswith(("http://", "https://")):
        parser.error(f"--url is {args.url!r}; something like http://127.0.0.1:8000 is wanted")
    if args.parallel < 1 or args.timeout_s <= 0:
        parser.error("--parallel and --timeout-s must be above 0")
    if args.overlays and not all(importlib.util.find_spec(name) for name in ("numpy", "PIL")):
        parser.error("--overlays needs Pillow and numpy: python -m pip install pillow numpy")
    if args.overlays and args.source.is_dir() and args.overlays.resolve().is_relative_to(args.source.resolve()):
        parser.error("--overlays lies among the pictures, and the next run would take its own for more; choose another")
    if args.out and not os.access(args.out.parent, os.W_OK):
        parser.error(f"--out: there is no folder {args.out.parent} to write to")
    pictures = find_pictures(args.source)
    if not pictures:
        parser.error(f"no pictures in {args.source}" if args.source.exists() else f"{args.source} does not exist")
    stop, turn = threading.Event(), threading.Lock()
    clients = [Client(args, stop, turn) for _ in range(min(args.parallel, len(pictures)))]
    try:
        clients[0].connection.connect()
    except OSError as error:
        parser.error(f"cannot reach {args.url} ({error}); is the server running there?")
    return segment_all(pictures, clients, stop, args.out, args.overlays)


def segment_all(
    pictures: list[Picture], clients: list[Client], stop: threading.Event, out: Path | None, overlays: Path | None
) -> int:
    """Asks, reports and writes; returns the exit code."""
    jobs, outcomes = Jobs(), Outcomes()
    for picture in pictures:
        jobs.put(picture)

    def on_ctrl_c(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next one ends the process at once
        stop.set()
        outcomes.put(None)

    signal.signal(signal.SIGINT, on_ctrl_c)
    report = Report(len(pictures), bar=sys.stderr.isatty() and bool(out or overlays))
    threads = [threading.Thread(target=work, args=(c, jobs, outcomes, overlays), daemon=True) for c in clients]
    for thread in threads:
        thread.start()
    while report.done < len(pictures) and (outcome := outcomes.get()):
        report.add(*outcome)
    stop.set()
    for client in clients:
        client.hang_up()
    for thread in threads:
        thread.join(timeout=5)
    while not outcomes.empty():  # what came in while Ctrl-C was handled
        if outcome := outcomes.get():
            report.add(*outcome)

    interrupted = report.done < len(pictures)
    print("stopped: " * interrupted + report.summary())
    if out:
        print(f"wrote {out} and {write_coco(out, report.answers)}")
    if overlays:
        print(f"wrote {len(report.answers)} overlays to {overlays}")
    return 130 if interrupted else int(report.failures > 0)


def find_pictures(source: Path) -> list[Picture]:
    """`source` itself, or the pictures below it."""
    if source.is_file():
        return [Picture(1, source, source.name)]
    paths = sorted(path for path in source.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [Picture(i, path, path.relative_to(source).as_posix()) for i, path in enumerate(paths, start=1)]


class Client:
    """One connection, kept alive from picture to picture. Each thread has its own."""

    def __init__(self, args: argparse.Namespace, stop: threading.Event, turn: threading.Lock):
        url = urlsplit(args.url)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self.connection = kind(url.hostname or "", url.port, timeout=args.timeout_s)
        # With `timeout_ms` the server, too, gives up on what nobody waits for any more.
        query = {"timeout_ms": 1000 * args.timeout_s}
        query |= {name: getattr(args, name) for name in ("score_threshold", "max_instances", "classes")}
        model = f"/models/{quote(args.model, safe='')}" if args.model else ""
        self.target = f"{url.path.rstrip('/')}/v1{model}/segment?"
        self.target += urlencode({name: value for name, value in query.items() if value is not None})
        self.headers = {"Content-Type": "application/octet-stream"}
        if key := os.environ.get("MASKSERVE_API_KEY"):
            self.headers["Authorization"] = f"Bearer {key}"
        self.retries: int = args.retries
        self.stop, self.turn = stop, turn  # all clients share these

    def segment(self, payload: bytes) -> Answer:
        """The answer for one picture, with patience for a busy server."""
        with self.turn:  # held by a picture that is asking again: then nothing new begins
            pass
        try:
            return self._ask(payload)
        except Failed as failed:
            if failed.retry_after_s is None:
                raise
            refusal = failed
        with self.turn:
            for tries in range(1, self.retries + 1):
                # Never earlier than the server says; longer each time; and apart from others who were told the same.
                pause_s = max(refusal.retry_after_s or 0.0, min(0.1 * 2**tries, 10.0)) * random.uniform(1.0, 1.5)
                if self.stop.wait(refusal.came_at_s + pause_s - time.monotonic()):
                    break
                try:
                    return self._ask(payload)
                except Failed as failed:
                    if failed.retry_after_s is None:
                        raise
                    refusal = failed
        raise Failed(f"{refusal}; tries: {self.retries + 1}")

    def _ask(self, payload: bytes) -> Answer:
        request_id = uuid.uuid4().hex  # the server's log has it too
        try:
            with contextlib.suppress(BrokenPipeError):  # refused before all was sent; the answer below tells why
                self.connection.request("POST", self.target, payload, self.headers | {"X-Request-Id": request_id})
            response = self.connection.getresponse()
            body = response.read()
        except TimeoutError:
            self.connection.close()
            raise Failed(f"no answer within {self.connection.timeout:g} s (request {request_id})") from None
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()  # the next request opens a new one
            raise Failed(f"connection lost: {error!r} (request {request_id})", retry_after_s=0.0) from None
        content = json.loads(body) if response.headers.get_content_type().endswith("json") else {}
        if response.status == 200:
            if "instances" in content:
                return dict(content)
            raise Failed("the answer has no instances: a panoptic model, or not a maskserver")
        # Errors are problem+json (RFC 9457), unless a proxy in between has sent them.
        named = f"{response.status} {content.get('code', '')}".strip()
        why = f"{content.get('detail', response.reason)} ({named}, request {content.get('request_id', request_id)})"
        if response.status not in (429, 503):
            raise Failed(why)
        seconds = response.headers.get("Retry-After", "")  # may also be a date; then our own pace has to do
        told_ms = content.get("retry_after_ms", 1000 * int(seconds) if seconds.isdecimal() else 0)
        raise Failed(why, retry_after_s=told_ms / 1000 if told_ms <= 1000 * MAX_WAIT_S else None)

    def hang_up(self) -> None:
        """Wakes the thread that waits for an answer; for other threads to call."""
        if sock := self.connection.sock:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def work(client: Client, jobs: Jobs, outcomes: Outcomes, overlays: Path | None) -> None:
    """One thread: pictures in, outcomes out, until there are no more."""
    outcome: Answer | Failed
    with contextlib.suppress(queue.Empty):
        while not client.stop.is_set():
            picture = jobs.get_nowait()
            try:
                outcome = client.segment(picture.path.read_bytes())
                if overlays:
                    paint(picture.path, outcome, overlays / f"{picture.name}.png")
            except Failed as failed:
                outcome = failed
            except Exception as error:  # a file that cannot be read, say: it ends this picture and no other
                outcome = Failed(f"{type(error).__name__}: {error}")
            if isinstance(outcome, dict) or not client.stop.is_set():
                outcomes.put((picture, outcome))
    client.connection.close()


class Report:
    """What has come so far, as a bar or lines on stderr."""

    def __init__(self, total: int, bar: bool):
        self.answers: list[tuple[Picture, Answer]] = []
        self.failures = 0
        self.total, self.bar, self.began = total, bar, time.monotonic()

    @property
    def done(self) -> int:
        return len(self.answers) + self.failures

    def add(self, picture: Picture, outcome: Answer | Failed) -> None:
        if isinstance(outcome, Failed):
            self.failures += 1
            line = f"FAILED {picture.name}: {outcome}"
        else:
            self.answers.append((picture, outcome))
            cut = ", more were cut" if outcome.get("truncated") else ""
            line = f"{picture.name}: {len(outcome['instances'])} instances{cut}"
        if not self.bar:
            print(f"{self.done}/{self.total} {line}", file=sys.stderr, flush=True)
            return
        above = f"{line}\n" if isinstance(outcome, Failed) else ""
        done, speed = self.done / self.total, self.done / (time.monotonic() - self.began + 1e-9)
        bar = f"[{'#' * int(30 * done):30}] {self.done}/{self.total}  {(self.total - self.done) / speed:.0f} s left"
        print(f"\r\x1b[K{above}{bar}", end="" if done < 1 else "\n", file=sys.stderr, flush=True)

    def summary(self) -> str:
        seconds = time.monotonic() - self.began
        instances = sum(len(answer["instances"]) for _, answer in self.answers)
        return (
            f"{len(self.answers)} of {self.total} pictures answered, {instances} instances, {seconds:.1f} s, "
            f"{len(self.answers) / (seconds + 1e-9):.1f} pictures/s, {self.failures} failed"
        )


def write_coco(out: Path, answers: list[tuple[Picture, Answer]]) -> Path:
    """Writes the results, and beside them the images they belong to; returns the path of the latter."""
    answers = sorted(answers, key=lambda pair: pair[0].id)
    results = [{"image_id": picture.id} | instance for picture, answer in answers for instance in answer["instances"]]
    names = {result["category_id"]: result["category"] for result in results}
    dataset = {
        "images": [{"id": picture.id, "file_name": picture.name} | answer["image"] for picture, answer in answers],
        "categories": [{"id": number, "name": name} for number, name in sorted(names.items())],
        "annotations": [],
    }
    out.write_text("[" + ",\n".join(map(json.dumps, results)) + "]\n")
    images = out.with_suffix(".images.json")
    images.write_text(json.dumps(dataset, indent=1) + "\n")
    return images


def paint(path: Path, answer: Answer, out: Path) -> None:
    """Writes the picture with every mask in a colour of its own, the best on top."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)  # the server's pixels are upright ones
    if upright.mode.startswith("I"):  # 16-bit grey: the upper byte, as the server reads it
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    pixels = np.array(upright.convert("RGB"))  # (H, W, 3)
    if pixels.shape[:2] != (answer["image"]["height"], answer["image"]["width"]):
        raise Failed(f"answered for {answer['image']}, but Pillow reads {upright.width} x {upright.height}")
    columns = pixels.transpose(1, 0, 2).copy().reshape(-1, 3)  # (W*H, 3): COCO counts down the columns
    for index, instance in reversed(list(enumerate(answer["instances"]))):
        colour = np.array(colorsys.hsv_to_rgb(index * 0.618 % 1, 0.9, 1.0))  # steps of the golden ratio look apart
        at = 0
        for position, length in enumerate(counts_to_runs(instance["segmentation"]["counts"])):
            if position % 2:  # runs outside the mask and inside it take turns
                columns[at : at + length] = columns[at : at + length] // 2 + (127 * colour).astype(np.uint8)
            at += length
    painted = columns.reshape(upright.width, upright.height, 3).transpose(1, 0, 2)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(painted)).save(out)


def counts_to_runs(counts: str) -> list[int]:
    """COCO's compressed run lengths as numbers (pycocotools' `mask.decode` goes all the way to a mask).

    Each character carries 5 bits, low ones first, and a 6th that says whether more follow; the sign is in the last.
    From the fourth number on, what is written is the difference to the number two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


if __name__ == "__main__":
    sys.exit(main())
