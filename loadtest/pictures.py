"""The pictures that are sent: a folder's, the repository's samples, or one that is painted here."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from loadtest.errors import CannotRun

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
SAMPLES = Path(__file__).resolve().parents[1] / "docs" / "samples"
MAX_PICTURES = 200
MAX_BYTES = 256_000_000  # all of them are held in memory, so that no disk is waited for


@dataclass(frozen=True, slots=True)
class Picture:
    name: str
    payload: bytes = field(repr=False)


def find_pictures(folder: Path | None) -> tuple[list[Picture], str]:
    """
    Args:
        folder: searched to the bottom, in the order of names; one file will do as well. None takes docs/samples, or
            paints a picture where that is not at hand.

    Returns:
        The pictures, and where they come from.

    Raises:
        CannotRun: there are none.
    """
    if folder is None:
        if not any(_paths(SAMPLES)):
            return [
                Picture("painted.jpg", paint())
            ], "one picture painted by the load tester (--images DIR sends yours)"
        folder, said = SAMPLES, "docs/samples (--images DIR sends yours)"
    else:
        said = f"--images {folder}"
    paths = [folder] if folder.is_file() else _paths(folder)
    if not paths:
        raise CannotRun(f"no picture in {folder}; files that end in {', '.join(sorted(SUFFIXES))} are taken")
    pictures: list[Picture] = []
    held = 0
    for path in paths:
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise CannotRun(f"cannot read {path}: {error.strerror}") from None
        held += len(payload)
        if pictures and (held > MAX_BYTES or len(pictures) == MAX_PICTURES):
            said += f"; the first {len(pictures)} of {len(paths)}"
            break
        pictures.append(Picture(path.name if path == folder else path.relative_to(folder).as_posix(), payload))
    return pictures, said


def paint(seed: int = 1) -> bytes:
    """A JPEG of 640 x 480: bright blobs on a grainy ground, so that decoding and finding cost what a photo's do."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (640, 480), (28, 24, 40))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, across, down = random.uniform((0, 0, 9, 9), (640, 480, 26, 26))
        draw.ellipse((x - across, y - down, x + across, y + down), fill=tuple(random.integers(110, 230, 3).tolist()))
    image = image.filter(ImageFilter.GaussianBlur(1.5))
    grain = random.normal(0.0, 6.0, (480, 640, 3))
    image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
