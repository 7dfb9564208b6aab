"""What a step takes, learned from every time it is done.

    run = Cost(0.0002, 3.7e-8)            # a first guess: seconds per run, seconds per pixel
    run.predict(1, 65536)                 # 0.0026
    run.learn(0.0031, 1, 65536)           # it took longer
    run.predict(1, 65536)                 # 0.0031

A cost is a sum of terms, seconds per unit times units, fitted by least squares of the relative errors over the last
measurements, older ones weighing less. A ridge holds the terms to the first guess where the measurements say nothing: a
server that has only ever seen single pictures still has a fair idea of a batch.
"""

from __future__ import annotations

import numpy as np

MEMORY = 0.93  # weight of a measurement after the next one came: some fourteen count
RIDGE = 1e-6  # weight of the first guess
LEAST = 0.01  # of a first guess that a term keeps
TICK = 1e-7  # seconds: no step takes less
SURPRISE = 3.0  # times the prediction: what took even longer (a sleeping machine) counts as this


class Cost:
    """
    Args:
        guess: seconds per unit of every feature, each above 0.
    """

    def __init__(self, *guess: float) -> None:
        self._guess = np.array(guess)
        self._scale = np.ones(len(guess))  # of the guess: what is fitted
        self._square = RIDGE * np.eye(len(guess))
        self._product = RIDGE * np.ones(len(guess))
        self._per_unit = [float(seconds) for seconds in guess]
        self._measured = False

    def predict(self, *features: float) -> float:
        """Seconds."""
        return sum(seconds * units for seconds, units in zip(self._per_unit, features, strict=True))

    def learn(self, seconds: float, *features: float) -> None:
        """Take a measurement."""
        terms = self._guess * features
        if not terms.any():
            return
        if self._measured:
            seconds = min(seconds, SURPRISE * self.predict(*features))
        seconds = max(seconds, TICK)
        self._measured = True
        terms = terms / seconds
        kept = RIDGE * (1.0 - MEMORY)
        self._square = MEMORY * self._square + kept * np.eye(len(terms)) + np.outer(terms, terms)
        self._product = MEMORY * self._product + kept + terms
        self._scale = self._solve()
        self._per_unit = [float(value) for value in self._guess * self._scale]

    def _solve(self) -> np.ndarray:
        """The scales of least squares; those that came out below `LEAST` are held there and the others solved again."""
        scale = np.linalg.solve(self._square, self._product)
        low = scale < LEAST
        if low.any():
            free = ~low
            scale[low] = LEAST
            if free.any():
                product = self._product[free] - self._square[np.ix_(free, low)] @ scale[low]
                scale[free] = np.maximum(LEAST, np.linalg.solve(self._square[np.ix_(free, free)], product))
        return scale


class Mean:
    """A running mean that forgets: what to expect of something not seen yet."""

    def __init__(self, first: float) -> None:
        self.value = first
        self._measurements = 0

    def learn(self, value: float) -> None:
        self._measurements += 1
        self.value += max(1.0 - MEMORY, 1.0 / self._measurements) * (value - self.value)
