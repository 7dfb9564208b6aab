"""Pictures drawn by the project itself, for golden samples and parity: bright blobs on a dim, uneven ground.

The same seed draws the same picture on every machine.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def draw(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Something like fluorescent nuclei.

    Args:
        size: (height, width).

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    canvas: NDArray[Any] = np.zeros(size, np.float32)
    for _ in range(max(3, height * width // 1500)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(5, 13)), int(rng.integers(5, 13)))
        blob = np.zeros(size, np.float32)
        cv2.ellipse(blob, centre, axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(60, 180)), cv2.FILLED)
        canvas = np.maximum(canvas, blob)
    canvas = cv2.GaussianBlur(canvas, (0, 0), 1.0)
    ground = np.linspace(10, 25, width, dtype=np.float32)[None, :] + rng.normal(0, 3, size).astype(np.float32)
    grey = np.clip(canvas + ground, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
