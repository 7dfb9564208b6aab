"""`masks=rle`: compressed COCO run lengths, `{"size": [H, W], "counts": "..."}`, as pycocotools reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.formats.instance import describe
from server.manifest import ClassName
from server.rle import encode
from server.segments import Segment


def render(segments: Sequence[Segment], size: tuple[int, int], classes: Sequence[ClassName]) -> dict[str, Any]:
    strings = encode([segment.patch for segment in segments], size)
    instances = [
        describe(segment, classes) | {"segmentation": {"size": list(size), "counts": counts}}
        for segment, counts in zip(segments, strings, strict=True)
    ]
    return {"instances": instances}
