"""`--tune COMMAND --p99-ms X`: starts a server with one setting after another, and keeps what carries the highest rate.

    python -m loadtest --tune "python -m server --bundles bundles --port {port}" --p99-ms 250 --env-out maskserve.env

One knob after the other is turned, the others staying at the best found so far; a change must win by more than the
search's own uncertainty, or the default stays. Settings reach the server as MASKSERVE_... variables, so the file that
is written works as it is: `docker run --env-file`, systemd's EnvironmentFile, or `set -a; . ./maskserve.env`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loadtest.errors import CannotRun
from loadtest.search import Found

# What is tried for each knob; the server's own value is always tried first. `--try NAME=a,b,c` replaces this table.
KNOBS: dict[str, list[str]] = {
    "MASKSERVE_MAX_BATCH": ["1", "4", "16"],
    "MASKSERVE_MAX_BATCH_MEGAPIXELS": ["0.5", "2.2", "8.8"],
}
START_S = 120.0  # for a server to become ready, unless --wait-s says otherwise
END_S = 40.0  # for one to end after SIGTERM; longer than its own --drain-s

Settings = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination; `why` says what went wrong when `rate` is 0."""

    settings: Settings
    rate: float
    p99_ms: float | None
    why: str = ""

    def line(self) -> str:
        shown = f"{self.rate:8.2f}/s" if self.rate else f"{'-':>8}  "
        p99 = f"  p99 {self.p99_ms:.1f} ms" if self.p99_ms is not None and self.rate else ""
        return f"{shown}  {describe(self.settings)}{p99}{f'  ({self.why})' if self.why else ''}"


@dataclass(frozen=True, slots=True)
class Tuned:
    best: Trial
    trials: list[Trial]


async def tune(
    measure: Callable[[Settings], Awaitable[Trial | None]], knobs: dict[str, list[str]], margin: float
) -> Tuned | None:
    """Coordinate descent, once around.

    Args:
        measure: one trial; None when stopped.
        knobs: variable -> values.
        margin: a better rate must be better by this share.
    """
    best = await measure({})
    if best is None:
        return None
    trials = [best]
    for name, values in knobs.items():
        for value in values:
            trial = await measure(best_without(best.settings, name) | {name: value})
            if trial is None:
                return Tuned(best, trials)
            trials.append(trial)
        winner = max(trials, key=lambda trial: trial.rate)
        if winner.rate > best.rate * (1 + margin):
            best = winner
    return Tuned(best, trials)


def best_without(settings: Settings, name: str) -> Settings:
    return {key: value for key, value in settings.items() if key != name}


def read_knobs(lines: list[str]) -> dict[str, list[str]]:
    """`NAME=a,b,c` for each knob.

    Raises:
        CannotRun: a line is not that.
    """
    if not lines:
        return KNOBS
    knobs = {}
    for line in lines:
        name, equals, values = line.partition("=")
        if not equals or not name.isidentifier() or not values:
            raise CannotRun(f"--try wants NAME=VALUE,VALUE,..., such as MASKSERVE_MAX_BATCH=1,4; got {line!r}")
        knobs[name] = values.split(",")
    return knobs


@dataclass(frozen=True, slots=True)
class Started:
    """A server that was started; it may not be ready yet."""

    port: int
    process: asyncio.subprocess.Process

    async def while_it_lives(self, story: Coroutine[Any, Any, T]) -> T:
        """What `story` gives.

        Raises:
            CannotRun: the server ended first.
        """
        going = asyncio.create_task(story)
        ended = asyncio.create_task(self.process.wait())
        try:
            await asyncio.wait((going, ended), return_when=asyncio.FIRST_COMPLETED)
            if going.done():
                return await going
            raise CannotRun(f"the server ended with {ended.result()}")
        finally:
            for task in (going, ended):
                task.cancel()
            await asyncio.gather(going, ended, return_exceptions=True)


@contextlib.asynccontextmanager
async def server(command: str, settings: Settings, log: Path | None) -> AsyncIterator[Started]:
    """A server of our own for as long as the block lasts, on a free port; everything it started ends with it.

    Raises:
        CannotRun: the command cannot be started.
    """
    if "{port}" not in command:
        raise CannotRun("the command of --tune must say {port} where its port goes, so that ours finds the server")
    port = _free_port()
    words = shlex.split(command.replace("{port}", str(port)))
    sink = log.open("ab") if log else None
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            env=os.environ | settings,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink or asyncio.subprocess.DEVNULL,
            stderr=sink or asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; we end it in order
        )
    except OSError as error:
        raise CannotRun(f"cannot start {words[0]!r}: {error.strerror}") from None
    finally:
        if sink:
            sink.close()
    try:
        yield Started(port, process)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, patience, SIGKILL: to its whole session, so that workers do not stay behind."""
    for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def to_trial(settings: Settings, found: Found) -> Trial:
    held = [step for step in found.steps if step.held and step.rate == found.rate]
    why = "" if found.confirmed else "not confirmed" if found.rate else "the promise holds at no rate"
    return Trial(settings, found.rate, held[-1].p99_ms if held else None, why)


def env_file(tuned: Tuned, promise: str) -> str:
    """The best settings as a file of variables; comments tell where they come from."""
    default = tuned.trials[0]
    lines = [
        f"# Found by `python -m loadtest --tune` for the promise: {promise}.",
        f"# It holds up to {tuned.best.rate:.2f} images/s; with the server's defaults, up to {default.rate:.2f}.",
    ]
    if not tuned.best.settings:
        lines.append("# Nothing that was tried is better than the defaults, so nothing is set.")
    lines += [f"{name}={value}" for name, value in tuned.best.settings.items()]
    return "\n".join(lines) + "\n"


def describe(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "the defaults"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
