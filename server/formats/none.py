"""`masks=none`: boxes, classes and scores, no masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.formats.instance import describe
from server.manifest import ClassName
from server.segments import Segment


def render(segments: Sequence[Segment], size: tuple[int, int], classes: Sequence[ClassName]) -> dict[str, Any]:
    return {"instances": [describe(segment, classes) for segment in segments]}
