"""`--find-max --p99-ms X`: the highest rate at which the server holds the promise.

The promise: at least 99 % of all requests get the right answer within X ms, and at most 0.1 % fail; one request is
forgiven, because a step is often too short to tell such shares. The rate doubles until it breaks, then the gap between
the best that held and the least that broke is halved (in proportion) until it is narrow, and the best is confirmed by a
run of twice the length. Arrivals are Poisson: evenly spaced ones flatter a server.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from loadtest import schedule
from loadtest.load import Plan
from loadtest.progress import Progress
from loadtest.session import Outcome, Session
from loadtest.statistics import Summary

MAX_STEPS = 40
MIN_REQUESTS = 100  # below that a p99 is the slowest request and nothing else
MAX_STEP_S = 30.0
FORGIVEN = 1
HALVINGS = 3  # below the first rate; a server that cannot hold there holds nowhere


@dataclass(frozen=True, slots=True)
class Promise:
    """p99 within `p99_ms`, and errors within `error_percent`."""

    p99_ms: float
    error_percent: float = 0.1

    def held(self, summary: Summary, forgiven: int = 0) -> bool:
        """Whether a run held it, `forgiven` requests being no matter."""
        if summary.within_promise is None or not summary.good:
            return False
        ended = summary.good + summary.failed
        broken = round((1 - summary.within_promise) * ended)
        allowed = max(self.error_percent / 100 * ended, forgiven)
        return broken <= max(0.01 * ended, forgiven) and summary.failed <= allowed


@dataclass(frozen=True, slots=True)
class Step:
    """One rate that was tried."""

    rate: float
    held: bool
    confirming: bool
    seconds: float  # measured, warm-up excluded
    requests: int  # measured
    gave_up: bool  # stopped as soon as the promise could not be held any more
    throughput_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    within_percent: float
    error_percent: float
    errors: dict[str, int]

    def line(self) -> str:
        shown = "no right answer" if self.p99_ms is None else f"p50 {self.p50_ms:6.1f}  p99 {self.p99_ms:6.1f} ms"
        errors = "".join(f", {count} {kind}" for kind, count in self.errors.items())
        return (
            f"{self.rate:8.2f}/s  {'holds ' if self.held else 'breaks'}  {shown}  "
            f"{self.within_percent:5.1f} % in time{errors}"
            + ("  (confirming)" if self.confirming else "")
            + ("  (given up early)" if self.gave_up else "")
        )


@dataclass(frozen=True, slots=True)
class Found:
    """`rate` is 0 when not even the slowest rate held, and what is known so far when the search was stopped."""

    rate: float
    confirmed: bool
    steps: list[Step]


TryRate = Callable[[float, bool], Awaitable[Step | None]]


async def find_max(try_rate: TryRate, first_rate: float, precision: float) -> Found:
    """
    Args:
        try_rate: measures at a rate, twice as long when its second argument says that this confirms; None when stopped.
        first_rate: where to begin.
        precision: how narrow the gap must become; 0.05 is 5 %.
    """
    steps: list[Step] = []
    lowest = first_rate / 2**HALVINGS
    low, high, rate = 0.0, math.inf, first_rate
    confirmations = 0
    while len(steps) < MAX_STEPS:
        narrow = low > 0 and high <= low * (1 + precision)
        if narrow:
            rate = low
        step = await try_rate(rate, narrow)
        if step is None:
            break
        steps.append(step)
        if step.held and narrow:
            return Found(low, True, steps)
        if step.held:
            low = rate
        else:
            high = rate
            if narrow:  # the short run was lucky
                confirmations += 1
                low = rate / (1 + precision) ** (1 + confirmations)
                high = low * (1 + precision)
        if math.isinf(high):
            rate = 2 * low
        elif low == 0.0:
            rate = high / 2
            if rate < lowest:
                break
        else:
            rate = math.sqrt(low * high)
    held = [step.rate for step in steps if step.held]
    broke = [step.rate for step in steps if not step.held]
    return Found(max((rate for rate in held if rate < min(broke, default=math.inf)), default=0.0), False, steps)


@dataclass(slots=True)
class Searcher:
    """Tries rates against a session, and keeps the last run that held for the report."""

    session: Session
    promise: Promise
    step_s: float
    warmup_s: float
    max_requests: int
    random: np.random.Generator
    progress: Progress
    best: Outcome | None = None
    last: Outcome | None = None

    async def find(self, precision: float) -> Found:
        """Begins at half of what one request after the other would make; not at all when one alone is too slow."""
        if self.session.alone_s > self.promise.p99_ms / 1000:
            return Found(0.0, False, [])
        return await find_max(self.try_rate, 0.5 / self.session.alone_s, precision)

    async def try_rate(self, rate: float, confirming: bool) -> Step | None:
        if self.session.stopped:
            return None
        outcome = await self.session.measure(self._plan(rate, confirming), f"{rate:.2f}/s")
        if outcome.interrupted:
            return None
        step = _to_step(rate, confirming, outcome, self.promise)
        self.last = outcome
        if step.held:
            self.best = outcome
        else:
            await self.session.settle()
        self.progress.say(step.line())
        return step

    def _plan(self, rate: float, confirming: bool) -> Plan:
        measured_s = min(max(self.step_s, MIN_REQUESTS / rate), max(self.step_s, MAX_STEP_S)) * (1 + confirming)
        moments = schedule.poisson(rate, self.warmup_s + measured_s, self.max_requests, self.random)
        return Plan(
            warmup_s=self.warmup_s,
            duration_s=measured_s,
            timeout_s=self.session.timeout_s,
            capacity=self.max_requests,
            moments=moments,
            promise_s=self.promise.p99_ms / 1000,
            give_up_after=max(FORGIVEN, math.floor(0.01 * (moments >= self.warmup_s).sum())),
        )


def _to_step(rate: float, confirming: bool, outcome: Outcome, promise: Promise) -> Step:
    summary = outcome.summary
    return Step(
        rate=rate,
        held=promise.held(summary, FORGIVEN) and not outcome.run.gave_up and not outcome.run.recording.full,
        confirming=confirming,
        seconds=summary.window_s,
        requests=summary.requests,
        gave_up=outcome.run.gave_up,
        throughput_per_s=summary.throughput_per_s,
        p50_ms=summary.latency_ms.get("p50"),
        p99_ms=summary.latency_ms.get("p99"),
        within_percent=100 * (summary.within_promise or 0.0),
        error_percent=summary.error_percent,
        errors={failure.kind: failure.count for failure in summary.failures},
    )
