"""Is an answer right?

Before the load each picture is sent alone, and that answer is taken apart: JSON, every mask, every area. During the
load the latency is taken first, and then

    --check sample   every answer's instances are counted, some answers are taken apart after the run (the default)
    --check all      every answer is taken apart at once; one that equals a good answer needs no second look
    --check none     the status is enough, which suits any server

A mask is COCO's compressed run lengths: how many pixels lie outside, inside, outside ... down the columns, from the top
left. "04" says: none outside, then four inside; in a picture of 2 x 2 that is all of it, and its area is 4.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from loadtest.errors import CannotRun

Check = Literal["all", "sample", "none"]
INSTANCE = b'"category_id":'  # each instance has one; inside a JSON string its quotes would be escaped
SAMPLES = 200  # answers kept for a look after the run,
SAMPLE_BYTES = 64_000_000  # unless they are this large


class WrongAnswer(Exception):
    """The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Content:
    """What an answer holds: its instances, and what the server says of itself."""

    count: int
    model: str
    timing_ms: dict[str, float]
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kind` is 'ok', a problem's `code`, `http_<status>`, wrong_count or bad_answer; `why` is empty when ok."""

    kind: str
    why: str = ""
    retry_after_s: float = 0.0  # how long a refused client was asked to wait


OK = Verdict("ok")


class _Failed(Exception):
    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.why)
        self.verdict = verdict


class Exam:
    """Knows the right answers, and holds others against them."""

    def __init__(self, check: Check, random: np.random.Generator) -> None:
        self.check = check
        self._random = random
        self._expected: dict[int, int] = {}  # picture -> instances
        self._marks: dict[int, int] = {}  # picture -> how often INSTANCE stands in its answer
        self._good: dict[int, list[bytes]] = defaultdict(list)  # picture -> beginnings of answers that were taken apart
        self._kept: list[tuple[int, int, bytes]] = []  # request, picture, answer
        self._kept_bytes = self._seen = 0

    def learn(self, picture: int, body: bytes) -> Content | None:
        """Takes the answer to a picture sent alone as the right one.

        Raises:
            CannotRun: it is no answer to learn from.
        """
        if self.check == "none":
            return None
        try:
            content = take_apart(body)
        except WrongAnswer as wrong:
            raise CannotRun(f"the answer to a single request is wrong: {wrong}. --check none measures anyway") from None
        self._expected[picture] = content.count
        self._marks[picture] = body.count(INSTANCE)
        return content

    def judge(self, request: int, picture: int, status: int, body: bytes) -> Verdict:
        """Called for every answer once its latency is taken; costs some microseconds, except with --check all."""
        if status != 200:
            return _refusal(status, body)
        if self.check == "none":
            return OK
        verdict = OK
        if self.check == "all" or body.count(INSTANCE) != self._marks[picture]:
            verdict = self._look_closely(picture, body)
        if verdict is OK:
            self._keep(request, picture, body)
        return verdict

    def review(self) -> tuple[dict[int, Verdict], dict[int, Content]]:
        """After the run, the kept answers by request: why some are wrong, and what the others hold."""
        wrong: dict[int, Verdict] = {}
        right: dict[int, Content] = {}
        for request, picture, body in self._kept:
            try:
                right[request] = self._examine(picture, body)
            except _Failed as failed:
                wrong[request] = failed.verdict
        self._kept.clear()
        self._kept_bytes = self._seen = 0
        return wrong, right

    def _look_closely(self, picture: int, body: bytes) -> Verdict:
        good = self._good[picture]
        if any(body.startswith(beginning) for beginning in good):
            return OK
        try:
            self._examine(picture, body)
        except _Failed as failed:
            return failed.verdict
        # All but the times at the end, which differ. Batches may round differently, so a picture has a few of these.
        if (end := body.rfind(b'"timing_ms"')) > 0 and len(good) < 8:
            good.append(body[:end])
        return OK

    def _examine(self, picture: int, body: bytes) -> Content:
        try:
            content = take_apart(body)
        except WrongAnswer as wrong:
            raise _Failed(Verdict("bad_answer", str(wrong))) from None
        if content.count != self._expected[picture]:
            why = f"{content.count} instances; alone it had {self._expected[picture]}"
            raise _Failed(Verdict("wrong_count", why))
        return content

    def _keep(self, request: int, picture: int, body: bytes) -> None:
        """A fair sample of bounded size (reservoir sampling, Vitter's algorithm R)."""
        self._seen += 1
        if len(self._kept) < SAMPLES and self._kept_bytes + len(body) <= SAMPLE_BYTES:
            self._kept.append((request, picture, body))
            self._kept_bytes += len(body)
        elif (place := int(self._random.random() * self._seen)) < len(self._kept):
            self._kept_bytes += len(body) - len(self._kept[place][2])
            self._kept[place] = (request, picture, body)


def take_apart(body: bytes) -> Content:
    """
    Raises:
        WrongAnswer: not JSON, not an answer of a maskserver, or a mask that does not fit its picture or its area.
    """
    try:
        answer: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise WrongAnswer(f"not JSON: {error}") from None
    if not isinstance(answer, dict):
        raise WrongAnswer("not a JSON object")
    instances = answer.get("instances", answer.get("segments_info"))
    if not isinstance(instances, list):
        raise WrongAnswer("it has neither 'instances' nor 'segments_info'")
    try:
        if "instances" in answer:
            size = (answer["image"]["height"], answer["image"]["width"])
            for number, instance in enumerate(instances):
                _check_mask(number, instance, size)
        return Content(
            count=len(instances),
            model=f"{answer.get('model', '?')}/{answer.get('version', '?')}",
            timing_ms={str(name): float(ms) for name, ms in answer.get("timing_ms", {}).items()},
            batch_size=answer.get("batch_size"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise WrongAnswer(f"its form is unknown: {error!r}") from None


def counts_to_runs(counts: str) -> npt.NDArray[np.int64]:
    """COCO's compressed run lengths as numbers.

    A character carries five bits, low ones first, and a sixth that says whether more follow; the highest bit of the
    last one is the sign. From the fourth number on, what is written is the difference to the number two before: sums
    over every other number undo it.

    Raises:
        ValueError: the text is none.
    """
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    last = codes & 0x20 == 0
    if codes.min() < 0 or codes.max() > 0x3F or not last[-1]:
        raise ValueError("the run lengths end within a number, or hold a foreign character")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run length is beyond all pictures")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 0x1F) << 5 * places, starts)
    runs -= np.where(codes[ends] & 0x10, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check_mask(number: int, instance: dict[str, Any], size: tuple[int, int]) -> None:
    mask = instance.get("segmentation")
    if not isinstance(mask, dict):
        return  # polygons, or no masks were asked for
    if tuple(mask["size"]) != size:
        raise WrongAnswer(f"mask {number} has size {mask['size']} in a picture of {size[0]} x {size[1]}")
    counts = mask["counts"]
    try:
        runs = counts_to_runs(counts) if isinstance(counts, str) else np.array(counts, np.int64)
    except ValueError as error:
        raise WrongAnswer(f"mask {number}: {error}") from None
    if runs.min(initial=0) < 0 or runs.sum() != size[0] * size[1]:
        raise WrongAnswer(f"mask {number}: its runs sum to {runs.sum()} of {size[0] * size[1]} pixels")
    if runs[1::2].sum() != instance["area"]:
        raise WrongAnswer(f"mask {number} covers {runs[1::2].sum()} pixels; its area says {instance['area']}")


def _refusal(status: int, body: bytes) -> Verdict:
    """What a problem+json says (RFC 9457); anything else is named by its status."""
    try:
        problem = orjson.loads(body)
        code, detail = problem["code"], problem.get("detail", "")
        retry_after_s = float(problem.get("retry_after_ms", 0)) / 1000
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Verdict(f"http_{status}", body[:200].decode("utf-8", "replace"))
    fit = isinstance(code, str) and code.isidentifier() and len(code) <= 40
    return Verdict(code if fit else f"http_{status}", str(detail)[:300], retry_after_s)


@dataclass(slots=True)
class Alone:
    """The solo runs: what each picture costs when nothing else happens."""

    seconds: list[float] = field(default_factory=list)
    instances: list[int | None] = field(default_factory=list)
    model: str = ""
