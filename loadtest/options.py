"""The command line: what can be asked, and what its help says."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadtest.answers import Check
from loadtest.errors import CannotRun

ABOUT = """\
Measure a maskserver: how fast it answers, how much it carries, and whether its answers stay right under load.

  python -m loadtest                                      8 clients for 10 s: what can the server on port 8000 do?
  python -m loadtest --rate 20                            20 images/s, coming as people come: how long do they wait?
  python -m loadtest --find-max --p99-ms 250              how many images/s with 99 % of answers within 250 ms?
  python -m loadtest http://10.0.0.5:8000 --images cells/ --rate 20 --html report.html
"""
AFTER = """\
With a rate (open loop) a latency counts from the moment a request was due: a server that stalls is charged for everyone
who came meanwhile. With --concurrency (closed loop) clients wait for their answers; that shows what a server can do at
most, and hides what a stall does. Find the maximum first, then test at about 70 % of it.

A server that wants a key: put it into the environment as MASKSERVE_API_KEY. Headers are in no report.
Ctrl-C ends the run and reports what was measured.

Exit code: 0 fine, 1 the promise (--p99-ms) was broken or answers were wrong, 2 cannot run, 130 stopped by Ctrl-C.
"""

Mode = Literal["open", "closed", "find-max", "tune"]
DEFAULT_CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked; times in seconds, unless the name says otherwise."""

    mode: Mode
    url: str
    rate: float | None
    arrivals: Literal["poisson", "constant"]
    ramp: tuple[float, float] | None
    trace: Path | None
    clients: int
    duration_s: float | None
    warmup_s: float
    timeout_s: float
    wait_s: float
    max_requests: int
    connections: int
    images: Path | None
    check: Check
    p99_ms: float | None
    error_percent: float
    precision: float
    tune: str | None
    tries: list[str]
    env_out: Path | None
    server_log: Path | None
    json_out: Path | None
    html_out: Path | None
    headers: list[str]
    seed: int
    quiet: bool


def read_options(words: list[str] | None = None) -> Options:
    """
    Raises:
        CannotRun: options that contradict each other.
        SystemExit: argparse has shown help, or an error.
    """
    given = _parser().parse_args(words)
    ways = {"--rate": given.rate, "--ramp": given.ramp, "--trace": given.trace, "--concurrency": given.concurrency}
    chosen = [flag for flag, value in ways.items() if value is not None]
    searching = "--tune" if given.tune else "--find-max" if given.find_max else None
    if len(chosen) > 1:
        raise CannotRun(f"{' and '.join(chosen)} are different loads; choose one")
    if searching and chosen:
        raise CannotRun(f"{searching} looks for the rate itself; leave {chosen[0]} out")
    if searching and given.p99_ms is None:
        raise CannotRun(f"{searching} needs the promise that must hold, such as --p99-ms 250")
    mode: Mode = "open"
    if searching:
        mode = "tune" if given.tune else "find-max"
    elif given.concurrency is not None or not chosen:
        mode = "closed"
    return Options(
        mode=mode,
        url=given.url,
        rate=given.rate,
        arrivals=given.arrivals,
        ramp=given.ramp,
        trace=given.trace,
        clients=given.concurrency or DEFAULT_CLIENTS,
        duration_s=given.duration,
        warmup_s=(0.0 if given.trace else 2.0) if given.warmup is None else given.warmup,
        timeout_s=given.timeout_s,
        wait_s=given.wait_s,
        max_requests=given.max_requests,
        connections=given.connections,
        images=given.images,
        check=given.check,
        p99_ms=given.p99_ms,
        error_percent=given.max_errors,
        precision=given.precision / 100,
        tune=given.tune,
        tries=given.tries,
        env_out=given.env_out,
        server_log=given.server_log,
        json_out=given.json,
        html_out=given.html,
        headers=given.header,
        seed=given.seed,
        quiet=given.quiet,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=ABOUT,
        epilog=AFTER,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110),
        allow_abbrev=False,
    )
    parser.add_argument(
        "url",
        nargs="?",
        default="http://127.0.0.1:8000",
        help="the server (default: %(default)s); /v1/segment is added unless it has a path of its own, and parameters "
        "go in its query: http://127.0.0.1:8000/v1/segment?masks=polygons",
    )

    add = parser.add_argument_group("the load (choose one)").add_argument
    add("--concurrency", type=_count, metavar="C", help=f"closed loop: C clients (default: {DEFAULT_CLIENTS})")
    add("--rate", type=_positive, metavar="R", help="open loop: R images a second")
    add("--ramp", type=_ramp, metavar="FROM:TO", help="open loop: the rate moves from FROM to TO over the duration")
    add("--trace", type=Path, metavar="FILE", help="open loop: a recorded load, one line a request: SECOND [PICTURE]")
    add("--find-max", action="store_true", help="search for the highest rate that holds --p99-ms")
    add(
        "--tune",
        metavar="COMMAND",
        help="start a server again and again, '{port}' standing for its port, and search for the settings that carry "
        'most: --tune "python -m server --bundles bundles --port {port}"',
    )

    add = parser.add_argument_group("how the load comes").add_argument
    add(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="for --rate: like people, or like a clock (default: poisson)",
    )
    add(
        "--duration",
        type=_positive,
        metavar="S",
        help="seconds that are measured (default: 10; a step of --find-max: 6)",
    )
    add("--warmup", type=_number, metavar="S", help="seconds before that, not counted (default: 2; with --trace: 0)")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="pictures to send, in turn (default: docs/samples, or one painted here)",
    )
    add(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="of the random arrivals: the same seed, the same load (default: 1)",
    )

    add = parser.add_argument_group("the promise").add_argument
    add("--p99-ms", type=_positive, metavar="X", help="99 %% of requests get the right answer within X milliseconds")
    add("--max-errors", type=_number, default=0.1, metavar="P", help="and at most P %% fail (default: 0.1)")
    add(
        "--check",
        choices=("sample", "all", "none"),
        default="sample",
        help="which answers are taken apart, down to the masks: a sample, while the instances of all are counted; all; "
        "or none (default: sample)",
    )
    add(
        "--precision",
        type=_positive,
        default=5.0,
        metavar="P",
        help="--find-max and --tune stop when the maximum is known to P %% (default: 5)",
    )
    add(
        "--try",
        dest="tries",
        action="append",
        default=[],
        metavar="NAME=A,B,C",
        help="--tune: values for a MASKSERVE_... variable, instead of the built-in table; may be repeated",
    )

    add = parser.add_argument_group("limits").add_argument
    add("--timeout-s", type=_positive, default=10.0, metavar="S", help="patience with one request (default: 10)")
    add(
        "--wait-s",
        type=_number,
        default=0.0,
        metavar="S",
        help="wait so long for /readyz before the start (default: 0)",
    )
    add(
        "--max-requests",
        type=_count,
        default=200_000,
        metavar="N",
        help="in one run; the report says so when it was not enough (default: 200000)",
    )
    add(
        "--connections",
        type=_count,
        default=512,
        metavar="N",
        help="at once; when all are busy requests wait here, and their clock runs (default: 512)",
    )

    add = parser.add_argument_group("output").add_argument
    add("--json", type=Path, metavar="FILE", help="write all numbers")
    add("--html", type=Path, metavar="FILE", help="write a page with pictures; it needs nothing but itself")
    add("--env-out", type=Path, metavar="FILE", help="--tune: write the settings it found")
    add("--server-log", type=Path, metavar="FILE", help="--tune: append what its servers say")
    add("--quiet", action="store_true", help="no live line")
    add("--header", action="append", default=[], metavar="HEADER", help="send 'Name: value' too; may be repeated")
    return parser


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number, 0 or more")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value == 0:
        raise argparse.ArgumentTypeError("it should be above 0")
    return value


def _count(text: str) -> int:
    value = _number(text)
    if not 1 <= value <= 10_000_000 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 1 to 10000000")
    return int(value)


def _ramp(text: str) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} should be FROM:TO, such as 5:50")
    rates = _number(first), _number(last)
    if max(rates) == 0:
        raise argparse.ArgumentTypeError("one of the two rates should be above 0")
    return rates
