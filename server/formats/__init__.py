"""Output formats, one file each: a function `render(segments, size, classes) -> dict` for one image.

The dict holds `instances`, in the order of the segments, and whatever else the format has to say about the image. To
add one: write the file, add one line to `FORMATS` and its name to `Parameters.masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from server.formats import none, png, polygons, rle, rle_counts
from server.manifest import ClassName
from server.segments import Segment

Render = Callable[[Sequence[Segment], tuple[int, int], Sequence[ClassName]], dict[str, Any]]

FORMATS: dict[str, Render] = {
    "rle": rle.render,
    "rle_counts": rle_counts.render,
    "polygons": polygons.render,
    "png": png.render,
    "none": none.render,
}
