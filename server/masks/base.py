"""What every mask representation has: parameters, a legend, and a way from one image's tensors to segments.

A legend names the tensors and their axes, `{"inside": "h w", "offsets": "2 h w"}`: a number is that length, a letter is
one length wherever it occurs. `bind` checks tensors against it once, at the door; `decode` then trusts them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from server.errors import ShapeMismatch
from server.geometry import Frame
from server.segments import Segment

Outputs = Mapping[str, NDArray[np.float32]]


class Masks(BaseModel):
    """A representation; its fields are the manifest's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    legend: ClassVar[dict[str, str]]

    @abstractmethod
    def decode(self, outputs: Outputs, frame: Frame, min_score: float) -> Iterator[Segment]:
        """Segments with a score of at least `min_score`, in no particular order.

        Args:
            outputs: one image's tensors, shapes as in `legend`.
            frame: how the image lies in the network's input.
        """


def bind(outputs: Mapping[str, NDArray[np.generic]], legend: dict[str, str]) -> dict[str, int]:
    """Check one image's tensors against a legend.

    Returns:
        The length of every letter.

    Raises:
        ShapeMismatch: a tensor is missing, unexpected, or has another shape than its legend.
    """
    if set(outputs) != set(legend):
        raise ShapeMismatch(f"outputs should be {sorted(legend)}, got {sorted(outputs)}")
    lengths: dict[str, int] = {}
    for name, axes in legend.items():
        shape = outputs[name].shape
        wanted = axes.split()
        fits = len(shape) == len(wanted) and all(
            length == (int(axis) if axis.isdigit() else lengths.setdefault(axis, length))
            for axis, length in zip(wanted, shape, strict=True)
        )
        if not fits:
            raise ShapeMismatch(f"output '{name}' should be ({axes}) with {lengths}, got {shape}")
    return lengths
