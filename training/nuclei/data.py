"""The nuclei pictures on disk: which are for training, and how they come into memory.

`fold` 0 is the test and is refused here. Of folds 1 to 4 every twelfth `group` (adjoining tiles stay together) is kept
aside for choosing grouping parameters; all the rest is trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SHORT_SIDE = 512  # a smaller picture is enlarged until its short side has this many pixels
TEST_FOLD = 0
HELD_OUT_EVERY = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """One annotated picture at its original size."""

    name: str
    stratum: str
    image: np.ndarray  # (H, W, 3) uint8 RGB
    labels: np.ndarray  # (H, W) int32, 0 background, 1.. one value a nucleus
    coloured: bool  # False: the three channels are one

    @property
    def scale(self) -> float:
        """Network pixels per original pixel."""
        return max(1.0, SHORT_SIDE / min(self.labels.shape))


def is_chosen(record: dict, held_out: bool) -> bool:
    """Whether a picture belongs to the training pictures, or to the held-out ones; a test picture to neither."""
    return record["fold"] != TEST_FOLD and (record["group"] % HELD_OUT_EVERY == 0) == held_out


def load(folder: Path, held_out: bool) -> list[Picture]:
    """Read the training pictures, or the held-out ones, of `folder` (holds `instances.json` and `images/`)."""
    index = json.loads((folder / "instances.json").read_text())
    annotations: dict[int, list[dict]] = {}
    for annotation in index["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [record for record in index["images"] if is_chosen(record, held_out)]
    return [_read(folder, record, annotations.get(record["id"], [])) for record in chosen]


def _read(folder: Path, record: dict, annotations: list[dict]) -> Picture:
    image = np.asarray(Image.open(folder / "images" / record["file_name"]).convert("RGB"))
    labels = np.zeros(image.shape[:2], np.int32)
    for label, annotation in enumerate(annotations, start=1):
        labels[coco_mask.decode(annotation["segmentation"]).astype(bool)] = label
    coloured = bool((image != image[..., :1]).any())
    return Picture(record["file_name"], record["stratum"], image, labels, coloured)


def standardised(image: np.ndarray) -> np.ndarray:
    """What `models.blocks.normalise.Standardise` makes of a whole picture, (H, W, 3) float32, before asinh."""
    x = image.astype(np.float32)
    return (x - x.mean()) / (x.std() + 2.0)


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    """The picture enlarged as the server does it: bilinear, pixel centres aligned."""
    if scale == 1.0:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
