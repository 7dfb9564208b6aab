"""Photographs of 12 megapixels decoded at a reduced size, against decoding all of their pixels.

    python -m bench.photos

Both go from the bytes of a JPEG to the network's input: survey, decode, scale, place. They run in turns (A B A B ...),
so that a busy machine slows both alike, and the ratio is taken turn by turn. The photograph is drawn, with noise that
makes it about as large a file as a camera's.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from server import images
from server.preprocess import InputSpec, place

SIZE = (3024, 4032)
MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Scene:
    """How the photograph is stored, and the longest side that the network sees."""

    name: str
    largest: int
    turns: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> InputSpec:
        return InputSpec(multiple=16, max_size=(self.largest, self.largest), short_side=16, max_scale=1.0)


SCENES = (
    Scene("baseline, to 1408", 1408, turns=15),  # the bundled nuclei model
    Scene("progressive, to 1408", 1408, turns=9, options={"progressive": True}),
    Scene("baseline, to 640", 640, turns=15),
)
ROW = "{:<22}{:>9}{:>7}{:>9}{:>12}{:>20}{:>9}{:>12}{:>12}"

NOTES = """\
Times and ratios are medians over the turns. Peak memory is what a fresh process takes beyond what it held before, the
decoder's own included. The difference is the mean between the two inputs of the network, in grey levels.
"""

Prepare = Callable[[bytes, InputSpec], NDArray[np.uint8]]


def main() -> int:
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    versions = f"Python {platform.python_version()}, Pillow {PIL.__version__}"
    print(f"load average {load}, {os.cpu_count()} cores, {versions}\n")
    head = ("4032 x 3024", "file MB", "turns", "full ms", "reduced ms", "ratio (min..max)", "full MB", "reduced MB")
    print(ROW.format(*head, "difference"))
    photograph = Image.fromarray(draw(SIZE))
    alike = True
    for scene in SCENES:
        payload = encode(photograph, **scene.options)
        ours, theirs = reduced(payload, scene.spec), full(payload, scene.spec)  # also warms both up
        difference = np.abs(ours.astype(int) - theirs).mean()
        alike &= bool(difference < 1)
        full_s, reduced_s = time_in_turns(payload, scene)
        ratios = [slow / quick for slow, quick in zip(full_s, reduced_s, strict=True)]
        row = (
            scene.name,
            f"{len(payload) / 1e6:.1f}",
            scene.turns,
            f"{median(full_s) * 1e3:.1f}",
            f"{median(reduced_s) * 1e3:.1f}",
            f"{median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})",
            f"{peak_mb(full, payload, scene.spec):.0f}",
            f"{peak_mb(reduced, payload, scene.spec):.0f}",
            f"{difference:.2f}",
        )
        print(ROW.format(*row), flush=True)
    print(f"\n{NOTES}The inputs {'agree' if alike else 'DIFFER'}.")
    return 0 if alike else 1


def full(payload: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    file = images.survey(payload, MAX_PIXELS)
    return place(images.decode(file), spec.frame(file.size))


def reduced(payload: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    file = images.survey(payload, MAX_PIXELS)
    frame = spec.frame(file.size)
    return place(images.decode(file, frame.content), frame)


def draw(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Clouds of colour, coarse and fine, under a sensor's noise."""
    random = np.random.default_rng(0)
    picture = random.normal(120, 3, (*size, 3)).astype(np.float32)
    for grain, contrast in ((256, 50), (32, 20), (4, 8)):
        cloud = random.normal(0, contrast, (size[0] // grain + 1, size[1] // grain + 1, 3)).astype(np.float32)
        picture += cv2.resize(cloud, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255).astype(np.uint8)


def encode(photograph: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    photograph.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def time_in_turns(payload: bytes, scene: Scene) -> tuple[list[float], list[float]]:
    """Seconds of each turn, full and reduced."""
    full_s, reduced_s = [], []
    for _ in range(scene.turns):
        full_s.append(time_s(full, payload, scene.spec))
        reduced_s.append(time_s(reduced, payload, scene.spec))
    return full_s, reduced_s


def time_s(prepare: Prepare, payload: bytes, spec: InputSpec) -> float:
    started = perf_counter()
    prepare(payload, spec)
    return perf_counter() - started


def peak_mb(prepare: Prepare, payload: bytes, spec: InputSpec) -> float:
    """The most memory one call takes beyond its inputs, measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_rise_mb, prepare, payload, spec).result()


def _rise_mb(prepare: Prepare, payload: bytes, spec: InputSpec) -> float:
    prepare(encode(Image.new("RGB", (64, 64))), spec)  # loads what is loaded on first use
    before = _peak_mb()
    prepare(payload, spec)
    return _peak_mb() - before


def _peak_mb() -> float:
    """The most this process has held. On Linux `ru_maxrss` would begin with the peak of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    sys.exit(main())
