"""What a recording means. Everything is computed from all requests; nothing is binned or estimated.

A percentile is the smallest latency that at least so many requests stayed within (nearest rank): of 1, 2, 3, 4 ms the
p50 is 2 ms, and p99 is 4 ms. It counts right answers. A promise counts everything: a request that failed has broken it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.load import Run
from loadtest.recording import GOOD, PENDING, Recording

Floats = npt.NDArray[np.float64]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
MAX_SLICES = 300
PER_SLICE = 10  # requests, for a slice's percentiles to mean something


@dataclass(frozen=True, slots=True)
class Failure:
    """One kind of failed request."""

    kind: str
    status: int  # 0 when no answer came
    count: int
    median_ms: float
    p95_ms: float
    why: str


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the run; requests belong to the one in which they were due."""

    start_s: float
    seconds: float
    measured: bool  # False in the warm-up
    due: int
    good: int
    failed: int
    finished_per_s: float  # right answers that came in this slice, whenever they were due
    outstanding: int  # due and not answered, at the end of the slice
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one run. Those without a right answer to stand on are None."""

    window_s: float
    requests: int
    good: int
    failures: list[Failure]
    unfinished: int  # in flight when the run was stopped
    offered_per_s: float
    throughput_per_s: float
    goodput_per_s: float | None  # right answers within the promise
    within_promise: float | None  # share of all requests, failed ones included
    latency_ms: dict[str, float]
    mean_ms: float | None
    answer_bytes: float | None
    steady: bool
    unsteady_because: list[str]
    late_ms: dict[str, float]  # how late this program sent, connections waited for included
    client_cores: float
    client_cpu_ms: float | None  # per request
    connections: int
    resent: int
    slices: list[Slice]

    @property
    def failed(self) -> int:
        return sum(failure.count for failure in self.failures)

    @property
    def error_percent(self) -> float:
        return 100 * self.failed / max(1, self.good + self.failed)


def percentile(ascending: Floats, percent: float) -> float:
    """Nearest rank; `ascending` holds at least one number."""
    rank = int(np.ceil(percent / 100 * len(ascending) - 1e-9))
    return float(ascending[max(rank, 1) - 1])


def percentiles_ms(latencies_s: Floats, percents: tuple[float, ...] = PERCENTILES) -> dict[str, float]:
    """{"p50": ..., "max": ...} in milliseconds; empty for no latencies."""
    if not latencies_s.size:
        return {}
    ascending = np.sort(latencies_s)
    return {_name(percent): round(1000 * percentile(ascending, percent), 3) for percent in percents}


def summarise(run: Run, connections: int, resent: int) -> Summary:
    """The numbers of a run that is over."""
    recording, plan = run.recording, run.plan
    end = plan.end_s if recording.cut_at_s is None else min(plan.end_s, recording.cut_at_s)
    begin = min(plan.warmup_s, end)
    window = max(end - begin, 1e-9)
    inside = (recording.due >= begin) & (recording.due < end + 1e-9)
    good = inside & (recording.outcome == GOOD)
    ended = inside & (recording.outcome != PENDING)
    latency = recording.done - recording.due
    finished = (recording.outcome == GOOD) & (recording.done >= begin) & (recording.done < end)
    kept = good & (latency <= plan.promise_s) if plan.promise_s is not None else None
    slices = slice_up(recording, begin, end)
    reasons = unsteadiness(slices, plan.moments is not None)
    late = (recording.sent - recording.due)[ended]
    return Summary(
        window_s=round(window, 3),
        requests=int(inside.sum()),
        good=int(good.sum()),
        failures=_failures(recording, inside, latency),
        unfinished=int((inside & (recording.outcome == PENDING)).sum()),
        offered_per_s=float(inside.sum() / window),
        throughput_per_s=float(finished.sum() / window),
        goodput_per_s=None if kept is None else float(kept.sum() / window),
        within_promise=None if kept is None else float(kept.sum() / max(1, int(ended.sum()))),
        latency_ms=percentiles_ms(latency[good]),
        mean_ms=round(1000 * float(latency[good].mean()), 3) if good.any() else None,
        answer_bytes=round(float(recording.answer_bytes[good].mean())) if good.any() else None,
        steady=not reasons,
        unsteady_because=reasons,
        late_ms=percentiles_ms(late, (50.0, 99.0, 100.0)),
        client_cores=run.cpu_s / max(run.now_s, 1e-9) if recording.cut_at_s is None else run.cpu_s / max(end, 1e-9),
        client_cpu_ms=1000 * run.cpu_s / recording.count if recording.count else None,
        connections=connections,
        resent=resent,
        slices=slices,
    )


def slice_up(recording: Recording, begin: float, end: float) -> list[Slice]:
    """The run in slices, of which none lies across the end of the warm-up."""
    due, done, outcome = recording.due, recording.done, recording.outcome
    latency = done - due
    edges = _edges(begin, end, recording.count)
    slices: list[Slice] = []
    for start, stop in zip(edges, edges[1:], strict=False):
        here = (due >= start) & (due < stop)
        good = here & (outcome == GOOD)
        failed = here & (outcome > GOOD)
        finished = (outcome == GOOD) & (done >= start) & (done < stop)
        shown = percentiles_ms(latency[good], (50.0, 90.0, 99.0, 100.0))
        slices.append(
            Slice(
                start_s=start,
                seconds=stop - start,
                measured=start >= begin - 1e-9,
                due=int(here.sum()),
                good=int(good.sum()),
                failed=int(failed.sum()),
                finished_per_s=float(finished.sum() / (stop - start)),
                # NaN, for what was never answered, is not <= anything
                outstanding=int((due < stop).sum() - (done <= stop).sum()),
                p50_ms=shown.get("p50"),
                p90_ms=shown.get("p90"),
                p99_ms=shown.get("p99"),
                max_ms=shown.get("max"),
            )
        )
    return slices


def _edges(begin: float, end: float, requests: int) -> list[float]:
    """Whole seconds apart: one, or more in a long run or one with few requests; but at least six measured slices."""
    enough = min(PER_SLICE * end / max(requests, 1), (end - begin) / 6)
    width = float(max(1, round(enough), np.ceil(end / MAX_SLICES)))
    before = np.arange(begin, 0.0, -width)[:0:-1].tolist()
    after = np.arange(begin, end, width).tolist()
    if len(after) > 1 and end - after[-1] < 0.5 * width:
        after.pop()  # what is left belongs to the slice before
    return [*([0.0] if begin > 0 else []), *before, *after, end]


def unsteadiness(slices: list[Slice], open_loop: bool) -> list[str]:
    """Why the numbers of this run depend on how long it took; empty when they do not.

    Each slice of the last third is compared with each of the first. Something that grows, a queue above all, makes
    nearly every later one slower; noise does not.
    """
    measured = [piece for piece in slices if piece.measured]
    reasons = []
    if len(measured) < 3:
        return ["the run was shorter than three seconds, too short to tell"]
    third = len(measured) // 3
    factor = 1.25 if third >= 3 else 1.5  # between a few slices chance has more room
    first, last = measured[:third], measured[-third:]
    early = np.array([piece.p50_ms for piece in first if piece.p50_ms is not None])
    late = np.array([piece.p50_ms for piece in last if piece.p50_ms is not None])
    if early.size and late.size:
        before, after = float(np.median(early)), float(np.median(late))
        slower = float((late[:, None] > early[None, :]).mean())
        if slower >= 0.9 and after > factor * before and after - before > 1.0:
            reasons.append(f"latency rose: the median went from {before:.1f} to {after:.1f} ms")
        if slower <= 0.1 and before > factor * after and before - after > 1.0:
            reasons.append(f"latency fell: the median went from {before:.1f} to {after:.1f} ms; a longer --warmup?")
    if open_loop:
        due = sum(piece.due for piece in measured)
        growth = measured[-1].outstanding - measured[0].outstanding
        if growth > max(5, 0.05 * due):
            reasons.append(f"unanswered requests grew by {growth}: more came in than went out")
    return reasons


def _failures(recording: Recording, inside: npt.NDArray[np.bool_], latency: Floats) -> list[Failure]:
    found = []
    for number, kind in enumerate(recording.kinds):
        rows = inside & (recording.outcome == number)
        if number != GOOD and rows.any():
            median_s, p95_s = float(np.median(latency[rows])), percentile(np.sort(latency[rows]), 95)
            found.append(
                Failure(
                    kind=kind,
                    status=recording.statuses[kind],
                    count=int(rows.sum()),
                    median_ms=round(1000 * median_s, 3),
                    p95_ms=round(1000 * p95_s, 3),
                    why=recording.details[kind],
                )
            )
    return sorted(found, key=lambda failure: -failure.count)


def _name(percent: float) -> str:
    return "max" if percent == 100.0 else f"p{percent:g}"
