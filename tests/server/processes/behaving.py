"""What the engine process of a test opens: a bundle that is real, and an engine whose pictures tell it what to do.

The grey of a picture's first pixel: 13 raises, 17 is answered with NaN, 19 kills the process, 23 never comes back, 29
takes half a second, 31 loses the device. Others take `FAKE_DELAY_S` seconds a run. `FAKE_LOAD=die` kills the process
while it loads. To the file `FAKE_TELL`, every run adds a letter: a when alone, c in a crowd.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engines.choice import Wanted
from server.errors import DeviceFault
from server.loading import Loaded
from server.manifest import read_bundle
from tests.server.fakes import FakeEngine

POISON, NAN, KILL, HANG, SLOW, FAULT = 13, 17, 19, 23, 29, 31
SLOW_S = 0.5


class Behaving(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.tell = os.environ.get("FAKE_TELL")
        self.delay_s = float(os.environ.get("FAKE_DELAY_S", "0"))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._say("c")
        return self._obey(inputs)

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._say("a")
        return self._obey(inputs)

    def _obey(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        told = set(np.asarray(inputs["images"])[:, 0, 0, 0].tolist())
        if KILL in told:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG in told:
            time.sleep(3600)
        if FAULT in told:
            raise DeviceFault("cudaStreamSynchronize: cudaErrorIllegalAddress (700)")
        if SLOW in told:
            time.sleep(SLOW_S)
        return super().run(inputs)

    def _say(self, how: str) -> None:
        if self.tell:
            with open(self.tell, "a") as file:
                file.write(how)


def load(folder: Path, wanted: Wanted) -> Loaded:
    if os.environ.get("FAKE_LOAD") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return Loaded(read_bundle(folder), Behaving(), pace_s=1e-9)
