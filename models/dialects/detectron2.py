"""detectron2: `GeneralizedRCNN` with FPN, C4 or DC5, plain, deformable or ResNeXt backbones.

https://github.com/facebookresearch/detectron2. Pictures are BGR, RoIAlign samples between pixel centres and as densely
as the map has cells, anchors are not rounded, the background is the last class and has neither offsets nor a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from models.blocks.anchors import by_ratio, declared_stride
from models.blocks.boxes import BoxCoder
from models.blocks.colours import ColourSpec
from models.blocks.detections import DetectionSpec
from models.blocks.mask_rcnn_spec import BoxHeadSpec, MaskHeadSpec, MaskRCNNSpec, NeckSpec
from models.blocks.norm import BatchNorm, GroupNorm, Norm
from models.blocks.pyramid_pool import LevelRule, PyramidPool
from models.blocks.resnet import BLOCKS, Deformable, ResNetSpec
from models.blocks.rpn import AnchorSpec, RPNSpec
from models.dialects.names import Rules
from server.preprocess import ShortestEdgeInput

INPUT = ShortestEdgeInput(short_side=800, long_side=1333, multiple=32, rounding="nearest", resample="triangle")
POOL = PyramidPool(strides=(4, 8, 16, 32), level=LevelRule(inside=1e-8), sampling=0, aligned=True)

STAGES = ("res2", "res3", "res4", "res5")
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}

Config = Mapping[str, Any]


def spec(config: Config) -> MaskRCNNSpec:
    """
    Args:
        config: MODEL and TEST of detectron2's configuration; INPUT where the pictures are not BGR.
    """
    model = config["MODEL"]
    rpn, heads, box, mask = (model[name] for name in ("RPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD"))
    classes = heads["NUM_CLASSES"]
    pyramid = model["BACKBONE"]["NAME"] == "build_resnet_fpn_backbone"
    shared = heads["NAME"] == "Res5ROIHeads"
    agnostic = bool(box["CLS_AGNOSTIC_BBOX_REG"])
    return MaskRCNNSpec(
        dialect="detectron2",
        colours=_colours(config),
        multiple=32 if pyramid else 1,
        backbone=_backbone(model),
        neck=NeckSpec(model["FPN"]["OUT_CHANNELS"], norm=_norm(model["FPN"]["NORM"])) if pyramid else None,
        rpn=RPNSpec(
            anchors=_anchors(model),
            convs=len(rpn["CONV_DIMS"]),
            coder=BoxCoder(weights=tuple(rpn["BBOX_REG_WEIGHTS"])),
            before_nms=rpn["PRE_NMS_TOPK_TEST"],
            after_nms=rpn["POST_NMS_TOPK_TEST"],
            proposals=rpn["POST_NMS_TOPK_TEST"],
            iou=rpn["NMS_THRESH"],
            shortest_side=_above(model["PROPOSAL_GENERATOR"]["MIN_SIZE"]),
        ),
        pool=_pool(model, box),
        mask_pool=_pool(model, box if shared else mask),
        shared_stage=_shared_stage(model) if shared else None,
        box_head=BoxHeadSpec(
            size=box["POOLER_RESOLUTION"],
            convs=(box["CONV_DIM"],) * box["NUM_CONV"],
            layers=(box["FC_DIM"],) * box["NUM_FC"],
            norm=_norm(box["NORM"]),
            score_columns=classes + 1,
            box_sets=1 if agnostic else classes,
        ),
        detection=DetectionSpec(
            classes=classes,
            first_class=0,
            sets=1 if agnostic else classes,
            coder=BoxCoder(weights=tuple(box["BBOX_REG_WEIGHTS"])),
            score_threshold=heads["SCORE_THRESH_TEST"],
            iou=heads["NMS_THRESH_TEST"],
            shortest_side=0.0,
            shortest_answer=_above(0.0),
            rows=config["TEST"]["DETECTIONS_PER_IMAGE"],
        ),
        mask_head=MaskHeadSpec(
            size=box["POOLER_RESOLUTION"] if shared else mask["POOLER_RESOLUTION"],
            convs=(mask["CONV_DIM"],) * mask["NUM_CONV"],
            width=mask["CONV_DIM"],
            norm=_norm(mask["NORM"]),
            planes=1 if mask["CLS_AGNOSTIC_MASK"] else classes,
            paste="detectron2",
        ),
    )


def _colours(config: Config) -> ColourSpec:
    mean, std = config["MODEL"]["PIXEL_MEAN"], config["MODEL"]["PIXEL_STD"]
    if config.get("INPUT", {}).get("FORMAT", "BGR") == "RGB":
        return ColourSpec(tuple(mean), tuple(std))
    return ColourSpec(tuple(mean[::-1]), tuple(std[::-1]), order=(2, 1, 0))


def _backbone(model: Config) -> ResNetSpec:
    resnets = model["RESNETS"]
    dilation = resnets["RES5_DILATION"]
    return ResNetSpec(
        blocks=BLOCKS[resnets["DEPTH"]],
        stem_channels=resnets["STEM_OUT_CHANNELS"],
        middle=resnets["NUM_GROUPS"] * resnets["WIDTH_PER_GROUP"],
        channels=resnets["RES2_OUT_CHANNELS"],
        groups=resnets["NUM_GROUPS"],
        strides=(1, 2, 2, 2 // dilation),
        dilations=(1, 1, 1, dilation),
        stride_in_1x1=resnets["STRIDE_IN_1X1"],
        norm=_backbone_norm(resnets["NORM"]),
        deformable=Deformable(
            stages=tuple(index for index, has in enumerate(resnets["DEFORM_ON_PER_STAGE"]) if has),
            groups=resnets["DEFORM_NUM_GROUPS"],
            modulated=resnets["DEFORM_MODULATED"],
        ),
        out=tuple(STAGES.index(name) for name in resnets["OUT_FEATURES"]),
    )


def _shared_stage(model: Config) -> ResNetSpec:
    """C4: the fifth stage, never dilated, of three blocks at any depth, is the head."""
    backbone = _backbone(model)
    return replace(backbone, blocks=(*backbone.blocks[:3], 3), strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))


def _norm(name: str) -> Norm | None:
    """
    Raises:
        ValueError: a normalisation that we do not have.
    """
    if name not in ("", "BN", "SyncBN", "FrozenBN", "GN"):
        raise ValueError(f"normalisation '{name}' should be BN, SyncBN, FrozenBN, GN or none")
    if not name:
        return None
    return GroupNorm() if name == "GN" else BatchNorm()


def _backbone_norm(name: str) -> Norm:
    norm = _norm(name)
    if norm is None:
        raise ValueError("the backbone should have a normalisation: RESNETS.NORM is empty")
    return norm


def _stride(model: Config, name: str) -> int:
    """Of a map by its name."""
    if name in STRIDES:
        return STRIDES[name]
    return (4, 8, 16, 32 // model["RESNETS"]["RES5_DILATION"])[STAGES.index(name)]


def _pool(model: Config, head: Config) -> PyramidPool:
    strides = tuple(_stride(model, name) for name in model["ROI_HEADS"]["IN_FEATURES"])
    return PyramidPool(
        strides=strides,
        level=LevelRule(inside=1e-8, first_level=math.log2(strides[0])),
        sampling=head["POOLER_SAMPLING_RATIO"],
        aligned=head["POOLER_TYPE"] == "ROIAlignV2",
    )


def _anchors(model: Config) -> AnchorSpec:
    """Sizes and ratios are told once for all maps, or for each."""
    generator, names = model["ANCHOR_GENERATOR"], model["RPN"]["IN_FEATURES"]
    sizes, ratios = (
        values * len(names) if len(values) == 1 else values
        for values in (generator["SIZES"], generator["ASPECT_RATIOS"])
    )
    return AnchorSpec(
        cells=tuple(by_ratio(size, ratio) for size, ratio in zip(sizes, ratios, strict=True)),
        strides=tuple(_stride(model, name) for name in names),
        stride=declared_stride,
    )


def _above(length: float) -> float:
    """The shortest side that is longer."""
    return float(np.nextafter(np.float32(length), np.float32(np.inf))) if length else float(np.finfo(np.float32).tiny)


def stage_names(theirs: str, ours: str) -> Rules:
    """Blocks of one stage: a norm lies inside its convolution, a deformable one's offsets beside it."""
    return (
        (rf"{theirs}\.(\d+)\.shortcut\.weight", rf"{ours}.\1.shortcut.conv.weight"),
        (rf"{theirs}\.(\d+)\.shortcut\.norm\.(\w+)", rf"{ours}.\1.shortcut.norm.\2"),
        (rf"{theirs}\.(\d+)\.conv(\d)\.weight", rf"{ours}.\1.conv\2.weight"),
        (rf"{theirs}\.(\d+)\.conv(\d)\.norm\.(\w+)", rf"{ours}.\1.norm\2.\3"),
        (rf"{theirs}\.(\d+)\.conv2_offset\.(\w+)", rf"{ours}.\1.conv2.offset.\2"),
    )


IGNORED = (
    (r"pixel_(mean|std)", "the configuration tells them"),
    (r"proposal_generator\.anchor_generator\.cell_anchors\.\d+", "anchors follow from the configuration"),
    (r".*\.num_batches_tracked", "counts training steps; batch norm does not move any more"),
)

NAMES = (
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", "backbone.stem.layers.0.conv.weight"),
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(\w+)", r"backbone.stem.layers.0.norm.\1"),
    *(rule for i in range(4) for rule in stage_names(rf"backbone\.(?:bottom_up\.)?res{i + 2}", f"backbone.stages.{i}")),
    *stage_names(r"roi_heads\.res5", "shared_stage"),
    *(
        rule
        for i in range(4)
        for rule in (
            (rf"backbone\.fpn_lateral{i + 2}\.(norm\.\w+)", rf"neck.laterals.{i}.\1"),
            (rf"backbone\.fpn_lateral{i + 2}\.(\w+)", rf"neck.laterals.{i}.conv.\1"),
            (rf"backbone\.fpn_output{i + 2}\.(norm\.\w+)", rf"neck.outputs.{i}.\1"),
            (rf"backbone\.fpn_output{i + 2}\.(\w+)", rf"neck.outputs.{i}.conv.\1"),
        )
    ),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.convs.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(\w+)", r"rpn.head.convs.\1.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.deltas.\1"),
    *(
        rule
        for i in range(8)
        for rule in (
            (rf"roi_heads\.box_head\.conv{i + 1}\.(norm\.\w+)", rf"box_head.convs.{i}.\1"),
            (rf"roi_heads\.box_head\.conv{i + 1}\.(\w+)", rf"box_head.convs.{i}.conv.\1"),
            (rf"roi_heads\.box_head\.fc{i + 1}\.(\w+)", rf"box_head.layers.{i}.\1"),
            (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(norm\.\w+)", rf"mask_head.convs.{i}.\1"),
            (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(\w+)", rf"mask_head.convs.{i}.conv.\1"),
        )
    ),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_predictor.scores.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_predictor.deltas.\1"),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"mask_head.upsample.\1"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", r"mask_head.logits.\1"),
)
