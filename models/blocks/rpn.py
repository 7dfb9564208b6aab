"""Region proposal network: where objects may be (Ren et al. 2015, https://arxiv.org/abs/1506.01497).

A small head says of every anchor whether it holds an object and how to move it. The best of every level, without those
that overlap a better one, become proposals: always the same number, the surplus marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks.anchors import Cells, anchors_at
from models.blocks.boxes import BoxCoder, clip, round_up, sides_reach, stretch
from models.blocks.nms import Nms, nms_keep
from models.blocks.top import UNUSED, best, pick


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """Anchors of every level, finest first."""

    cells: tuple[Cells, ...]
    strides: tuple[int, ...]
    stride: Callable[[int, int, int], int]  # from the input's side, the map's and the declared stride


@dataclass(frozen=True, slots=True)
class RPNSpec:
    anchors: AnchorSpec
    convs: int  # 3x3 convolutions in the head
    coder: BoxCoder
    before_nms: int  # best anchors of each level
    after_nms: int  # and of those that NMS leaves
    proposals: int  # of all levels together
    iou: float  # two boxes of a level that overlap more are one
    shortest_side: float  # pixels; a box with a shorter one is dropped
    edge_multiple: int = 1  # proposals end where the picture does, its sides rounded up to multiples of this
    nms: Nms = nms_keep  # or `ClusterNMS`; boxes come best first


class RPNHead(nn.Module):
    """Objectness and offsets for every anchor; the same weights on every level."""

    def __init__(self, channels: int, anchors: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.logits = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) to (B, A, h, w) logits and (B, 4A, h, w) deltas, those of an anchor together."""
        for conv in self.convs:
            x = torch.relu(conv(x))  # (B, C, h, w)
        return self.logits(x), self.deltas(x)


class RPN(nn.Module):
    """
    Args:
        channels: of every map.
    """

    def __init__(self, channels: int, spec: RPNSpec) -> None:
        super().__init__()
        self.spec = spec
        self.head = RPNHead(channels, len(spec.anchors.cells[0]), spec.convs)
        for level, cells in enumerate(spec.anchors.cells):
            self.register_buffer(f"cells_{level}", torch.tensor(cells, dtype=torch.float32), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Maps (B, C, h, w), finest first, to each one's logits (B, A, h, w) and deltas (B, 4A, h, w)."""
        return [self.head(features) for features in maps]

    def propose(
        self, heads: Sequence[tuple[Tensor, Tensor]], input_size: tuple[int, int], sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            heads: what `forward` gave.
            input_size: (height, width) of the network's input, padding included: anchors cover it.
            sizes: (B, 2) int, true (height, width) of each picture: proposals are cut off there, or where it ends when
                it is padded to `edge_multiple`.

        Returns:
            Boxes (B, P, 4) xyxy in input pixels and logits (B, P), best first; unused rows are all zero with the logit
            `UNUSED`.
        """
        spec = self.spec
        found = [self._best(level, *head, input_size) for level, head in enumerate(heads)]
        anchors, moves, logits = (torch.stack(levels, dim=1) for levels in zip(*found, strict=True))  # (B, L, N, ...)
        ends = round_up(sizes, spec.edge_multiple)[:, None, None]  # (B, 1, 1, 2)
        boxes = clip(spec.coder.decode(moves, anchors), ends, spec.coder.extent)  # (B, L, N, 4)
        logits = torch.where(sides_reach(boxes, spec.shortest_side), logits, UNUSED)
        kept = spec.nms(
            stretch(boxes, spec.coder.extent).flatten(0, 1), logits.flatten(0, 1), spec.iou, UNUSED / 2
        ).reshape(logits.shape)  # (B, L, N)
        logits, indices = torch.where(kept > 0, logits, UNUSED).topk(min(spec.after_nms, spec.before_nms))
        boxes = pick(boxes, indices).flatten(1, 2)  # (B, L * M, 4)
        logits, indices = best(logits.flatten(1), spec.proposals, UNUSED)  # (B, P)
        boxes = torch.where(logits[..., None] > UNUSED / 2, pick(boxes, indices), 0.0)
        return boxes, logits

    def _best(
        self, level: int, logits: Tensor, deltas: Tensor, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best N anchors of one level (B, N, 4), how they move (B, N, 4), and logits (B, N)."""
        anchors = self.spec.anchors
        cells: Tensor = getattr(self, f"cells_{level}")
        rows, columns = (
            anchors.stride(side, count, anchors.strides[level])
            for side, count in zip(input_size, logits.shape[2:], strict=True)
        )
        flat = logits.permute(0, 2, 3, 1).flatten(1)  # (B, h * w * A)
        moves = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # (B, h * w * A, 4)
        scores, indices = best(flat, self.spec.before_nms, UNUSED)  # (B, N)
        return anchors_at(indices, cells, logits.shape[3], (rows, columns)), pick(moves, indices), scores
