"""What the network is asked to draw, computed from a label map.

Five planes at network resolution: inside, seam (pixels where two nuclei meet), energy (distance to the rim over its
maximum in the nucleus), and the offset (dy, dx) to the nucleus' centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

OFFSET_UNIT = 16.0  # network pixels: keeps the offset planes near one
RIM_SIGMA = 3.0  # network pixels: how far the extra weight of a rim reaches


@dataclass(frozen=True, slots=True)
class Targets:
    """Planes (h, w) float32 unless said otherwise."""

    inside: np.ndarray
    seam: np.ndarray
    energy: np.ndarray
    offset: np.ndarray  # (2, h, w), in OFFSET_UNIT, zero outside nuclei
    weight: np.ndarray  # how much a pixel of `inside` counts; 0 outside the picture


def from_labels(labels: np.ndarray, valid: np.ndarray) -> Targets:
    """
    Args:
        labels: (h, w) int32; 0 background.
        valid: (h, w) bool; False where the crop reaches beyond the picture.
    """
    inside = labels > 0
    # a nucleus' rim: a 4-neighbour belongs to something else
    rim = np.zeros(labels.shape, bool)
    vertical, horizontal = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    rim[1:] |= vertical
    rim[:-1] |= vertical
    rim[:, 1:] |= horizontal
    rim[:, :-1] |= horizontal
    core = (inside & ~rim).astype(np.uint8)
    depth = (cv2.distanceTransform(core, cv2.DIST_L2, 5) + 1.0) * inside

    count = int(labels.max()) + 1
    flat = labels.ravel()
    deepest = np.zeros(count, np.float32)
    np.maximum.at(deepest, flat, depth.ravel())
    area = np.maximum(np.bincount(flat, minlength=count), 1)
    rows, columns = np.indices(labels.shape, dtype=np.float32)
    centre_y = np.bincount(flat, rows.ravel(), count) / area
    centre_x = np.bincount(flat, columns.ravel(), count) / area

    energy = depth / np.maximum(deepest[labels], 1.0) * inside
    offset = np.stack([centre_y[labels] - rows, centre_x[labels] - columns]) / OFFSET_UNIT * inside

    # seam: within two pixels of two different nuclei
    kernel = np.ones((5, 5), np.uint8)
    highest = cv2.dilate(labels.astype(np.float32), kernel)
    lowest = cv2.erode(np.where(inside, labels, 1 << 20).astype(np.float32), kernel)
    seam = (highest > 0) & (lowest < (1 << 20)) & (highest != lowest)

    from_rim = cv2.distanceTransform((~rim).astype(np.uint8), cv2.DIST_L2, 5).clip(max=100.0)
    weight = (1.0 + 2.0 * np.exp(-(from_rim**2) / (2 * RIM_SIGMA**2)) + 2.0 * seam) * valid
    return Targets(
        inside.astype(np.float32),
        seam.astype(np.float32),
        energy.astype(np.float32),
        offset.astype(np.float32),
        weight.astype(np.float32),
    )
