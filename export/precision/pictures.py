"""Pictures for calibration: from a folder, decoded and placed exactly as the server does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.parity import inputs_for
from server import images
from server.engines import Tensors
from server.errors import RequestError
from server.geometry import Frame
from server.preprocess import AnyInput, place

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
MAX_PIXELS = 50_000_000  # the server's own default
MOST = 128  # pictures: ranges hardly move beyond that, and time does
DRAWN = 3  # where no folder is given


def list_pictures(folder: Path, most: int = MOST) -> list[Path]:
    """Picture files directly in a folder, in the order of their names; of more than `most` every k-th.

    Raises:
        ExportError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} should be a folder of pictures, there is none of that name")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ExportError(
            f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))}); "
            "give a folder with some tens of pictures like those that will be served"
        )
    return spread(found, most)


def spread(items: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of them, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[index] for index in chosen]


def read(path: Path, spec: AnyInput) -> tuple[Tensors, Frame]:
    """A batch of one, and how the picture lies in it.

    Raises:
        ExportError: it cannot be read as a picture.
    """
    try:
        file = images.survey(path.read_bytes(), MAX_PIXELS)
        frame = spec.frame(file.size)
        picture = images.decode(file, frame.content if spec.reduced_decoding else None)
    except RequestError as error:
        raise ExportError(f"{path} cannot be read: {error}; take it out of the folder, or repair it") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}; check that the file may be opened") from None
    inputs: Tensors = {"images": place(picture, frame)[None], "sizes": np.array([frame.content], np.int32)}
    return inputs, frame


def placed(paths: Sequence[Path], spec: AnyInput) -> Iterator[Tensors]:
    """Batches of one, read when they are wanted."""
    return (read(path, spec)[0] for path in paths)


def drawn(spec: AnyInput) -> list[Tensors]:
    """Pictures of the project's own, small ones, where nobody gave any."""
    return [inputs_for(spec, 1, seed) for seed in range(101, 101 + DRAWN)]
