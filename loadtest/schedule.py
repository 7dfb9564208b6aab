"""When requests are due: seconds from the start, ascending, worked out before the first one is sent.

    constant(4, 1)         [0, 0.25, 0.5, 0.75]
    ramp(0, 8, 1)          [0, 0.5, 0.707, 0.866]: four requests, ever closer
    poisson(4, 1, random)  four on average, at moments that know nothing of each other, as independent users come

Each takes a `limit`: a schedule never holds more requests than that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtest.errors import CannotRun

Moments = npt.NDArray[np.float64]


def constant(rate: float, duration_s: float, limit: int) -> Moments:
    """One request every 1/rate seconds."""
    return np.arange(min(limit, _whole(rate * duration_s))) / rate


def poisson(rate: float, duration_s: float, limit: int, random: np.random.Generator) -> Moments:
    """Independent arrivals: the gaps are exponential, so some come in bunches, as people do."""
    count = int(random.poisson(rate * duration_s))
    # Given their number, the moments of a Poisson process are spread evenly at random.
    moments: Moments = np.sort(random.uniform(0.0, duration_s, count))
    return moments[:limit]


def ramp(first_rate: float, last_rate: float, duration_s: float, limit: int) -> Moments:
    """The rate moves evenly from `first_rate` to `last_rate`; request k is due when k have been due on average.

    The number due by t is first*t + slope/2 * t^2; its inverse is written in the form that stays exact when slope is 0.
    """
    count = min(limit, _whole((first_rate + last_rate) / 2 * duration_s))
    k = np.arange(count)
    slope = (last_rate - first_rate) / duration_s
    root = np.sqrt(np.maximum(first_rate**2 + 2 * slope * k, 0.0))
    moments = np.divide(2.0 * k, first_rate + root, out=np.zeros(count), where=first_rate + root > 0)
    within: Moments = np.minimum(moments, duration_s)
    return within


def read_trace(path: Path, limit: int) -> tuple[Moments, list[str | None]]:
    """A recorded load: one request a line, its second and, if it matters, the name of its picture.

        0.000 tissue.jpg
        0.130
        # lines like this one, and empty ones, are skipped

    Returns:
        The moments, counted from the first, and for each the picture's name or None.

    Raises:
        CannotRun: the file cannot be read as that.
    """
    due: list[tuple[float, str | None]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRun(f"cannot read --trace {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        try:
            second = float(words[0])
        except ValueError:
            second = float("nan")
        if not np.isfinite(second):
            raise CannotRun(f"{path}, line {number}: a number of seconds should come first, got {words[0]!r}")
        due.append((second, words[1].strip() if len(words) > 1 else None))
    if not due:
        raise CannotRun(f"{path} holds no requests; write one line for each: its second, then maybe a picture's name")
    due = sorted(due, key=lambda pair: pair[0])[:limit]
    moments = np.array([second for second, _ in due])
    return moments - moments[0], [name for _, name in due]


def _whole(count: float) -> int:
    """How many k = 0, 1, 2, ... lie below `count`; 10 * 0.3 is three and not four."""
    return int(np.ceil(count - 1e-9))
