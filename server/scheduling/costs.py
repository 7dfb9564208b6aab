"""What a step takes, learned from every time it is done.

    run = Cost(0.0002, 3.7e-8)            # a first guess: seconds per run, seconds per pixel
    run.predict(1, 65536)                 # 0.0026
    run.learn(0.0031, 1, 65536)           # it took longer
    run.predict(1, 65536)                 # 0.0031

A cost is a pace times a sum of two terms, one per time it is done and one per unit of what it is done to. The pace is
the machine's, which others share: it changes within seconds, and is a mean of the last measurements. What the terms
are to each other is the step's own, and lasts: they are fitted by least squares to measurements over the pace, some
hundred of which count. A ridge holds them to the first guess where the measurements say nothing: a server that has only
ever seen single pictures still has a fair idea of a batch. Two equations are solved by hand, for the event loop learns
from every picture, and numpy takes 25 times as long for a matrix this small.
"""

from __future__ import annotations

MEMORY = 0.93  # weight of a measurement after the next one came: some fourteen count
LONG_MEMORY = 0.99  # the same for what the terms are to each other
RIDGE = 1e-6  # weight of the first guess
LEAST = 0.01  # of a first guess that a term keeps
TICK = 1e-7  # seconds: no step takes less
SURPRISE = 2.0  # times the prediction: what took even longer counts as this, and twice that if the next one does too


class Cost:
    """
    Args:
        per_time: first guess of the seconds that it takes at all, above 0.
        per_unit: and of the seconds per unit, above 0.
    """

    def __init__(self, per_time: float, per_unit: float) -> None:
        self._guess = per_time, per_unit
        self._pace = 1.0
        self._scale = 1.0, 1.0  # of the two terms, times the first guess
        self._square = RIDGE, 0.0, RIDGE  # upper left, off the diagonal, lower right
        self._product = RIDGE, RIDGE  # its right-hand side
        self._measured = 0
        self._limit = SURPRISE

    def predict(self, times: float, units: float) -> float:
        """Seconds."""
        return self._pace * (self._scale[0] * self._guess[0] * times + self._scale[1] * self._guess[1] * units)

    def learn(self, seconds: float, times: float, units: float) -> None:
        """Take a measurement."""
        once, each = self._guess[0] * times, self._guess[1] * units
        share = self._scale[0] * once + self._scale[1] * each
        if not share:
            return
        pace = max(seconds, TICK) / share
        if self._measured:
            pace = self._believed(pace)
        self._measured += 1
        self._pace += max(1.0 - MEMORY, 1.0 / self._measured) * (pace - self._pace)

        once, each, seen = once / share, each / share, pace / self._pace
        kept = RIDGE * (1.0 - LONG_MEMORY)
        a, b, c = (LONG_MEMORY * number for number in self._square)
        self._square = a + kept + once * once, b + once * each, c + kept + each * each
        p, q = self._product
        self._product = LONG_MEMORY * p + kept + once * seen, LONG_MEMORY * q + kept + each * seen
        self._scale = self._solve()

    def _believed(self, pace: float) -> float:
        """One that slept is no sign of a slow machine; several in a row are."""
        most = self._limit * self._pace
        if pace <= most:
            self._limit = SURPRISE
            return pace
        self._limit *= 2.0
        return most

    def _solve(self) -> tuple[float, float]:
        """The scales of least squares; one that came out below `LEAST` is held there and the other solved again."""
        (a, b, c), (p, q) = self._square, self._product
        y = (q - p * b / a) / max(RIDGE, c - b * b / a)  # the ridge is what is left where rounding leaves nothing
        x = (p - b * y) / a
        if x < LEAST and y < LEAST:
            return LEAST, LEAST
        if x < LEAST:
            return LEAST, max(LEAST, (q - b * LEAST) / c)
        if y < LEAST:
            return max(LEAST, (p - b * LEAST) / a), LEAST
        return x, y


class Mean:
    """A running mean that forgets: what to expect of something not seen yet."""

    def __init__(self, first: float) -> None:
        self.value = first
        self._measurements = 0

    def learn(self, value: float) -> None:
        self._measurements += 1
        self.value += max(1.0 - MEMORY, 1.0 / self._measurements) * (value - self.value)
