"""An engine that is real but for its network: it draws discs, and can be held, slowed or broken."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engines.choice import Wanted
from server.loading import Loaded
from server.manifest import read_bundle


class FakeEngine:
    """Three discs in every picture, whatever it shows; a picture whose first pixel is of `poison` grey raises,
    of `nan` grey is answered with NaN."""

    name = "fake"
    slots = 1

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.started = threading.Event()
        self.poison = 13
        self.nan = 17
        self.delay_s = 0.0
        self.patience_s = 30.0  # how long it lets itself be held
        self.images = 0
        self.closed = False
        self.gave_back = False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.started.set()
        if not self.free.wait(self.patience_s):
            raise RuntimeError("held too long")
        time.sleep(self.delay_s)
        images = inputs["images"]
        if (images[:, 0, 0, 0] == self.poison).any():
            raise RuntimeError("secret text of a library at /some/path")
        self.images += len(images)
        height, width = images.shape[1:3]
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        inside = np.zeros((height, width), np.float32)
        offsets = np.zeros((2, height, width), np.float32)
        radius = min(height, width) / 10
        for number in range(3):
            y, x = height / 2, width * (number + 0.5) / 3
            disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            inside[disc] = 0.7 + 0.1 * number
            offsets[0][disc], offsets[1][disc] = y - rows[disc], x - columns[disc]
        batch = len(images)
        probabilities = np.repeat(inside[None], batch, axis=0)
        probabilities[images[:, 0, 0, 0] == self.nan] = np.nan
        return {
            "inside": probabilities,
            "offsets": np.repeat(offsets[None], batch, axis=0),
        }

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.run(inputs)

    def give_back(self) -> None:
        self.gave_back = True

    def close(self) -> None:
        self.closed = True


class FakeLoader:
    """`load` for `create_app`: the bundle is real, the engine is ours."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.may_load = threading.Event()
        self.may_load.set()

    def __call__(self, folder: Path, wanted: Wanted) -> Loaded:
        self.may_load.wait(30)
        return Loaded(read_bundle(folder), self.engine, pace_s=1e-9)
