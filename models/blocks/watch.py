"""Whether an operator of fixed cost was exact for what it was given: counted in eager runs, and in no graph.

`ClusterNMS` has a fixed number of rounds and `BestPairs` a fixed number of candidates. Both know whether that was
enough, and tell the `Watch` that they were made with:

    watch = Counting()
    twin = model.plugin_free(ClusterNMS(rounds=8, watch=watch))
    twin(images, sizes)
    watch.changed, watch.missed            0, 0: the twin was exact for these pictures
"""

from __future__ import annotations

from torch import Tensor


class Watch:
    """Does not listen; what it would be told is left out of an exported graph."""

    def unsettled(self, boxes: Tensor) -> None:
        """How many boxes the last round of cluster-NMS still changed its mind about."""

    def left_out(self, candidates: Tensor) -> None:
        """How many candidates nobody looked at, in pictures that had rows left for them."""


class Counting(Watch):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.changed = 0
        self.missed = 0

    def unsettled(self, boxes: Tensor) -> None:
        self.changed += int(boxes)

    def left_out(self, candidates: Tensor) -> None:
        self.missed += int(candidates)


SILENT = Watch()
