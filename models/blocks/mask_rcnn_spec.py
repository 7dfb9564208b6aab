"""Everything that one Mask R-CNN decides differently from the next. `models/dialects/` fills it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.blocks.colours import ColourSpec
from models.blocks.detections import DetectionSpec
from models.blocks.norm import Norm
from models.blocks.pyramid_pool import Pool
from models.blocks.resnet import ResNetSpec
from models.blocks.rpn import RPNSpec


@dataclass(frozen=True, slots=True)
class NeckSpec:
    """A feature pyramid: channels of every level, and the norm after its convolutions."""

    channels: int
    norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class BoxHeadSpec:
    """
    Args:
        size: bins per side that a proposal is pooled to.
        convs: widths of the 3x3 convolutions.
        layers: widths of the fully connected layers; none where the mean over the bins is taken instead.
        score_columns: classes with the background.
        box_sets: sets of offsets that are told.
    """

    size: int
    convs: tuple[int, ...]
    layers: tuple[int, ...]
    norm: Norm | None
    score_columns: int
    box_sets: int


@dataclass(frozen=True, slots=True)
class MaskHeadSpec:
    """
    Args:
        size: bins per side that a detection is pooled to.
        convs: widths of the 3x3 convolutions.
        width: channels after the square was enlarged.
        planes: of logits; the last belong to the classes, a single one to all.
        paste: how a mask comes into the picture, as in `RoiMasks`.
    """

    size: int
    convs: tuple[int, ...]
    width: int
    norm: Norm | None
    planes: int
    paste: Literal["torchvision", "detectron2"]
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class MaskRCNNSpec:
    """
    Args:
        dialect: whose names its checkpoints have.
        multiple: the reference pads pictures to multiples of this.
        pool, mask_pool: how boxes and how masks are pooled.
        neck: the pyramid; none where the backbone's last map is all there is (C4, DC5).
        shared_stage: the ResNet whose fourth stage both heads apply to what they pool (C4).
    """

    dialect: Literal["torchvision", "detectron2", "mmdetection", "maskrcnn_benchmark", "detectron_pytorch"]
    colours: ColourSpec
    multiple: int
    backbone: ResNetSpec
    neck: NeckSpec | None
    rpn: RPNSpec
    pool: Pool
    mask_pool: Pool
    shared_stage: ResNetSpec | None
    box_head: BoxHeadSpec
    detection: DetectionSpec
    mask_head: MaskHeadSpec
