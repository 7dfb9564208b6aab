"""`masks=rle_counts`: COCO run lengths as plain numbers, `{"size": [H, W], "counts": [5, 3, 1, ...]}`, zeros first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.formats.instance import describe
from server.manifest import ClassName
from server.rle import patches_to_counts
from server.segments import Segment


def render(segments: Sequence[Segment], size: tuple[int, int], classes: Sequence[ClassName]) -> dict[str, Any]:
    runs = patches_to_counts([segment.patch for segment in segments], size)
    instances = [
        describe(segment, classes) | {"segmentation": {"size": list(size), "counts": counts.tolist()}}
        for segment, counts in zip(segments, runs, strict=True)
    ]
    return {"instances": instances}
