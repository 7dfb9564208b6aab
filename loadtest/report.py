"""Everything a test has found, as one document: the JSON file, and what the HTML page draws.

Its keys are a promise (`schema` counts up when one changes its meaning). There is no header, no key and no name of this
machine in it; the address of the server is.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loadtest.answers import Content
from loadtest.options import Options
from loadtest.recording import GOOD
from loadtest.search import Found, Promise
from loadtest.session import Outcome, Session
from loadtest.statistics import percentile
from loadtest.tune import Tuned

SCHEMA = 1
MAX_POINTS = 6000  # of the page's picture; numbers come from all requests
PAGE = Path(__file__).with_name("page")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """What there is to report; parts that were not asked for are None."""

    options: Options
    load: str  # in words
    pictures: str  # where they come from
    interrupted: bool
    session: Session | None = None
    outcome: Outcome | None = None
    found: Found | None = None
    tuned: Tuned | None = None

    @property
    def promise(self) -> Promise | None:
        if self.options.p99_ms is None:
            return None
        return Promise(self.options.p99_ms, self.options.error_percent)

    @property
    def wrong_answers(self) -> int:
        failures = self.outcome.summary.failures if self.outcome else []
        return sum(failure.count for failure in failures if failure.kind in ("wrong_count", "bad_answer"))

    @property
    def fine(self) -> bool:
        """Whether the exit code is 0."""
        if self.tuned is not None:
            return self.tuned.best.rate > 0
        if self.wrong_answers:
            return False
        if self.options.mode == "find-max":
            return self.found is not None and self.found.rate > 0
        if self.outcome is None or not self.outcome.summary.good:
            return False
        return self.promise is None or self.promise.held(self.outcome.summary)


def to_document(finding: Finding) -> Document:
    """The report as JSON values."""
    options, outcome, session = finding.options, finding.outcome, finding.session
    document: Document = {
        "schema": SCHEMA,
        "tool": "maskserve loadtest",
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": finding.load,
        "interrupted": finding.interrupted,
        "fine": finding.fine,
        "wrong_answers": finding.wrong_answers,
        "promise": asdict(finding.promise) | {"held": finding.fine} if finding.promise else None,
        "settings": _settings(options),
        "machine": machine(),
    }
    if session is not None:
        document["target"] = session.target.origin + session.target.path
        document["model"] = session.alone.model or None
        document["pictures"] = {"from": finding.pictures, "count": len(session.pictures)}
        document["alone"] = {
            "median_ms": round(1000 * session.alone_s, 3) if session.alone.seconds else None,
            "instances": {
                picture.name: count for picture, count in zip(session.pictures, session.alone.instances, strict=False)
            },
        }
    if outcome is not None:
        document["result"] = asdict(outcome.summary) | {
            "error_percent": outcome.summary.error_percent,
            "warmup_s": outcome.run.plan.warmup_s,
            "out_of_requests": outcome.run.recording.full,
            "server": server_side(outcome.contents),
        }
        document["curve"] = curve(outcome)
        document["points"] = points(outcome)
    if finding.found is not None:
        document["search"] = asdict(finding.found)
    if finding.tuned is not None:
        document["tuning"] = asdict(finding.tuned)
    return document


def write_json(document: Document, path: Path) -> None:
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def write_page(document: Document, path: Path) -> None:
    """One HTML file with everything in it: it opens from a disk, offline, in years."""
    # "</script>" inside a string would end the script; in JSON "<" may as well be written "\u003c".
    data = orjson.dumps(document).replace(b"<", b"\\u003c").decode()
    text = (PAGE / "page.html").read_text(encoding="utf-8")
    for mark, part in (("style", "page.css"), ("charts", "charts.js"), ("script", "page.js")):
        text = text.replace(f"/* {mark} */", (PAGE / part).read_text(encoding="utf-8"))
    path.write_text(text.replace('"the report"', data), encoding="utf-8")


def curve(outcome: Outcome) -> list[tuple[float, float]]:
    """(percent, milliseconds), ever denser towards 100, as HdrHistogram draws them."""
    ascending = _good_latencies(outcome)
    if not ascending.size:
        return []
    # Up to half a request beyond the last but one: that is the slowest.
    beyond = np.geomspace(1.0, 0.5 / ascending.size, max(2, round(20 * np.log10(2 * ascending.size)) + 1))
    percents = (100 * (1 - beyond)).tolist()
    return [(round(percent, 6), round(1000 * percentile(ascending, percent), 3)) for percent in percents]


def points(outcome: Outcome) -> Document:
    """Requests for the picture of latency over time: all the slowest, and a fair choice of the others."""
    recording = outcome.run.recording
    latency_ms = 1000 * (recording.done - recording.due)
    rows = np.flatnonzero(recording.outcome >= GOOD)
    if rows.size > MAX_POINTS:
        slowest = rows[np.argsort(latency_ms[rows])[-MAX_POINTS // 10 :]]
        others = np.setdiff1d(rows, slowest)
        chosen = np.random.default_rng(0).choice(others, MAX_POINTS - slowest.size, replace=False)
        rows = np.sort(np.concatenate((slowest, chosen)))
    return {
        "due_s": np.round(recording.due[rows], 3).tolist(),
        "latency_ms": np.round(latency_ms[rows], 2).tolist(),
        "kind": recording.outcome[rows].tolist(),
        "kinds": recording.kinds,
        "of": int((recording.outcome >= GOOD).sum()),
    }


def server_side(contents: list[Content]) -> Document | None:
    """What the server says of itself in a sample of its answers: where its time goes, and the batches it made."""
    if not contents:
        return None
    stages: dict[str, list[float]] = defaultdict(list)
    for content in contents:
        for stage, ms in content.timing_ms.items():
            stages[stage].append(ms)
    batches = [content.batch_size for content in contents if content.batch_size]
    return {
        "answers": len(contents),
        "mean_ms": {stage: round(float(np.mean(times)), 3) for stage, times in stages.items()},
        "mean_batch_size": round(float(np.mean(batches)), 2) if batches else None,
    }


def machine() -> Document:
    """The machine this program ran on, which is not always the server's."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def _settings(options: Options) -> Document:
    """What was asked, without what a report must not tell: headers, folders and other people's commands."""
    values = asdict(options)
    for name in ("url", "headers", "tune", "images", "trace", "json_out", "html_out", "env_out", "server_log", "quiet"):
        del values[name]
    if options.mode != "closed":
        del values["clients"]
    if options.rate is None:
        del values["arrivals"]
    return {name: value for name, value in values.items() if value not in (None, [])}


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _good_latencies(outcome: Outcome) -> np.ndarray[Any, np.dtype[np.float64]]:
    recording, plan = outcome.run.recording, outcome.run.plan
    end = plan.end_s if recording.cut_at_s is None else min(plan.end_s, recording.cut_at_s)
    rows = (recording.outcome == GOOD) & (recording.due >= min(plan.warmup_s, end))
    return np.sort((recording.done - recording.due)[rows])
