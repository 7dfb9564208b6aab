"""Pictures drawn by the project itself: `draw` for golden samples and parity, the other two for the playground.

    draw                bright blobs on a dim, uneven ground
    draw_fluorescence   stained nuclei in a dark field, some of them touching
    draw_tissue         a section in the colours of haematoxylin and eosin, with a gland or two

The same seed draws the same picture on every machine. The playground's samples come from

    python -m export.sample server/http/page
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]


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


def draw_fluorescence(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Nuclei under a fluorescence microscope: soft edges, chromatin inside, some close together, a haze around them.

    Args:
        size: (height, width).

    Returns:
        (H, W, 3) uint8 RGB, grey.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    light = np.zeros(size, np.float32)
    for centre in _scatter(size, 21.0, height * width // 2300, rng):
        outline = _outline(centre, float(rng.uniform(8, 14.5)), float(rng.uniform(0.62, 1.0)), 0.06, rng)
        nucleus = cv2.GaussianBlur(_filled(size, [outline]), (0, 0), 1.3)
        light = np.maximum(light, nucleus * np.float32(rng.uniform(0.38, 0.95)))
    chromatin = 1 + 0.16 * _cloud(size, 2.2, rng) + 0.10 * _cloud(size, 5.0, rng)
    haze = cv2.GaussianBlur(light, (0, 0), 22)
    ground = 0.035 + 0.02 * _cloud(size, 90, rng)
    grey = light * chromatin + 0.16 * haze + ground + 0.008 * rng.standard_normal(size, np.float32)
    return np.repeat((np.clip(grey, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def draw_tissue(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """A tissue section in two stains: violet nuclei, pink fibres, and glands whose nuclei stand around an empty middle.

    Stains take light away, each its own colours, so they are summed as optical densities and end as `exp(-sum)`
    (Beer-Lambert). Haematoxylin's vector is that of Ruifrok & Johnston 2001, eosin's is a little warmer than theirs.

    Args:
        size: (height, width).

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    glands = [
        _outline((x * width, y * height), radius * height, 0.8, 0.05, rng)
        for x, y, radius in ((0.30, 0.42, 0.17), (0.76, 0.70, 0.15), (0.70, 0.16, 0.11))
    ]
    middles = cv2.GaussianBlur(_filled(size, glands), (0, 0), 2.0)
    walls = [_grown(gland, 13.0) for gland in glands]
    cells = cv2.GaussianBlur(_filled(size, [_grown(gland, 27.0) for gland in glands]), (0, 0), 3.0)

    fibres = _fibres(size, rng)
    eosin = np.maximum(0.44 + 0.13 * fibres + 0.05 * _cloud(size, 30, rng), 0.16) * (1 - 0.35 * cells) + 0.2 * cells
    haematoxylin = 0.06 + 0.05 * cells + 0.015 * _cloud(size, 12, rng)
    eosin, haematoxylin = eosin * (1 - 0.93 * middles), haematoxylin * (1 - 0.9 * middles)

    around = [point for wall in walls for point in _along(wall, 17.0, rng)]
    room = cv2.dilate(_filled(size, [_grown(gland, 31.0) for gland in glands]), np.ones((3, 3), np.uint8))
    between = [point for point in _scatter(size, 19.0, height * width // 1500, rng) if not _at(room, point)]
    chromatin = 1 + 0.20 * _cloud(size, 1.6, rng) + 0.12 * _cloud(size, 4.0, rng)
    stain = np.zeros(size, np.float32)
    for number, centre in enumerate(around + between):
        slim = number >= len(around) and rng.random() < 0.45  # fibroblasts lie among the fibres
        radius, flat = (rng.uniform(7.5, 10.5), 0.42) if slim else (rng.uniform(6.6, 8.8), rng.uniform(0.74, 1.0))
        shape = _filled(size, [_outline(centre, float(radius), float(flat), 0.05, rng)])
        soft = cv2.GaussianBlur(shape, (0, 0), 0.9)
        rim = soft * (1 - cv2.GaussianBlur(shape, (0, 0), 2.6))  # the membrane takes more stain than the middle
        stain = np.maximum(stain, (0.8 * soft + 0.7 * rim) * np.float32(rng.uniform(0.75, 1.15)))
    haematoxylin = haematoxylin + stain * chromatin
    eosin = eosin * (1 - 0.5 * np.minimum(stain, 1))

    blue, pink = np.array([0.650, 0.704, 0.286], np.float32), np.array([0.08, 0.90, 0.42], np.float32)
    density = haematoxylin[..., None] * blue * 1.25 + eosin[..., None] * pink * 1.15
    paper = np.array([0.965, 0.955, 0.965], np.float32)
    grain = 0.008 * rng.standard_normal((*size, 1), np.float32)
    colours = paper * np.exp(-density) + grain
    return np.asarray(np.clip(colours, 0, 1) * 255, np.uint8)


Point = tuple[float, float]


def _outline(centre: Point, radius: float, flat: float, rough: float, rng: np.random.Generator) -> Floats:
    """A closed, slightly uneven oval: (64, 2) points x, y. `flat` is the short axis over the long one."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = [rough / k * np.sin(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
    reach = radius * (1 + sum(waves))
    x, y = reach * np.cos(angles), flat * reach * np.sin(angles)
    turn = rng.uniform(0, np.pi)
    points = [x * np.cos(turn) - y * np.sin(turn) + centre[0], x * np.sin(turn) + y * np.cos(turn) + centre[1]]
    return np.stack(points, axis=1).astype(np.float32)


def _grown(outline: Floats, by: float) -> Floats:
    """The outline pushed `by` pixels away from its middle."""
    arms = outline - outline.mean(axis=0)
    return np.asarray(outline + by * arms / np.linalg.norm(arms, axis=1, keepdims=True), np.float32)


def _filled(size: tuple[int, int], outlines: list[Floats]) -> Floats:
    """(H, W): 1 inside any of the outlines, 0 outside."""
    canvas = np.zeros(size, np.float32)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.round(outline * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    return canvas


def _scatter(size: tuple[int, int], apart: float, tries: int, rng: np.random.Generator) -> list[Point]:
    """Points at least `apart` from each other, up to `tries` of them."""
    height, width = size
    points: list[Point] = []
    for _ in range(3 * tries):
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        if len(points) < tries and all((x - a) ** 2 + (y - b) ** 2 >= apart**2 for a, b in points):
            points.append((x, y))
    return points


def _along(outline: Floats, apart: float, rng: np.random.Generator) -> list[Point]:
    """Points on an outline, about `apart` from one to the next."""
    closed = np.concatenate([outline, outline[:1]])
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    places = np.arange(0, way[-1] - apart / 2, apart)
    places = places + rng.uniform(-0.12, 0.12, len(places)) * apart
    xs, ys = np.interp(places, way, closed[:, 0]), np.interp(places, way, closed[:, 1])
    return [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]


def _cloud(size: tuple[int, int], sigma: float, rng: np.random.Generator) -> Floats:
    """Smooth noise with mean 0 and deviation 1, `sigma` pixels coarse."""
    step = max(1, int(sigma / 2))  # coarse noise is made small and grown
    small = (size[0] // step + 2, size[1] // step + 2)
    noise = cv2.GaussianBlur(rng.standard_normal(small, np.float32), (0, 0), sigma / step)
    noise = cv2.resize(noise, (small[1] * step, small[0] * step), interpolation=cv2.INTER_LINEAR)
    noise = noise[: size[0], : size[1]]
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def _fibres(size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Wavy strands, deviation 1: noise drawn out along x, read through bent rows."""
    height, width = size
    long = cv2.GaussianBlur(rng.standard_normal((height * 2, width), np.float32), (0, 0), sigmaX=28, sigmaY=1.6)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    bent = rows + height / 2 + 26 * _cloud(size, 60, rng) + 0.25 * columns
    strands = cv2.remap(long, columns, bent, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray((strands - strands.mean()) / strands.std(), np.float32)


def _at(canvas: NDArray[Any], point: Point) -> bool:
    height, width = canvas.shape
    return bool(canvas[min(height - 1, int(point[1])), min(width - 1, int(point[0]))] > 0)


SAMPLE_SIZE = (480, 640)
SAMPLES = {"sample-fluorescence.png": (draw_fluorescence, 4), "sample-tissue.jpg": (draw_tissue, 7)}  # name: what, seed


def write_samples(folder: Path) -> None:
    """Write the playground's samples."""
    for name, (drawing, seed) in SAMPLES.items():
        picture = Image.fromarray(drawing(SAMPLE_SIZE, seed))
        if drawing is draw_fluorescence:
            picture = picture.convert("L")  # three equal channels are one
        picture.save(folder / name, optimize=True, quality=90)


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))
