"""Our run-length encoder against painting each mask in a full frame for `pycocotools.mask.encode`.

    python -m bench.masks

Both take the same list of patches and give the same list of strings, which is checked. They run in turns
(A B A B ...), so that a busy machine slows both alike, and the ratio is taken turn by turn. Both use one thread and
never wait, so CPU time is measured, which other work on the machine disturbs less. The scenes are fixed: ellipses with
a hole, sides log-uniform, seed 0.
"""

from __future__ import annotations

import os
import platform
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import thread_time

import numpy as np
from pycocotools import mask as coco

from server import rle
from server.segments import Patch

Encode = Callable[[Sequence[Patch], tuple[int, int]], list[str]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn: `instances` ellipses in a frame of `size`, their sides between the two `sides` in pixels."""

    name: str
    instances: int
    size: tuple[int, int]
    sides: tuple[int, int]
    turns: int


SCENES = (
    Scene("objects, 640 x 480", 100, (480, 640), (16, 300), turns=51),
    Scene("objects, 4000 x 3000", 300, (3000, 4000), (40, 800), turns=9),
    Scene("nuclei, 1024 x 1024", 400, (1024, 1024), (10, 30), turns=15),
)
ROW = "{:<20}{:>6}{:>7}{:>9}{:>16}{:>22}{:>9}{:>16}"


NOTES = """\
Times and ratios are medians over the turns, in CPU time of the thread. pycocotools gets each mask painted in a fresh
(height, width) uint8 frame that already lies in the column order it asks for. Peak memory is what numpy and Python hold
above the inputs (tracemalloc, in a pass of its own); the 4 bytes a pixel that pycocotools takes in C for its runs come
on top.
"""


def main() -> int:
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"load average {load}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}\n")
    head = ("scene", "masks", "turns", "ours ms", "pycocotools ms", "ratio (min..max)", "ours MB", "pycocotools MB")
    print(ROW.format(*head))
    same = True
    for scene in SCENES:
        patches = list(draw(scene))
        same &= rle.encode(patches, scene.size) == paste_and_encode(patches, scene.size)  # also warms both up
        ours_s, theirs_s = time_in_turns(patches, scene)
        ratios = [theirs / ours for ours, theirs in zip(ours_s, theirs_s, strict=True)]
        row = (
            scene.name,
            scene.instances,
            scene.turns,
            f"{median(ours_s) * 1e3:.2f}",
            f"{median(theirs_s) * 1e3:.1f}",
            f"{median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})",
            f"{peak_mb(rle.encode, patches, scene.size):.1f}",
            f"{peak_mb(paste_and_encode, patches, scene.size):.1f}",
        )
        print(ROW.format(*row), flush=True)
    print(f"\n{NOTES}The strings are {'equal' if same else 'DIFFERENT'}.")
    return 0 if same else 1


def draw(scene: Scene) -> Iterator[Patch]:
    """Ellipses that fill their patch, each with a round hole off its centre."""
    random = np.random.default_rng(0)
    height, width = scene.size
    for _ in range(scene.instances):
        h, w = np.exp(random.uniform(np.log(scene.sides[0]), np.log(scene.sides[1]), size=2)).astype(int)
        y, x = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
        down = ((np.arange(h) + 0.5) / h * 2 - 1)[:, None]  # (h, 1), -1 to 1
        right = (np.arange(w) + 0.5) / w * 2 - 1  # (w,)
        hole = (down - 0.3) ** 2 + (right - 0.2) ** 2 < 0.06
        yield Patch(y, x, (down**2 + right**2 <= 1) & ~hole)


def paste_and_encode(patches: Sequence[Patch], size: tuple[int, int]) -> list[str]:
    """The usual way. The frame is born in the column order that pycocotools asks for, which spares it a copy."""
    strings = []
    for patch in patches:
        h, w = patch.bits.shape
        frame = np.zeros(size, np.uint8, order="F")
        frame[patch.y : patch.y + h, patch.x : patch.x + w] = patch.bits
        strings.append(coco.encode(frame)["counts"].decode())
    return strings


def time_in_turns(patches: Sequence[Patch], scene: Scene) -> tuple[list[float], list[float]]:
    """Seconds of each turn, ours and theirs."""
    ours_s, theirs_s = [], []
    for _ in range(scene.turns):
        ours_s.append(time_s(rle.encode, patches, scene.size))
        theirs_s.append(time_s(paste_and_encode, patches, scene.size))
    return ours_s, theirs_s


def time_s(encode: Encode, patches: Sequence[Patch], size: tuple[int, int]) -> float:
    started = thread_time()
    encode(patches, size)
    return thread_time() - started


def peak_mb(encode: Encode, patches: Sequence[Patch], size: tuple[int, int]) -> float:
    """The most memory one call holds beyond its inputs, its result included."""
    tracemalloc.start()
    try:
        encode(patches, size)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    sys.exit(main())
