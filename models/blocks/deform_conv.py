"""Deformable convolution: every tap of the kernel looks where the picture tells it to (Dai et al. 2017,
https://arxiv.org/abs/1703.06211), and counts as much as it says (Zhu et al. 2018, https://arxiv.org/abs/1811.11168).

A tap that lands between four cells takes their bilinear mixture; cells outside the map are 0. In an exported graph it
is one `DeformConv` node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import opset20
from torch import Tensor, nn

DeformOperator = Callable[
    [Tensor, Tensor, Tensor | None, Tensor, Tensor | None, int, int, int, int, int], Tensor
]  # as `deform_conv2d`


@torch.library.custom_op("maskserve::deform_conv2d", mutates_args=())
def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Convolution with moved and weighted taps.

    Args:
        x: (B, C, H, W) float.
        offset: (B, deform_groups * k * k * 2, h, w) how far each tap moves, in cells: y and x of the first tap, then of
            the second, row by row through the kernel.
        mask: (B, deform_groups * k * k, h, w) how much each tap counts; None counts every tap once.
        weight: (O, C / groups, k, k).
        bias: (O,) or None.
        stride, padding, dilation: the same along both axes.
        groups: of channels, as in an ordinary convolution.
        deform_groups: of channels that share their offsets.

    Returns:
        (B, O, h, w).
    """
    batch, _, height, width = x.shape
    outputs, _, kernel, _ = weight.shape
    grid = (offset.shape[2], offset.shape[3])
    taps, places = kernel * kernel, grid[0] * grid[1]
    at_y, at_x = regular_taps(grid, kernel, stride, padding, dilation, x)  # (taps, h, w) each
    moved = offset.reshape(batch, deform_groups, taps, 2, *grid)
    counts = offset.new_ones(()) if mask is None else mask.reshape(batch, deform_groups, taps, *grid)[..., None]
    y, weight_y = _neighbours(at_y + moved[:, :, :, 0], height)  # (B, G, taps, h, w, 2)
    across, weight_x = _neighbours(at_x + moved[:, :, :, 1], width)
    cells = (y[..., :, None] * width + across[..., None, :]).flatten(-2)  # (B, G, taps, h, w, 4)
    shares = (weight_y[..., :, None] * weight_x[..., None, :]).flatten(-2) * counts  # (B, G, taps, h, w, 4)
    kernels = weight.reshape(groups, outputs // groups, -1)  # (groups, O / groups, C / groups * taps)
    group = torch.arange(deform_groups, device=x.device)[:, None, None, None, None]
    images = []
    for row in range(batch):
        table = x[row].reshape(deform_groups, -1, height * width).transpose(1, 2).contiguous()  # (G, H * W, C / G)
        sampled = F.embedding_bag(
            (cells[row] + group * (height * width)).reshape(-1, 4),
            table.flatten(0, 1),
            per_sample_weights=shares[row].reshape(-1, 4),
            mode="sum",
        )  # (G * taps * places, C / G)
        columns = sampled.reshape(deform_groups, taps, places, -1).permute(0, 3, 1, 2)  # (G, C / G, taps, places)
        images.append(torch.bmm(kernels, columns.reshape(groups, -1, places)).reshape(outputs, *grid))
    result = torch.stack(images)  # (B, O, h, w)
    return result if bias is None else result + bias[:, None, None]


def regular_taps(
    grid: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the taps of an ordinary convolution are: y and x, (taps, h, w) each, in cells."""
    tap = torch.arange(kernel, device=like.device) * dilation
    y = torch.arange(grid[0], device=like.device) * stride - padding
    x = torch.arange(grid[1], device=like.device) * stride - padding
    shape = (kernel, kernel, *grid)
    tap_y = (tap[:, None, None, None] + y[None, None, :, None]).expand(shape).flatten(0, 1)
    tap_x = (tap[None, :, None, None] + x[None, None, None, :]).expand(shape).flatten(0, 1)
    return tap_y.to(like.dtype), tap_x.to(like.dtype)


def _neighbours(at: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """(...) positions to the two cells around each (..., 2) int64 and their weights (..., 2), 0 outside the map."""
    at = at.clamp(-2.0, cells + 1.0)  # further out is as far out
    low = at.floor()
    both = torch.stack([low, low + 1.0], dim=-1)  # (..., 2)
    weight = torch.stack([low + 1.0 - at, at - low], dim=-1)
    inside = (both >= 0.0) & (both <= cells - 1.0)
    return both.clamp(0.0, cells - 1.0).to(torch.int64), weight * inside.to(weight.dtype)


@deform_conv2d.register_fake
def _(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])


def deform_conv2d_to_onnx(
    x: Any,
    offset: Any,
    mask: Any,
    weight: Any,
    bias: Any,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Any:
    """The operator of opset 19, which orders offsets as we do."""
    return opset20.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask,
        dilations=[dilation, dilation],
        group=groups,
        offset_group=deform_groups,
        pads=[padding] * 4,
        strides=[stride, stride],
    )


class DeformConv2d(nn.Module):
    """A 3x3 deformable convolution with the ordinary one that tells its taps where to look.

    The first two thirds of that one's channels (all, where not modulated) are offsets, y and x of each tap in turn; the
    last third are logits of how much a tap counts. detectron2 and mmdetection agree on this order.

    Args:
        modulated: taps count as much as the picture says (the second version).
        operator: what convolves, `deform_conv2d` or `sampled_deform_conv2d`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        modulated: bool = True,
        operator: DeformOperator = deform_conv2d,
    ) -> None:
        super().__init__()
        self.operator = operator
        self.stride, self.dilation = stride, dilation
        self.groups, self.deform_groups = groups, deform_groups
        self.offsets = deform_groups * 3 * 3 * 2
        self.modulated = modulated
        numbers = self.offsets * 3 // 2 if modulated else self.offsets
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.offset = nn.Conv2d(channels_in, numbers, 3, stride=stride, padding=dilation, dilation=dilation)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, h, w)."""
        told = self.offset(x)  # (B, numbers, h, w)
        mask = told[:, self.offsets :].sigmoid() if self.modulated else None
        return self.operator(
            x,
            told[:, : self.offsets],
            mask,
            self.weight,
            None,
            self.stride,
            self.dilation,
            self.dilation,
            self.groups,
            self.deform_groups,
        )
