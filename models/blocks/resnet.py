"""ResNet: a stem that shrinks the picture four times, then stages of residual blocks (He et al. 2015,
https://arxiv.org/abs/1512.03385), with the options that its descendants chose.

    spec = ResNetSpec(blocks=BLOCKS[50], norm=BatchNorm(eps=1e-5))
    c2, c3, c4, c5 = ResNet(spec)(x)                 strides 4, 8, 16, 32; 256, 512, 1024, 2048 channels
    head = stage(spec, 3)                            the last stage alone: the box head of Mask R-CNN C4

Width, groups and strides are numbers; the kind of block, the norm and the deformable convolution are parts passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.deform_conv import DeformConv2d, DeformOperator, deform_conv2d
from models.blocks.norm import BatchNorm, Norm

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}  # blocks of each stage, by the depth that papers name; 18 and 34 are made of `BasicBlock`


@dataclass(frozen=True, slots=True)
class Deformable:
    """Stages whose 3x3 convolutions are deformable, all their blocks.

    Args:
        stages: counted from 0.
        groups: of channels that share their offsets.
        modulated: DCNv2; without it DCNv1.
        operator: what convolves.
    """

    stages: tuple[int, ...] = ()
    groups: int = 1
    modulated: bool = True
    operator: DeformOperator = deform_conv2d


class ConvNorm(nn.Module):
    """Convolution without bias, and its norm."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    """Nothing, where the shape stays."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return ConvNorm(channels_in, channels_out, 1, stride, norm)


def _conv3x3(
    channels_in: int, channels_out: int, stride: int, dilation: int, groups: int, deformable: Deformable | None
) -> nn.Module:
    if deformable is None:
        return nn.Conv2d(
            channels_in, channels_out, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
    return DeformConv2d(
        channels_in,
        channels_out,
        stride=stride,
        dilation=dilation,
        groups=groups,
        deform_groups=deformable.groups,
        modulated=deformable.modulated,
        operator=deformable.operator,
    )


class Bottleneck(nn.Module):
    """1x1 to fewer channels, 3x3 there, 1x1 back to many.

    Args:
        channels_in, middle, channels_out: of the block's input, its 3x3 convolution and its output.
        stride: of the 3x3 convolution (version 1.5), or of the first one where `stride_in_1x1` (the original, Caffe).
        groups: of the 3x3 convolution (Xie et al. 2016, ResNeXt, https://arxiv.org/abs/1611.05431).
        deformable: how the 3x3 convolution is; None for an ordinary one.
    """

    def __init__(
        self,
        channels_in: int,
        middle: int,
        channels_out: int,
        *,
        norm: Norm,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        stride_in_1x1: bool = False,
        deformable: Deformable | None = None,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(channels_in, middle, 1, first, bias=False)
        self.norm1 = norm(middle)
        self.conv2 = _conv3x3(middle, middle, second, dilation, groups, deformable)
        self.norm2 = norm(middle)
        self.conv3 = nn.Conv2d(middle, channels_out, 1, bias=False)
        self.norm3 = norm(channels_out)
        self.shortcut = _shortcut(channels_in, channels_out, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))  # (B, middle, h, w)
        y = torch.relu(self.norm2(self.conv2(y)))  # (B, middle, h / stride, w / stride)
        y = self.norm3(self.conv3(y))  # (B, channels_out, h / stride, w / stride)
        return torch.relu(y + self.shortcut(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet 18 and 34). Takes what `Bottleneck` takes, without a use for a 1x1 or a middle."""

    def __init__(
        self,
        channels_in: int,
        middle: int,
        channels_out: int,
        *,
        norm: Norm,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        stride_in_1x1: bool = False,
        deformable: Deformable | None = None,
    ) -> None:
        super().__init__()
        if deformable is not None or groups != 1:
            raise ValueError("BasicBlock has neither groups nor deformable convolutions; use Bottleneck")
        self.conv1 = _conv3x3(channels_in, channels_out, stride, dilation, 1, None)
        self.norm1 = norm(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out, 1, 1, 1, None)
        self.norm2 = norm(channels_out)
        self.shortcut = _shortcut(channels_in, channels_out, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))  # (B, channels_out, h / stride, w / stride)
        y = self.norm2(self.conv2(y))  # (B, channels_out, h / stride, w / stride)
        return torch.relu(y + self.shortcut(x))


class Stem(nn.Module):
    """Convolutions of stride 2, ReLU after each, and a maximum of stride 2: (B, 3, h, w) to (B, C, h / 4, w / 4).

    Args:
        kind: one 7x7 convolution ("basic"), or three 3x3 ones, the first two with half the channels ("deep", He et al.
            2018, https://arxiv.org/abs/1812.01187).
    """

    def __init__(self, channels: int, kind: Literal["basic", "deep"], norm: Norm) -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.ModuleList(
            [ConvNorm(3, channels, 7, 2, norm)]
            if kind == "basic"
            else [ConvNorm(3, half, 3, 2, norm), ConvNorm(half, half, 3, 1, norm), ConvNorm(half, channels, 3, 1, norm)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))  # (B, C, h / 2, w / 2)
        return F.max_pool2d(x, 3, stride=2, padding=1)  # (B, C, h / 4, w / 4)


@dataclass(frozen=True, slots=True)
class ResNetSpec:
    """
    Args:
        blocks: of every stage; `BLOCKS` has those of the usual depths.
        block: what they are.
        stem: see `Stem`.
        stem_channels: of its output.
        middle: channels of the first stage's 3x3 convolutions, all groups together (64; ResNeXt 32x8d: 256). Doubles
            with every stage.
        channels: of the first stage's output. Doubles with every stage.
        groups: of the 3x3 convolutions.
        strides: of the first block of every stage.
        dilations: of the 3x3 convolutions of every stage. DC5: strides (1, 2, 2, 1), dilations (1, 1, 1, 2).
        stride_in_1x1: the original ResNet, and Caffe's; without it version 1.5.
        out: stages whose maps are given, ascending; none after the last of them is built.
    """

    blocks: tuple[int, ...] = BLOCKS[50]
    block: type[Bottleneck] | type[BasicBlock] = Bottleneck
    stem: Literal["basic", "deep"] = "basic"
    stem_channels: int = 64
    middle: int = 64
    channels: int = 256
    groups: int = 1
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    stride_in_1x1: bool = False
    norm: Norm = field(default_factory=BatchNorm)
    deformable: Deformable = field(default_factory=Deformable)
    out: tuple[int, ...] = (0, 1, 2, 3)

    def width(self, index: int) -> int:
        """Channels that stage `index` gives."""
        return self.channels << index


def stage(spec: ResNetSpec, index: int) -> nn.Sequential:
    """The blocks of one stage: (B, C, h, w) to (B, spec.width(index), h / stride, w / stride)."""
    channels_in = spec.width(index - 1) if index else spec.stem_channels
    return nn.Sequential(
        *(
            spec.block(
                spec.width(index) if number else channels_in,
                spec.middle << index,
                spec.width(index),
                norm=spec.norm,
                stride=1 if number else spec.strides[index],
                dilation=spec.dilations[index],
                groups=spec.groups,
                stride_in_1x1=spec.stride_in_1x1,
                deformable=spec.deformable if index in spec.deformable.stages else None,
            )
            for number in range(spec.blocks[index])
        )
    )


class ResNet(nn.Module):
    """`channels` and `strides` tell of each map that it gives."""

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.out = spec.out
        self.channels = tuple(spec.width(index) for index in spec.out)
        strides = [4]
        for stride in spec.strides:
            strides.append(strides[-1] * stride)
        self.strides = tuple(strides[index + 1] for index in spec.out)
        self.stem = Stem(spec.stem_channels, spec.stem, spec.norm)
        self.stages = nn.ModuleList(stage(spec, index) for index in range(spec.out[-1] + 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """
        Args:
            x: (B, 3, h, w) float, normalised.

        Returns:
            The maps of the stages `out`, finest first; a stride divides a side and rounds up.
        """
        x = self.stem(x)  # (B, stem_channels, h / 4, w / 4)
        maps = []
        for blocks in self.stages:
            x = blocks(x)
            maps.append(x)
        return [maps[index] for index in self.out]
