"""Prototype masks to COCO strings: our decoder and encoder against full frames, `cv2.resize` and pycocotools.

    python -m bench.prototypes

The usual way sums planes, cuts off at the box, resizes every mask to the picture and hands the frames to pycocotools.
Both take the same tensors, and the masks are compared. They run in turns (A B A B ...) on one thread, whose CPU time is
measured, and the ratio is taken turn by turn. The scene is fixed: blobs in boxes, seed 0.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from server import rle
from server.geometry import Frame
from server.masks import PrototypeMasks

INPUT = 256
GRID = 64
PLANES = 32

Outputs = dict[str, NDArray[Any]]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    rows: int  # of 100 that are in use
    size: Size
    turns: int


SCENES = (
    Scene("15 objects, 640 x 480", 15, (480, 640), turns=101),
    Scene("100 objects, 640 x 480", 100, (480, 640), turns=31),
    Scene("15 objects, 4000 x 3000", 15, (3000, 4000), turns=9),
)
ROW = "{:<26}{:>7}{:>12}{:>12}{:>16}{:>20}{:>12}"


def main() -> int:
    print(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores\n")
    print(ROW.format("scene", "turns", "decode ms", "+ RLE ms", "full frames ms", "ratio (min..max)", "equal"))
    cv2.setNumThreads(1)
    alike = True
    for scene in SCENES:
        outputs = draw(scene)
        frame = Frame(size=scene.size, input_size=(INPUT, INPUT), content=(INPUT, INPUT))
        found, wanted = ours(outputs, frame), full_frames(outputs, frame)
        equal = sum(a == b for a, b in zip(found, wanted, strict=True))
        alike &= least_overlap(found, wanted, scene.size) > 0.999
        decode_s, ours_s, theirs_s = [], [], []
        for _ in range(scene.turns):
            decode_s.append(time_s(lambda: list(PrototypeMasks().decode(outputs, frame, 0.5))))  # noqa: B023
            ours_s.append(time_s(lambda: ours(outputs, frame)))  # noqa: B023
            theirs_s.append(time_s(lambda: full_frames(outputs, frame)))  # noqa: B023
        ratios = [slow / quick for slow, quick in zip(theirs_s, ours_s, strict=True)]
        row = (
            scene.name,
            scene.turns,
            f"{median(decode_s) * 1e3:.2f}",
            f"{median(ours_s) * 1e3:.2f}",
            f"{median(theirs_s) * 1e3:.1f}",
            f"{median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})",
            f"{equal} of {len(wanted)}",
        )
        print(ROW.format(*row), flush=True)
    print(f"\nMasks that are not equal overlap by {'more' if alike else 'LESS'} than 0.999.")
    return 0 if alike else 1


def draw(scene: Scene) -> Outputs:
    random = np.random.default_rng(0)
    planes = random.normal(0, 1, (PLANES, GRID, GRID)).astype(np.float32)
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), 4) * 8 for plane in planes])
    planes[0] = 1  # masks then fill most of their boxes, as real ones do
    coefficients = random.normal(0, 0.3, (100, PLANES)).astype(np.float32)
    coefficients[:, 0] = 1.5
    sides = random.uniform(0.15, 0.4, (100, 2)) * INPUT
    corners = random.uniform(0, 1, (100, 2)) * (INPUT - sides)
    return {
        "boxes": np.hstack([corners, corners + sides]).astype(np.float32),
        "scores": np.where(np.arange(100) < scene.rows, 0.9, 0.1).astype(np.float32),
        "labels": np.zeros(100, np.int32),
        "coefficients": coefficients,
        "prototypes": planes,
    }


def ours(outputs: Outputs, frame: Frame) -> list[str]:
    segments = PrototypeMasks().decode(outputs, frame, 0.5)
    return rle.encode([segment.patch for segment in segments], frame.size)


def full_frames(outputs: Outputs, frame: Frame) -> list[str]:
    """The same rule in full frames, which lie in the column order that pycocotools asks for."""
    (kept,) = np.nonzero(outputs["scores"] > 0.5)
    sums = outputs["coefficients"][kept] @ outputs["prototypes"].reshape(PLANES, -1)
    probabilities = (1 / (1 + np.exp(-sums))).reshape(-1, GRID, GRID)
    height, width = frame.size
    frames = np.zeros((height, width, len(kept)), np.uint8, order="F")
    for i, box in enumerate(outputs["boxes"][kept] * (GRID / INPUT)):
        cells = np.zeros((GRID, GRID), np.float32)
        window = np.s_[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))]
        cells[window] = probabilities[i][window]
        frames[:, :, i] = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    return [each["counts"].decode() for each in coco.encode(frames)]


def least_overlap(found: list[str], wanted: list[str], size: Size) -> float:
    masks = [[{"size": list(size), "counts": text} for text in texts] for texts in (found, wanted)]
    return min(float(coco.iou([a], [b], [0])[0, 0]) if a != b else 1.0 for a, b in zip(*masks, strict=True))


def time_s(work: Callable[[], object]) -> float:
    started = thread_time()
    work()
    return thread_time() - started


if __name__ == "__main__":
    sys.exit(main())
