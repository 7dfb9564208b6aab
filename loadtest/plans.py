"""From options to the plan of one run."""

from __future__ import annotations

import numpy as np

from loadtest import schedule
from loadtest.errors import CannotRun
from loadtest.load import Plan
from loadtest.options import Options
from loadtest.pictures import Picture

DURATION_S = 10.0


def make_plan(options: Options, pictures: list[Picture]) -> tuple[Plan, str]:
    """One run, and what it is called in reports."""
    duration_s = options.duration_s or DURATION_S
    whole_s = options.warmup_s + duration_s
    moments: schedule.Moments | None = None
    order: list[int] | None = None
    limit = options.max_requests + 1  # one more than may be sent shows that something was left out
    random = np.random.default_rng(options.seed)
    if options.trace is not None:
        moments, names = schedule.read_trace(options.trace, limit)
        order = _order(names, pictures)
        if options.duration_s is None:
            duration_s = max(float(moments[-1]) - options.warmup_s + 1e-6, 1e-6)
        moments = moments[moments < options.warmup_s + duration_s]
        words = f"a recorded load of {len(moments)} requests"
    elif options.ramp is not None:
        first, last = options.ramp
        before = schedule.constant(first, options.warmup_s, limit) if first else np.zeros(0)
        rising = schedule.ramp(first, last, duration_s, limit) + options.warmup_s
        moments = np.concatenate((before, rising))[:limit]
        words = f"a ramp from {first:g} to {last:g}/s"
    elif options.rate is not None and options.arrivals == "constant":
        moments = schedule.constant(options.rate, whole_s, limit)
        words = f"one request every {1000 / options.rate:.4g} ms ({options.rate:g}/s)"
    elif options.rate is not None:
        moments = schedule.poisson(options.rate, whole_s, limit, random)
        words = f"Poisson arrivals, {options.rate:g}/s"
    else:
        words = f"{options.clients} client{'s' * (options.clients > 1)} in a closed loop"
    plan = Plan(
        warmup_s=options.warmup_s,
        duration_s=duration_s,
        timeout_s=options.timeout_s,
        capacity=options.max_requests,
        moments=moments,
        pictures=order,
        clients=options.clients,
        promise_s=None if options.p99_ms is None else options.p99_ms / 1000,
    )
    return plan, words


def _order(names: list[str | None], pictures: list[Picture]) -> list[int]:
    """Which picture each request of a trace sends; those without a name take turns."""
    numbers = {picture.name: number for number, picture in enumerate(pictures)}
    if missing := sorted({name for name in names if name is not None and name not in numbers}):
        raise CannotRun(
            f"the trace names {missing[0]!r}, which is not among the pictures; --images DIR says where they are"
        )
    return [position % len(pictures) if name is None else numbers[name] for position, name in enumerate(names)]
