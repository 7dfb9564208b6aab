"""What every format says of an instance: a COCO result but for its `segmentation` and `image_id`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.manifest import ClassName
from server.segments import Segment


def describe(segment: Segment, classes: Sequence[ClassName]) -> dict[str, Any]:
    x1, y1, x2, y2 = segment.box
    entry = classes[segment.label]
    return {
        "category_id": entry.id,
        "category": entry.name,
        "score": segment.score,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": segment.area,
    }
