"""RoIAlign: a map resampled inside boxes, each to the same few bins (He et al. 2017, https://arxiv.org/abs/1703.06870,
sec. 3).

A box is cut into size x size bins and the mean of a few bilinear samples is taken in each. What a sample is, code bases
agree on: one that lies more than a cell outside the map counts 0, one that lies less outside is moved to the edge.
About where the box lies they do not: `aligned` puts pixel centres at .5, without it the box is half a cell lower and
further right, and at least one cell wide and high.

    pooled = roi_align(features, boxes, batch_index, scale=1 / 16, size=7, sampling=2, aligned=True)

Samples along y and along x are independent, so a bin is written as two short lists of (row, weight) and (column,
weight); every pair of them is one cell of the map and its weight. In an exported graph it is one `RoiAlign` node.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import opset20
from torch import Tensor

CELLS_AT_ONCE = 1 << 22  # pairs of a bin and a cell: 50 MB of indices and weights


@torch.library.custom_op("maskserve::roi_align", mutates_args=())
def roi_align(
    features: Tensor, boxes: Tensor, batch_index: Tensor, scale: float, size: int, sampling: int, aligned: bool
) -> Tensor:
    """Mean of the bilinear samples in each bin of each box.

    Args:
        features: (B, C, H, W) float.
        boxes: (R, 4) xyxy, input pixels, finite; may be empty or reach outside the map, but x2 >= x1 and y2 >= y1 (ONNX
            Runtime refuses others).
        batch_index: (R,) int64, the row of `features` that a box is on.
        scale: cells of the map per input pixel, 1 / stride.
        size: bins per side.
        sampling: samples per side of a bin; 0 for as many as a bin has cells, rounded up: none in an empty box,
            whose bins are then 0.
        aligned: pixel centres at .5.

    Returns:
        (R, C, size, size).
    """
    half = 0.5 if aligned else 0.0
    corners = boxes * scale - half  # (R, 4) in cells
    start, length = corners[:, :2], corners[:, 2:] - corners[:, :2]  # (R, 2) x, y
    if not aligned:
        length = length.clamp(min=1.0)
    counts = torch.ceil(length / size).to(torch.int64) if sampling == 0 else torch.full_like(start, sampling).long()
    channels, height, width = features.shape[1:]
    table = (
        features.permute(0, 2, 3, 1).contiguous().reshape(-1, channels)
    )  # (B * H * W, C), a cell's channels together
    pooled = features.new_zeros(boxes.shape[0], channels, size, size)
    groups, member = torch.unique(counts.clamp(min=0), dim=0, return_inverse=True)  # boxes with as many samples
    for group, (count_x, count_y) in enumerate(groups.tolist()):
        if not (count_x and count_y):
            continue
        (rows,) = torch.nonzero(member == group, as_tuple=True)
        reach_x, reach_y = _reach(count_x, sampling, width), _reach(count_y, sampling, height)
        most = min(2 * count_x, reach_x) * min(2 * count_y, reach_y) * size * size
        for some in rows.split(max(1, CELLS_AT_ONCE // most)):
            x, weight_x = _taps(start[some, 0], length[some, 0], size, count_x, width, reach_x)  # (r, size, tx)
            y, weight_y = _taps(start[some, 1], length[some, 1], size, count_y, height, reach_y)  # (r, size, ty)
            cells = (batch_index[some, None, None] * height + y)[:, :, None, :, None] * width + x[:, None, :, None, :]
            weights = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]  # (r, size, size, ty, tx)
            means = F.embedding_bag(
                cells.reshape(-1, cells.shape[3] * cells.shape[4]),
                table,
                per_sample_weights=weights.flatten(0, 2).flatten(1),
                mode="sum",
            )  # (r * size * size, C)
            pooled.index_copy_(0, some, means.reshape(-1, size, size, channels).permute(0, 3, 1, 2))
    return pooled


def _reach(count: int, sampling: int, cells: int) -> int:
    """How many cells, at most, lie between the first and the last that a bin takes along one axis, these included.

    As many samples as there are cells lie at most a cell apart; another cell is for the neighbour of the last, and one
    for rounding. It depends on no box, lest a box be added up in another order when another one is there.
    """
    return min(count + 2, cells) if sampling == 0 else cells


def _taps(start: Tensor, length: Tensor, size: int, count: int, cells: int, reach: int) -> tuple[Tensor, Tensor]:
    """Which cells the bins of each box take along one axis, and how much of each.

    Args:
        start, length: (r,) of the boxes, in cells.
        count: samples in a bin.
        cells: of the map along this axis.
        reach: see `_reach`; samples on the same cell are added up where that makes the lists shorter.

    Returns:
        (r, size, t) int64 and float; the weights of a bin inside the map add up to 1.
    """
    bin_length = (length / size)[:, None, None]  # (r, 1, 1)
    bins = torch.arange(size, device=start.device)[None, :, None]  # (1, size, 1)
    samples = torch.arange(count, device=start.device) + 0.5  # (count,)
    at = start[:, None, None] + bins * bin_length + samples * bin_length / count  # (r, size, count)
    inside = ((at >= -1.0) & (at <= cells)).to(start.dtype) / count
    at = at.clamp(0.0, cells - 1.0)
    low = at.floor()
    above = (at - low) * inside
    first = low.to(torch.int64)
    index = torch.cat([first, (first + 1).clamp(max=cells - 1)], dim=-1)  # (r, size, 2 * count)
    weight = torch.cat([inside - above, above], dim=-1)
    if reach >= 2 * count:
        return index, weight
    origin = index.amin(dim=-1, keepdim=True)  # (r, size, 1)
    merged = weight.new_zeros(*weight.shape[:2], reach).scatter_add_(2, index - origin, weight)  # (r, size, reach)
    return (origin + torch.arange(reach, device=index.device)).clamp(max=cells - 1), merged


@roi_align.register_fake
def _(
    features: Tensor, boxes: Tensor, batch_index: Tensor, scale: float, size: int, sampling: int, aligned: bool
) -> Tensor:
    return features.new_empty(boxes.shape[0], features.shape[1], size, size)


def roi_align_to_onnx(
    features: Any, boxes: Any, batch_index: Any, scale: float, size: int, sampling: int, aligned: bool
) -> Any:
    """The operator of opset 16, whose `output_half_pixel` is our aligned=False."""
    return opset20.RoiAlign(
        features,
        boxes,
        batch_index,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=size,
        output_width=size,
        sampling_ratio=sampling,
        spatial_scale=scale,
    )
