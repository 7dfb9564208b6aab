"""Random crops: turned, mirrored, scaled, and with other exposure, colour, blur and noise.

Randomness is an argument: the same generator state gives the same crop.
"""

from __future__ import annotations

import cv2
import numpy as np

from training.nuclei.data import Picture, standardised
from training.nuclei.targets import Targets, from_labels


def random_crop(picture: Picture, side: int, rng: np.random.Generator) -> tuple[np.ndarray, Targets]:
    """One training sample.

    Returns:
        Pixels (3, side, side) float32 as the network's first convolution sees them, and the targets.
    """
    height, width = picture.labels.shape
    scale = picture.scale * float(np.exp(np.clip(rng.normal(0.0, 0.2), -0.5, 0.5)))
    angle = rng.uniform(0.0, 2 * np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2
    mirror = rng.choice([-1.0, 1.0])
    stretch = float(np.exp(rng.normal(0.0, 0.06)))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * stretch, 1.0 / stretch]) * scale
    half = side / 2 / scale
    centre = np.array([_centre(width, half, rng), _centre(height, half, rng)])
    matrix = np.hstack([turn, (np.array([side / 2, side / 2]) - turn @ centre)[:, None]])

    pixels = _recoloured(standardised(picture.image), picture.coloured, rng)
    area = (side, side)
    pixels = cv2.warpAffine(pixels, matrix, area, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    labels = cv2.warpAffine(picture.labels.astype(np.float32), matrix, area, flags=cv2.INTER_NEAREST)
    valid = cv2.warpAffine(np.ones((height, width), np.uint8), matrix, area, flags=cv2.INTER_NEAREST) > 0
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 1.8))
    if rng.random() < 0.3:
        pixels = pixels + rng.normal(0.0, rng.uniform(0.0, 0.25), pixels.shape).astype(np.float32)
    pixels = np.arcsinh(pixels) * valid[..., None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32), from_labels(labels.astype(np.int32), valid)


def _centre(length: int, half: float, rng: np.random.Generator) -> float:
    """Where a crop's middle lies along one side: inside the picture, a little beyond its edge allowed."""
    low, high = 0.7 * half, length - 0.7 * half
    return float(rng.uniform(low, high)) if high > low else length / 2


def _recoloured(pixels: np.ndarray, coloured: bool, rng: np.random.Generator) -> np.ndarray:
    """Other exposure and stain on standardised pixels (H, W, 3); they stay near mean 0, deviation 1."""
    if rng.random() < 0.15:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    elif coloured:
        mix = np.eye(3) + rng.normal(0.0, 0.08, (3, 3))
        pixels = pixels @ mix.T.astype(np.float32) + rng.normal(0.0, 0.08, 3).astype(np.float32)
    gain = np.exp(rng.normal(0.0, 0.25))
    shift = rng.normal(0.0, 0.15)
    if rng.random() < 0.4:  # gamma, on the span of this picture
        low, high = float(pixels.min()), float(pixels.max())
        unit = (pixels - low) / (high - low + 1e-6)
        pixels = unit ** float(np.exp(rng.normal(0.0, 0.3))) * (high - low) + low
        pixels = (pixels - pixels.mean()) / (pixels.std() + 0.05)
    return np.asarray(pixels * gain + shift, np.float32)
