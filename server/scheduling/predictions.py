"""When an engine will be free, from what its runs were seen to take."""

from __future__ import annotations

from collections.abc import Iterable

from server.scheduling.costs import Cost, Mean
from server.scheduling.running import Ran

GUESS_RUN_S, GUESS_PIXEL_S = 1e-4, 1e-8  # until a run was measured
GUESS_PIXELS = 250_000  # of a network's input
WASTE = 0.1  # share of a batch's time that its fixed cost may be; a larger batch is not worth waiting for
OFTEN = 16  # runs of a size after which its cost is known


class Predictions:
    """Learns on the event loop; predicts there and in workers.

    Args:
        run_s, pace_s: what a run takes, seconds and seconds per input pixel, to believe until runs have been measured.
        max_batch: images in a batch.
        slots: runs at the same time.
        tried: images in the largest batch that the engine has memory for, or that was run `OFTEN`; more than twice as
            many are never worth it, so a guess that was too high is found out before the memory for many is taken.
    """

    def __init__(self, run_s: float, pace_s: float, max_batch: int, slots: int, tried: int) -> None:
        self._crowded, self._alone = Cost(run_s, pace_s), Cost(run_s, pace_s)
        self._max_batch = max_batch
        self._slots = slots
        self._pixels = Mean(GUESS_PIXELS)
        self._tried = tried
        self._larger = 0  # runs of more than that

    def learn(self, ran: Ran) -> None:
        """From a run that did not fail."""
        seconds = ran.ended - ran.began
        self._pixels.learn(ran.pixels / len(ran.items))
        self._of(ran.alone).learn(seconds, 1, ran.pixels)
        if ran.alone:
            return
        if len(ran.items) > self._tried:
            self._larger += 1
            if self._larger == OFTEN:
                self._tried, self._larger = len(ran.items), 0

    def image_seconds(self, pixels: float, alone: bool = False) -> float:
        """Of a run for one image, which may be alone on the machine."""
        return self._of(alone).predict(1, pixels)

    def run_seconds(self, images: int, pixels: float) -> float:
        """What a crowded machine is expected to take for `images` in batches as they are worth it."""
        return self._crowded.predict(images / self.worth(pixels / max(1, images)), pixels)

    def image_wait_s(self) -> float:
        """Seconds that one more image, such as those seen lately, adds to the wait."""
        return self.run_seconds(1, self._pixels.value) / self._slots

    def worth(self, pixels: float) -> int:
        """Images of `pixels` in a batch whose fixed cost is no more than `WASTE` of it, as far as is known."""
        fixed, each = self._crowded.predict(1, 0), self._crowded.predict(0, pixels)
        needed = fixed * (1 - WASTE) / (WASTE * each) if each > 0 else float(self._max_batch)
        return max(1, min(self._max_batch, 2 * self._tried, round(needed)))

    def wait_s(self, images: int, pixels: int, running: Iterable[Ran], now: float) -> float:
        """Seconds until the runs that have begun, and what waits in the queue, are over."""
        left = sum(max(0.0, self._of(ran.alone).predict(1, ran.pixels) - (now - ran.began)) for ran in running)
        return (left + (self.run_seconds(images, pixels) if images else 0.0)) / self._slots

    def _of(self, alone: bool) -> Cost:
        return self._alone if alone else self._crowded
