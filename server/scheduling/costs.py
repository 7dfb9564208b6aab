"""What a step takes, learned from every time it is done.

    run = Cost(0.0002, 3.7e-8)            # a first guess: seconds per run, seconds per pixel
    run.predict(1, 65536)                 # 0.0026
    run.learn(0.0031, 1, 65536)           # it took longer
    run.predict(1, 65536)                 # 0.0031

A cost is a sum of two terms, seconds per time it is done and seconds per unit of what it is done to, fitted by least
squares of the relative errors over the last measurements, older ones weighing less. A ridge holds the terms to the
first guess where the measurements say nothing: a server that has only ever seen single pictures still has a fair idea
of a batch. Two equations are solved by hand, for the event loop learns from every picture, and numpy takes 25 times as
long for a matrix this small.
"""

from __future__ import annotations

MEMORY = 0.93  # some fourteen measurements count
RIDGE = 1e-6  # weight of the first guess
LEAST = 0.01  # of a first guess that a term keeps
TICK = 1e-7  # seconds: no step takes less
SURPRISE = 3.0  # times the prediction: what took even longer (a sleeping machine) counts as this


class Cost:
    """
    Args:
        per_time: first guess of the seconds that it takes at all, above 0.
        per_unit: and of the seconds per unit, above 0.
        memory: weight of a measurement after the next one came.
    """

    def __init__(self, per_time: float, per_unit: float, memory: float = MEMORY) -> None:
        self._guess = per_time, per_unit
        self._memory = memory
        self._per_time, self._per_unit = self._guess
        self._square = RIDGE, 0.0, RIDGE  # upper left, off the diagonal, lower right
        self._product = RIDGE, RIDGE  # its right-hand side
        self._measured = False

    def predict(self, times: float, units: float) -> float:
        """Seconds."""
        return self._per_time * times + self._per_unit * units

    def learn(self, seconds: float, times: float, units: float) -> None:
        """Take a measurement."""
        once, each = self._guess[0] * times, self._guess[1] * units
        if not once and not each:
            return
        if self._measured:
            seconds = min(seconds, SURPRISE * self.predict(times, units))
        seconds = max(seconds, TICK)
        self._measured = True
        once, each = once / seconds, each / seconds
        memory, kept = self._memory, RIDGE * (1.0 - self._memory)
        a, b, c = self._square
        self._square = memory * a + kept + once * once, memory * b + once * each, memory * c + kept + each * each
        p, q = self._product
        self._product = memory * p + kept + once, memory * q + kept + each
        scale = self._solve()
        self._per_time, self._per_unit = self._guess[0] * scale[0], self._guess[1] * scale[1]

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
