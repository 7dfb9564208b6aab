"""What follows a convolution: batch norm with statistics that no longer move, what is left of it where they were worked
into its weights, or group norm.

A model takes a `Norm`, a recipe that knows everything but the number of channels. Recipes are values: two equal ones
compare equal, and they go into the frozen specs of the architectures.

    norm = BatchNorm(eps=1e-5)
    layer = norm(64)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # from the number of channels


class FrozenBatchNorm(nn.Module):
    """Batch norm as at inference, in every mode (Ioffe, Szegedy 2015, https://arxiv.org/abs/1502.03167).

    It has no counter of batches, which half of the code bases do not save; it must not be asked for.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """
    Args:
        eps: added to the variance. 1e-5 nearly everywhere, 0 in maskrcnn-benchmark and in torchvision's own COCO
            weights: a wrong one shows in no shape and in every number.
    """

    eps: float = 1e-5

    def __call__(self, channels: int) -> nn.Module:
        return FrozenBatchNorm(channels, self.eps)


class ChannelAffine(nn.Module):
    """A factor and a summand for each channel: `AffineChannel` of Detectron, a batch norm whose mean and variance were
    worked into its weight and bias before training. There is no epsilon to choose any more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


@dataclass(frozen=True, slots=True)
class Affine:
    """Batch norm without its statistics."""

    def __call__(self, channels: int) -> nn.Module:
        return ChannelAffine(channels)


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Statistics of each picture's own channels, in groups (Wu, He 2018, https://arxiv.org/abs/1803.08494)."""

    groups: int = 32
    eps: float = 1e-5

    def __call__(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.groups, channels, eps=self.eps)
