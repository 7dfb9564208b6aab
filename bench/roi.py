"""Squares over boxes to COCO strings: our decoder and encoder against PyTorch's functions, full frames and pycocotools.

    python -m bench.roi

The usual way is that of the code bases on a CPU: PyTorch grows a mask over its box, it is laid into a frame of the
picture's size, and the frames go to pycocotools. Both take the same tensors, and the masks are compared. They run in
turns (A B A B ...) on one thread, whose CPU time is measured, and the ratio is taken turn by turn. The scenes are
fixed: smooth 28 x 28 logits, box sides log-uniform, seed 0.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
from dataclasses import dataclass
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn import functional

from bench.prototypes import least_overlap, time_s
from server import rle
from server.geometry import Frame
from server.masks import RoiMasks
from server.masks.roi import RULES, Paste

SIDE = 28

Outputs = dict[str, NDArray[Any]]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    masks: int
    size: Size
    sides: tuple[int, int]  # of boxes, pixels
    turns: int


SCENES = (
    Scene("100 masks, 640 x 480", 100, (480, 640), (16, 300), turns=31),
    Scene("300 masks, 4000 x 3000", 300, (3000, 4000), (40, 800), turns=5),
)
ROW = "{:<24}{:<13}{:>6}{:>11}{:>10}{:>13}{:>20}{:>13}{:>10}"


def main() -> int:
    print(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores\n")
    print(
        ROW.format(
            "scene", "paste", "turns", "decode ms", "+ RLE ms", "PyTorch ms", "ratio (min..max)", "equal", "peak MB"
        )
    )
    torch.set_num_threads(1)
    alike = True
    for scene in SCENES:
        outputs = draw(scene)
        for paste in RULES:
            alike &= measure(scene, paste, outputs)
    print("\nPeak memory is that of decoding alone, one mask after the other (tracemalloc).")
    print(f"Masks that are not equal overlap by {'more' if alike else 'LESS'} than 0.999.")
    return 0 if alike else 1


def measure(scene: Scene, paste: Paste, outputs: Outputs) -> bool:
    """Print a row; whether the masks are alike."""
    masks, frame = RoiMasks(paste=paste), Frame(size=scene.size, input_size=scene.size, content=scene.size)
    found, wanted = ours(masks, outputs, frame), theirs(masks, outputs, frame)
    decode_s, ours_s, theirs_s = [], [], []
    for _ in range(scene.turns):
        decode_s.append(time_s(lambda: list(masks.decode(outputs, frame, 0.5))))
        ours_s.append(time_s(lambda: ours(masks, outputs, frame)))
        theirs_s.append(time_s(lambda: theirs(masks, outputs, frame)))
    ratios = [slow / quick for slow, quick in zip(theirs_s, ours_s, strict=True)]
    row = (
        scene.name,
        paste,
        scene.turns,
        f"{median(decode_s) * 1e3:.2f}",
        f"{median(ours_s) * 1e3:.2f}",
        f"{median(theirs_s) * 1e3:.1f}",
        f"{median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})",
        f"{sum(a == b for a, b in zip(found, wanted, strict=True))} of {len(wanted)}",
        f"{peak_mb(masks, outputs, frame):.1f}",
    )
    print(ROW.format(*row), flush=True)
    return least_overlap(found, wanted, scene.size) > 0.999


def draw(scene: Scene) -> Outputs:
    random = np.random.default_rng(0)
    height, width = scene.size
    logits = random.normal(0, 1, (scene.masks, SIDE, SIDE)).astype(np.float32)
    logits = np.stack([cv2.GaussianBlur(square, (0, 0), 4) * 8 + 1.5 for square in logits])  # most of a box is mask
    low, high = np.log(scene.sides)
    sides = np.exp(random.uniform(low, high, (scene.masks, 2)))
    corners = random.uniform(0, 1, (scene.masks, 2)) * ([width, height] - sides)
    return {
        "boxes": np.hstack([corners, corners + sides]).astype(np.float32),
        "scores": np.full(scene.masks, 0.9, np.float32),
        "labels": np.zeros(scene.masks, np.int32),
        "mask_logits": logits,
    }


def ours(masks: RoiMasks, outputs: Outputs, frame: Frame) -> list[str]:
    return rle.encode([segment.patch for segment in masks.decode(outputs, frame, 0.5)], frame.size)


def theirs(masks: RoiMasks, outputs: Outputs, frame: Frame) -> list[str]:
    """One mask after the other, in a frame that lies in the column order that pycocotools asks for."""
    squares = torch.from_numpy(outputs["mask_logits"]).sigmoid()[:, None]
    paste = torchvision if masks.paste == "torchvision" else detectron2
    strings = []
    for square, box in zip(squares, torch.from_numpy(outputs["boxes"]), strict=True):
        full = np.zeros(frame.size, np.uint8, order="F")
        top, left, bits = paste(square, box, frame.size)
        full[top : top + bits.shape[0], left : left + bits.shape[1]] = bits.numpy()
        strings.append(coco.encode(full)["counts"].decode())
    return strings


def torchvision(square: torch.Tensor, box: torch.Tensor, size: Size) -> tuple[int, int, torch.Tensor]:
    half = (box[2:] - box[:2]) * 0.5 * ((SIDE + 2) / SIDE)
    centre = (box[2:] + box[:2]) * 0.5
    left, top, right, bottom = torch.cat([centre - half, centre + half]).long().tolist()
    framed = functional.pad(square, (1, 1, 1, 1))[None]
    grown = functional.interpolate(framed, (bottom - top + 1, right - left + 1), mode="bilinear", align_corners=False)
    y, x = max(top, 0), max(left, 0)
    return y, x, grown[0, 0, y - top : size[0] - top, x - left : size[1] - left] > 0.5


def detectron2(square: torch.Tensor, box: torch.Tensor, size: Size) -> tuple[int, int, torch.Tensor]:
    left, top = (box[:2].floor() - 1).clamp(min=0).int().tolist()
    right, bottom = torch.minimum(box[2:].ceil() + 1, torch.tensor(size[::-1])).int().tolist()
    x, y = (
        (torch.arange(first, stop, dtype=torch.float32) + 0.5 - box[i]) / (box[i + 2] - box[i]) * 2 - 1
        for i, first, stop in ((0, left, right), (1, top, bottom))
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    return top, left, functional.grid_sample(square[None], grid, align_corners=False)[0, 0] >= 0.5


def peak_mb(masks: RoiMasks, outputs: Outputs, frame: Frame) -> float:
    tracemalloc.start()
    try:
        for _ in masks.decode(outputs, frame, 0.5):
            pass
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    sys.exit(main())
